"""A real browser without a window. Tests are skipped with a reason if Chromium or Playwright is missing."""

import importlib.util

import pytest
from helpers.served import CHROMIUM

MISSING = [
    what
    for what, is_there in (
        ("Chromium (apt-get install chromium)", CHROMIUM),
        ("Playwright (pip install playwright)", importlib.util.find_spec("playwright")),
        ("uvicorn (the extra serve)", importlib.util.find_spec("uvicorn")),
    )
    if not is_there
]


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name == "with_browser" and MISSING:
            item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(MISSING)}"))


# Not for the whole session: while Playwright is up its event loop counts as running, and asyncio.run() refuses.
@pytest.fixture(scope="module")
def chromium():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def open_page(chromium):
    """Opens a page of the given width and colours; a script error or anything asked of another machine fails the test."""
    contexts, faults = [], []

    def open_page(url, width=1280, height=900, scheme="light"):
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            permissions=["clipboard-read", "clipboard-write"],
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("pageerror", lambda error: faults.append(f"script: {error}"))
        page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        origin = url.partition("://")[2].partition("/")[0]
        page.on(
            "request",
            lambda asked: None if origin in asked.url or asked.url[:5] == "data:" else faults.append(asked.url),
        )
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults
