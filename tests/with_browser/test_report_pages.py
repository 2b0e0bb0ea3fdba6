"""The pages of an evaluation in a real browser: everything that a model or a data set wrote is shown as text."""

import unicodedata

import pytest
from helpers.made_up_answers import answer, log, student, teacher

from relay_trl.evaluation.answer_files import Run
from relay_trl.evaluation.report.write import write_report

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PLANTED = "</pre></script><script>window.planted=1;alert(1)</script>\"'><img src=x onerror=window.planted=2> "
PLANTED += "<a href='javascript:window.planted=3'>x</a><svg onload=window.planted=4>"


def test_nothing_planted_runs(tmp_path, open_page):
    answers = [answer(method, i, i > 0, student(PLANTED), teacher(PLANTED), prompt=PLANTED, gold=[PLANTED], kind=PLANTED)
               for method in ("student", "relay", "teacher") for i in range(3)]  # fmt: skip
    failed = answer("relay", 3, None, student("a"), prompt=[{"role": "user", "content": PLANTED}])
    failed.trace.error = PLANTED
    run = Run(PLANTED, {"student": PLANTED, "open_tag": "<call>", "close_tag": "</call>"}, [*answers, failed])
    run.labels = {"relay": PLANTED}
    write_report([run], tmp_path, {PLANTED: log()}, title=PLANTED)
    for name in ("rollouts.html", "report.html"):
        page = open_page(f"file://{tmp_path / name}", width=390, scheme="dark")
        assert page.locator("h1").inner_text() == PLANTED.strip()
        assert page.evaluate("window.planted === undefined") and page.locator("img, a[href^=javascript]").count() == 0
        assert page.evaluate("[...document.querySelectorAll('*')].every(e => !e.onload && !e.onerror)")
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), "wider than a phone"
    assert page.locator("script").count() == 0
    page = open_page(f"file://{tmp_path / 'rollouts.html'}")
    assert page.locator(".question").first.inner_text() == PLANTED.strip() and page.locator("script").count() == 1
    page.select_option("[name=kind]", PLANTED)
    page.select_option("[name=verdict]", "wrong")
    assert page.locator("article:visible").count() == 3


# Texts, and what a reader sees of them: text with the teacher's part in brackets, formulas as their elements' text
TYPESET = [
    (["78*6*2 costs $5 and $6, 2**3"], "78*6*2 costs $5 and $6, 2**3"),
    (["**bold** and `a*b`"], "bold and a*b"),
    (["# ", "Title"], "[Title]"),
    (["one\n", "- two\n- three"], "one\n[two]\n[three]"),
    (["a $x_1", "+y$ b"], "a [x1+y][b]"),
    (["so \\boxed{\\frac{1}{2}}."], "so 12."),
    (["\\[\nx\n+ 1\n\\] end"], "x+1 end"),
    (["$$\n\\mathbb{R}\n$$", "\nz"], "R[z]"),
    (["**bo", "ld** x"], "bo[ld]\u2009[x]"),
    (["| a | b |\n|-", "--|---|\n| 1 | 2 |"], "a\tb\n[1]\t[2]"),
    (["$\\unknown{x}$ and $\\href{javascript:window.planted=5}{x}$"], None),
    (["[a](javascript:window.planted=6) ![b](http://planted.example/x) <http://planted.example>"], None),
    (["&lt;b&gt; <b>x</b> ~~y~~"], "&lt;b&gt; <b>x</b> y"),
    (["\ue000planted\ue001", "\ue002"], "\ufffdplanted\ufffd[\ufffd]"),
]


def test_texts_are_typeset_with_their_authors(tmp_path, open_page):
    answers = [
        answer("relay", i, True, *(make(text) for make, text in zip((student, teacher), texts, strict=False)))
        for i, (texts, _) in enumerate(TYPESET)
    ]
    write_report([Run("mine", {}, answers)], tmp_path)
    page = open_page(f"file://{tmp_path / 'rollouts.html'}", height=8000)
    page.wait_for_function("count => document.querySelectorAll('.text.typeset').length === count", arg=len(TYPESET))
    seen = page.evaluate(
        """() => [...document.querySelectorAll('.text')].map((text) => {
          for (const mark of text.querySelectorAll('mark')) { mark.prepend('['); mark.append(']'); }
          return text.innerText.trim();
        })"""
    )
    for (texts, wanted), found in zip(TYPESET, seen, strict=True):
        if wanted is not None:
            plain = unicodedata.normalize("NFKC", found)  # letters of formulas
            assert "".join(plain.split()) == "".join(wanted.split()), texts
    assert "\u211d" in seen[7] and "\N{MATHEMATICAL ITALIC SMALL X}" in seen[4]
    assert "](javascript:window.planted=6)" in seen[11] and "<http://planted.example>" in seen[11]
    assert page.locator("main .text a, main .text img").count() == 0 and page.evaluate("window.planted === undefined")
    assert page.locator(".text math mfrac").count() == 1 and page.locator(".text mark .formula.mixed").count() == 1
    page.check("[name=written]")
    page.wait_for_function("document.querySelectorAll('.typeset').length === 0")
    assert page.locator(".text").nth(1).inner_text() == "**bold** and `a*b`"
    assert (tmp_path / "rollouts.html").stat().st_size < 500_000
