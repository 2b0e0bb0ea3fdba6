"""The chat page in a real browser, with a real server and a scripted pair."""

import pytest
from helpers.scripted_relay import BYTE_LEVEL, END, scripted
from helpers.served import served
from helpers.serving import pair_of

from relay_trl.costs import ModelCosts, PriceTable, Usage, with_prices
from relay_trl.engines.base import EngineError
from relay_trl.serving.app import RelayServer
from relay_trl.serving.limits import Limits

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ATTACK = "</div><img src=x onerror=alert(1)><script>alert(2)</script>"


def app_of(student, teacher=(), delay_s=0.0, keys=(), prices=None, **limits):
    """The server's application over a pair that says these texts, and what its student was asked."""
    says = scripted(BYTE_LEVEL, *student, delay_s=delay_s)
    pair = pair_of(says, scripted(BYTE_LEVEL, *teacher) if teacher else None, max_completion_length=200)
    return RelayServer(pair, "my-student", list(keys), Limits(**limits), prices).app(), says


def ask(page, text):
    page.fill("textarea", text)
    page.press("textarea", "Enter")


def finished(page, count=1):
    page.wait_for_function("count => document.querySelectorAll('.answer[aria-busy=false]').length === count", arg=count)
    return page.locator(".answer").nth(count - 1)


