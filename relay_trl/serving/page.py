"""The page at `/`: a chat with the pair in a browser, over the server's own API.

Owns what the page is told: the model's name, whether it can hold a conversation, and prices. What models and users write
never passes through here; the page gets it as JSON and shows it as text.
"""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..page import ROLLOUT_SCRIPT, THEME, embedded_json, read_texts, script_hash

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Prices:
    """What a million written tokens cost, for the page's cost line.

    Args:
        student (`float`), teacher (`float`).
        currency (`str`, defaults to `"USD"`).
    """

    student: float
    teacher: float
    currency: str = "USD"


def load_prices(path: str | None) -> Prices | None:
    """Reads the prices of written tokens from the YAML that evaluation's `costs` takes; `None` without one.

        currency: USD
        student: {write: 0.06}
        teacher: {write: 0.30}

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such YAML.
    """
    if path is None:
        return None
    if not Path(path).is_file():
        raise FileNotFoundError(f"costs: the file {path} does not exist.")
    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        student, teacher = (float(data[name]["write"]) for name in ("student", "teacher"))
        if not (0 <= student < math.inf and 0 <= teacher < math.inf):
            raise ValueError("a price is negative or no number")
    except (yaml.YAMLError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} has no prices (student.write and teacher.write, of a million tokens) that can be read: "
            f"{' '.join(str(error).split())}."
        ) from error
    return Prices(student, teacher, str(data.get("currency", "USD")))


def render_chat_page(model: str, holds_conversation: bool, prices: Prices | None = None) -> str:
    """The page as one HTML text, without any asset beside it.

    Args:
        model (`str`): the name it is served under.
        holds_conversation (`bool`): whether earlier turns go along with a question until the user says otherwise.
        prices ([`Prices`], *optional*): `None` shows no money.
    """
    script = read_texts(ROLLOUT_SCRIPT, _HERE / "chat.js")
    about: dict[str, Any] = {"model": model, "remembers": holds_conversation, "prices": prices and asdict(prices)}
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    return environment.get_template("chat.html.j2").render(
        model=model,
        style=Markup(read_texts(THEME, _HERE / "chat.css")),
        script=Markup(script),
        script_hash=Markup(script_hash(script)),
        about=Markup(embedded_json(about)),
    )
