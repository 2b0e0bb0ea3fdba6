"""The chat page without a browser: what it is told, and prices that cannot be read."""

import pytest
from scripted_relay import BYTE_LEVEL, scripted
from serving_for_tests import pair_of
from starlette.testclient import TestClient

from relay_trl.serving.app import RelayServer
from relay_trl.serving.page import Prices, load_prices, render_chat_page


def test_the_page_is_served_and_asks_for_nothing_from_outside():
    client = TestClient(RelayServer(pair_of(scripted(BYTE_LEVEL)), "pair").app())
    page = client.get("/")
    assert page.status_code == 200 and page.headers["x-frame-options"] == "DENY"
    assert "http://" not in page.text and "https://" not in page.text and "default-src 'none'" in page.text


def test_names_cannot_become_markup():
    page = render_chat_page("</script><script>alert(1)</script>", True, Prices(1, 2, "</script><b>"))
    assert "<script>alert" not in page and "</script><b>" not in page


def test_prices(tmp_path):
    path = tmp_path / "costs.yaml"
    assert load_prices(None) is None
    path.write_text("currency: EUR\nstudent: {parameters: 1.7e9, read: 0.02, write: 0.06}\nteacher: {write: 3e-1}\n")
    assert load_prices(str(path)) == Prices(0.06, 0.3, "EUR")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "{",
        "student: {write: 1}",
        "student: {write: -1}\nteacher: {write: 1}",
        "student: {write: much}\nteacher: {write: 1}",
        "student: [1]\nteacher: 2",
    ],
)
def test_prices_that_cannot_be_read(tmp_path, text):
    path = tmp_path / "costs.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match="has no prices"):
        load_prices(str(path))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_prices(str(tmp_path / "nowhere.yaml"))