def test_an_answer_shows_who_wrote_what_and_what_it_cost(open_page):
    student = ("78*6=<call>3</call>", ";+49=517" + END, ATTACK + END)
    prices = PriceTable(ModelCosts(None, 0.5, 0.1, 1.0), ModelCosts(None, 4.0, None, 10.0))
    app, says = app_of(student, ["468"], prices=prices)
    with served(app) as url:
        page = open_page(url)
        assert page.title() == "my-student" and page.locator("textarea").evaluate("e => e === document.activeElement")
        ask(page, "78*6+49=")
        answer = finished(page)
        assert answer.locator(".said").inner_text() == "78*6=468;+49=517"
        assert answer.locator("mark.teacher").all_inner_texts() == ["468"]
        tokens = len(BYTE_LEVEL.encode("78*6=<call>3</call>")) + len(BYTE_LEVEL.encode(";+49=517")) + 1
        teacher = len(BYTE_LEVEL.encode("468"))
        cost = answer.locator(".cost").inner_text()
        assert f"({teacher} of {tokens + teacher} tokens)" in cost and "1 call" in cost
        prompt = len(BYTE_LEVEL.encode("78*6+49="))
        read = sum(map(len, says.contexts))
        alone = len(BYTE_LEVEL.encode("78*6+49=78*6="))  # what the teacher was shown
        paid = with_prices(Usage(tokens, read, 0), Usage(teacher, alone, 0), prices).money
        assert "at least" not in cost
        assert float(cost.partition("call")[2].split()[0]) == pytest.approx(paid, rel=0.05)
        said = page.locator(".total").inner_text().partition("alone about ")[2]
        assert float(said.split()[0]) == pytest.approx((4 * prompt + 10 * (tokens + teacher)) / 1e6, rel=0.05)
        answer.get_by_role("button", name="Copy").click()
        page.get_by_role("button", name="Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == "78*6=468;+49=517"

        edge = "selector => document.querySelector(selector).getBoundingClientRect().left"
        assert page.evaluate(edge, ".answer .said") == page.evaluate(edge, "textarea") == page.evaluate(edge, "h1")

        # What a user or a model writes is text, whatever it looks like
        ask(page, ATTACK)
        assert finished(page, 2).locator(".said").inner_text() == ATTACK
        assert page.locator(".user").nth(1).inner_text() == ATTACK and page.locator("main img").count() == 0
        said = page.locator(".total").inner_text()
        both = tokens + teacher + len(BYTE_LEVEL.encode(ATTACK)) + 1
        assert said.startswith("This chat: ") and f"({teacher} of {both} tokens)" in said and "teacher alone" in said
        page.get_by_role("button", name="New chat").click()
        assert page.locator(".answer").count() == 0 and page.locator(".welcome").is_visible()
        assert "This chat" not in page.locator(".total").inner_text()


def test_the_dial_commands_and_memory_reach_the_server(open_page):
    app, says = app_of(["a<call>2</call>", END, "b" + END, "c" + END, "d" + END], ["xy", END])
    with served(app) as url:
        page = open_page(url)
        assert not page.is_checked("[name=remember]") or says.vocabulary.tokenizer.chat_template
        page.check("[name=commands]")
        page.uncheck("[name=remember]")
        ask(page, "one")
        assert finished(page).locator(".said").inner_text() == "a<call>2</call>xy"
        assert not says.requests[0][2].logit_bias
        page.focus("[name=bias]")
        for _ in range(2):
            page.keyboard.press("ArrowRight")
        assert page.locator(".dial output").inner_text() == "often"
        assert page.get_attribute("[name=bias]", "aria-valuetext") == "often"
        ask(page, "two")
        finished(page, 2)
        assert set(dict(says.requests[-1][2].logit_bias).values()) == {2.0}
        page.focus("[name=bias]")
        page.keyboard.press("Home")
        assert page.locator(".dial output").inner_text() == "never"
        ask(page, "three")
        finished(page, 3)
        assert "two" not in (asked := BYTE_LEVEL.decode(says.contexts[-1])) and "three" in asked
        assert max(dict(says.requests[-1][2].logit_bias).values()) <= -100
        page.check("[name=remember]")
        ask(page, "four")
        finished(page, 4)
        assert "one" in (asked := BYTE_LEVEL.decode(says.contexts[-1])) and "four" in asked


def test_stopping(open_page):
    prices = PriceTable(ModelCosts(read=1.0, write=1.0), ModelCosts(write=1.0))
    app, says = app_of(["abcdefgh" * 20 + END, "done" + END], delay_s=0.1, prices=prices)
    with served(app) as url:
        page = open_page(url)
        for way in (lambda: page.keyboard.press("Escape"), lambda: page.get_by_role("button", name="Stop").click()):
            ask(page, "go")
            page.wait_for_function("() => document.querySelector('.answer.writing .said')?.textContent.length > 2")
            way()
            answer = finished(page, page.locator(".answer").count())
            cost = answer.locator(".cost").inner_text()
            assert "stopped" in cost and "at least" in cost  # what was read is told at the end only
            assert page.locator(".send").inner_text() == "Send"


def test_what_goes_wrong_is_said(open_page):
    down = EngineError("The teacher is down.")
    app, _ = app_of(
        ["a<call>2</call>", "b" + END, EngineError("The student is down."), "c" + END], [down], keys=["secret"]
    )
    with served(app) as url:
        page = open_page(url)
        ask(page, "hello")
        assert "key" in finished(page).locator("[role=alert]").inner_text().lower()
        assert page.locator("[name=key]").is_visible()
        page.fill("[name=key]", "secret")
        ask(page, "hello")
        answer = finished(page, 2)
        assert (
            answer.locator(".said").inner_text() == "ab"
            and "student went on alone" in answer.locator(".cost").inner_text()
        )
        ask(page, "again")
        assert finished(page, 3).locator("[role=alert]").is_visible()
    ask(page, "anybody there?")
    assert finished(page, 4).locator("[role=alert]").inner_text() == "The server cannot be reached."


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_it_fits_and_has_enough_contrast(open_page, width, scheme):
    app, _ = app_of(["word " * 60 + "<call>5</call>", "x" * 90 + END], ["teacher"])
    with served(app) as url:
        page = open_page(url, width=width, height=844, scheme=scheme)
        ask(page, "a long question " * 20)
        finished(page)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator(".send").bounding_box()["y"] < 844
        unnamed = "[...document.querySelectorAll('button, input, textarea')].filter(e => e.offsetParent && "
        unnamed += "!(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).length"
        assert page.evaluate(unnamed) == 0
        for selector in (".user", "mark.teacher", ".cost", ".lead", ".hint"):
            assert contrast(page, selector) >= 4.5, selector


def contrast(page, selector):
    """WCAG's contrast of an element's text to what is behind it."""
    colours = page.locator(selector).first.evaluate(
        """e => {
            let behind = e;
            while (getComputedStyle(behind).backgroundColor === "rgba(0, 0, 0, 0)") behind = behind.parentElement;
            return [getComputedStyle(e).color, getComputedStyle(behind).backgroundColor];
        }"""
    )

    def luminance(colour):
        channels = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    light, dark = sorted(map(luminance, colours), reverse=True)
    return (light + 0.05) / (dark + 0.05)
