"""The viewer in a real browser: what it shows, filters and follows, and that no text of a model can run as code."""

import random

import pytest
from helpers.made_up_run import SIZE, write_group, write_run
from helpers.served import served

from relay_trl.__main__ import main
from relay_trl.rollout_files import RolloutReader
from relay_trl.viewer.follow import FollowedRun
from relay_trl.viewer.server import watch_app

pytestmark = [pytest.mark.browser, pytest.mark.slow]

ATTACK = "</script><img src=x onerror=alert(1)><script>alert(2)</script>"


def counts(page):
    """Rollouts that fit, all rollouts, and groups, as the page says them."""
    words = page.locator(".filters output").inner_text().replace(",", "").split()
    return int(words[0]), int(words[2]), int(words[4])


def wait_for(page, expected):
    page.wait_for_function(
        "text => document.querySelector('.filters output').value.replaceAll(',', '').startsWith(text)", arg=expected
    )


def test_following_a_run(tmp_path, open_page):
    writer = write_run(tmp_path, rollouts=640)
    groups = RolloutReader(tmp_path).poll()[1]
    with served(watch_app(FollowedRun(tmp_path))) as url:
        page = open_page(url)
        wait_for(page, "640 of 640 rollouts 80 groups")
        assert page.locator(".status").inner_text() == "step 10 of 10" and page.locator(".chart").count() == 6
        assert page.locator(".settings").inner_text().startswith("student base Qwen/Qwen3-0.6B")
        newest = page.locator(".group").first
        assert newest.locator(".question").inner_text() == groups[-1]["prompt"]
        shown = newest.locator("article")
        assert shown.count() == SIZE
        for i, rollout in enumerate(groups[-1]["rollouts"]):
            verdict = {True: "right", False: "wrong", None: "failed"}[rollout["correct"]]
            assert verdict in shown.nth(i).get_attribute("class").split()
            by_teacher = [piece["text"] for piece in rollout["segments"] if piece["author"] == "teacher"]
            assert shown.nth(i).locator("mark.teacher").all_inner_texts() == by_teacher

        every = [rollout for group in groups for rollout in group["rollouts"]]
        for name, fits in (
            ("called", lambda rollout: rollout["called"]),
            ("wrong", lambda rollout: rollout["correct"] is False),
            ("malformed", lambda rollout: rollout["malformed"]),
            ("failed", lambda rollout: rollout["correct"] is None),
        ):
            page.check(f"[name={name}]")
            assert counts(page)[0] == sum(map(bool, map(fits, every))) > 0
            first = page.locator(".group").first
            assert first.locator("article:not(.dim)").count() > 0
            page.uncheck(f"[name={name}]")
        page.check("[name=hard]")
        hard = [group for group in groups if group["kind"] in ("teacher_dependent", "teacher_unsolvable")]
        assert counts(page)[2] == len(hard) and 0 < len(hard) < 80
        page.uncheck("[name=hard]")
        page.fill("[name=text]", groups[3]["prompt"])
        assert counts(page)[2] >= 1 and page.locator(".question").first.inner_text() == groups[3]["prompt"]
        page.fill("[name=text]", "no such prompt")
        assert counts(page) == (0, 640, 0) and page.locator(".nothing").is_visible()
        page.fill("[name=text]", "")

        # What is being read stays where it is while the run goes on
        page.mouse.wheel(0, 4000)
        page.wait_for_timeout(300)
        place = "() => { const g = [...document.querySelectorAll('.group')].map(e => [e.getBoundingClientRect().top, "
        place += "e.innerText]).filter(([top]) => top > 0).sort((a, b) => a[0] - b[0])[0]; return g; }"
        before = page.evaluate(place)
        write_group(writer, random.Random(9), 11, 0, question=ATTACK)
        writer.log(11, {"relay/accuracy": 0.5})
        wait_for(page, "648 of 648")
        after = page.evaluate(place)
        assert after[1] == before[1] and after[0] == pytest.approx(before[0], abs=1)
        assert page.locator(".newer").inner_text() == "1 newer group"
        page.click(".newer")
        page.locator(".question", has_text="onerror").wait_for()
        assert page.locator(".newer").is_hidden() and page.locator("main img").count() == 0

        writer.start(0, {})  # a training that begins anew in the same folder
        write_group(writer, random.Random(1), 1, 0)
        wait_for(page, "8 of 8 rollouts 1 groups")


def test_a_page_that_stands_alone(tmp_path, open_page, monkeypatch, capsys):
    writer = write_run(tmp_path / "run", rollouts=128)
    write_group(writer, random.Random(9), 3, 0, question=ATTACK)
    monkeypatch.setattr(
        "sys.argv", ["relay-trl", "watch", str(tmp_path / "run"), "--export", str(tmp_path / "page.html")]
    )
    main()
    assert "136 rollouts in 17 groups" in capsys.readouterr().out
    page = open_page(f"file://{tmp_path / 'page.html'}", width=390, scheme="dark")
    wait_for(page, "136 of 136")
    assert page.locator(".question").first.inner_text() == ATTACK and page.locator("main img").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than a phone"
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click(".theme")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != dark


def test_an_advantage_that_is_shown_as_nothing_has_no_sign(tmp_path, open_page):
    writer = write_run(tmp_path, rollouts=64)
    advantages = [-0.004, 0.004, -0.0, 0.0, -0.006, 0.006, -1.25, 0.5]
    write_group(writer, random.Random(0), 2, 0, advantages=advantages)
    with served(watch_app(FollowedRun(tmp_path))) as url:
        page = open_page(url)
        wait_for(page, "72 of 72")
        shown = page.locator(".group").first.locator(".advantage").all_inner_texts()
    assert shown == [f"adv. {text}" for text in "0.00 0.00 0.00 0.00 \u22120.01 +0.01 \u22121.25 +0.50".split()]


def test_ten_thousand_rollouts_are_never_all_in_the_page(tmp_path, open_page):
    write_run(tmp_path, rollouts=10_000, groups_per_step=50)
    with served(watch_app(FollowedRun(tmp_path))) as url:
        page = open_page(url)
        wait_for(page, "10000 of 10000 rollouts 1250 groups")
        seen = set()
        for _ in range(40):
            page.mouse.wheel(0, 9000)
            page.wait_for_timeout(20)
            assert page.locator(".group").count() < 30
            seen.add(page.locator(".group .hint").first.inner_text())
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        page.locator(".group", has_text="step 1").last.wait_for()
        assert len(seen) > 10
