"""The viewer's page: one HTML text with style and script, which contains a run or asks a server for it.

Owns how data and code get into it. Text of a model gets there as JSON and is escaped before it is typeset, and the page's content
security policy allows only its own script.
"""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from ..pages.render import embedded_json, render_page
from ..rollout_files import finite

_HERE = Path(__file__).parent


def render_watch_page(title: str, data: dict[str, Any] | None = None) -> str:
    """The page as one HTML text.

    Args:
        title (`str`).
        data (`dict`, *optional*): from [`FollowedRun.everything`], for a page without a server; `None` asks the server.
    """
    return render_page(
        *(_HERE / "watch.html.j2", _HERE / "watch.css", [_HERE / "charts.js", _HERE / "watch.js"]),
        title=title,
        data="" if data is None else embedded_json(finite(data)),
        connects=Markup("'self'" if data is None else "'none'"),
    )
