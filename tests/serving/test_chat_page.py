"""The chat page without a browser: the data in it, and prices that cannot be read."""

import json
import re

import pytest
from helpers.scripted_relay import BYTE_LEVEL, scripted
from helpers.serving import pair_of
from starlette.testclient import TestClient

from relay_trl.costs import ModelCosts, PriceTable
from relay_trl.serving.app import RelayServer
from relay_trl.serving.chat_page import load_prices, render_chat_page


def test_the_page_is_served_and_asks_for_nothing_from_outside():
    client = TestClient(RelayServer(pair_of(scripted(BYTE_LEVEL)), "pair").app())
    page = client.get("/")
    assert page.status_code == 200 and page.headers["x-frame-options"] == "DENY"
    assert "default-src 'none'" in page.text
    # The bundled libraries name the namespaces of MathML and SVG, which nobody fetches
    addresses = set(re.findall(r"https?://[\w./-]+", page.text))
    assert {address for address in addresses if not address.startswith("http://www.w3.org/")} == set()


def test_names_cannot_become_markup():
    page = render_chat_page("</script><script>alert(1)</script>", True, PriceTable(currency="</script><b>"))
    assert "<script>alert" not in page and "</script><b>" not in page


def test_the_page_is_told_the_prices_of_evaluation(tmp_path):
    path = tmp_path / "costs.yaml"
    assert load_prices(None) is None
    path.write_text(
        "currency: EUR\nstudent: {parameters: 1.7e9, read: 0.02, write: 0.06}\nteacher: {cached: 0.01, write: 3e-1}\n"
    )
    prices = load_prices(str(path))
    assert prices == PriceTable(ModelCosts(1.7e9, 0.02, None, 0.06), ModelCosts(None, None, 0.01, 0.3), "EUR")
    page = render_chat_page("pair", True, prices)
    told = json.loads(page.partition('id="about">')[2].partition("</script>")[0])["prices"]
    assert told == {
        "currency": "EUR",
        "student": {"read": 0.02, "cached": 0.02, "write": 0.06},
        "teacher": {"read": None, "cached": 0.01, "write": 0.3},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no student.write; the page needs"),
        ("student: {write: 1}", "has no teacher.write"),
        ("student: {write: -1}\nteacher: {write: 1}", "student.write is -1"),
        ("{", "is not valid YAML"),
        ("student: [1]\nteacher: 2", "student has"),
    ],
)
def test_prices_that_cannot_be_read(tmp_path, text, message):
    path = tmp_path / "costs.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_prices(str(path))
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_prices(str(tmp_path / "nowhere.yaml"))
