"""The page at `/`: a chat with the pair in a browser, over the server's own API.

Owns the data that is put into the page: the model's name, whether it can hold a conversation, and prices. Texts of models and
users are not put in here; the page gets them as JSON and escapes them before it typesets them.
"""

from pathlib import Path
from typing import Any

from ..costs import ModelCosts, PriceTable, load_costs
from ..pages.render import embedded_json, render_page

_HERE = Path(__file__).parent


def load_prices(path: str | None) -> PriceTable | None:
    """Reads the prices for the page's cost line from a YAML in the format of the evaluation's `costs`; `None` without one.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not such a YAML, or a price of written tokens is missing.
    """
    if path is None:
        return None
    prices = load_costs(path)
    for name in ("student", "teacher"):
        if getattr(prices, name).write is None:
            raise ValueError(f"{path} has no {name}.write; the page needs the price of a million written tokens.")
    return prices


def _told(prices: PriceTable) -> dict[str, Any]:
    """Prices in the form that the page's script reads."""
    told: dict[str, Any] = {"currency": prices.currency}
    for name in ("student", "teacher"):
        model: ModelCosts = getattr(prices, name)
        told[name] = {"read": model.read, "cached": model.cached_price, "write": model.write}
    return told


def render_chat_page(model: str, holds_conversation: bool, prices: PriceTable | None = None) -> str:
    """The page as one HTML text without other assets.

    Args:
        model (`str`): the name it is served under.
        holds_conversation (`bool`): whether earlier turns are sent with a question by default.
        prices ([`PriceTable`], *optional*): `None` shows no money.
    """
    about: dict[str, Any] = {"model": model, "remembers": holds_conversation, "prices": prices and _told(prices)}
    page = _HERE / "chat.html.j2", _HERE / "chat.css", [_HERE / "chat.js"]
    return render_page(*page, model=model, about=embedded_json(about))
