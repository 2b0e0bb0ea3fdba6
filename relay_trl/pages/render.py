"""What all pages and cards share: how a template is filled in, the style of a rollout, the script that draws one, and the
protection against foreign scripts.

Owns the template engine's settings, `theme.css`, `rollout.js`, `typeset.js` with the libraries in `vendor/`, and how a page allows its own script in its content security
policy. A page's template, style and script are beside the module that renders it.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape

_HERE = Path(__file__).parent
THEME = _HERE / "theme.css"
SCRIPTS = tuple(
    _HERE / name for name in ("rollout.js", "vendor/katex.min.js", "vendor/markdown-it.umd.min.js", "typeset.js")
)


def render(template: Path, filters: Mapping[str, Callable[..., Any]] | None = None, **values: Any) -> str:
    """Fills in a template. In HTML every text is escaped that is no `Markup`.

    Args:
        template (`Path`).
        filters (`Mapping[str, Callable]`, *optional*): the template's own filters.
        **values: its variables; one that is missing is an error.
    """
    environment = Environment(
        loader=FileSystemLoader(template.parent),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters or {}
    return environment.get_template(template.name).render(**values)


def read_texts(*paths: Path) -> str:
    """The texts of several files as one."""
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def script_hash(script: str) -> str:
    """The hash of a script for a content security policy, `'sha256-...'`, so that no other script can run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def embedded_json(data: Any) -> str:
    """JSON for a `<script type="application/json">`, escaped so that no text in it can end the element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
