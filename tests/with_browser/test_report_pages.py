"""The pages of an evaluation in a real browser: everything that a model or a data set wrote is shown as text."""

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
