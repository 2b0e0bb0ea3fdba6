"""What all pages and cards share: how a template is filled in, the style of a rollout, the script that draws one, and the
protection against foreign scripts.

Owns the template engine's settings, `theme.css`, `rollout.js`, `typeset.js` with the libraries in `vendor/`, and how a page allows its own script in its content security
policy. A page's template, style and script are beside the module that renders it.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

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


def render_page(template: Path, style: Path, scripts: Sequence[Path] = (), **values: Any) -> str:
    """A page that contains its style and script behind those that all pages share. Its content security policy can name the
    script by `script_hash`, so that no other one runs.

    Args:
        template (`Path`), style (`Path`), scripts (`Sequence[Path]`).
        **values: further variables of the template.
    """
    script = _read(*SCRIPTS, *scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    inside = {"style": _read(THEME, style), "script": script, "script_hash": f"'sha256-{digest}'"}
    return render(template, **{name: Markup(text) for name, text in inside.items()}, **values)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The lines of a table in Markdown. A line break in a cell becomes a blank."""
    rule = ["---", *["---:"] * (len(columns) - 1)]
    return "\n".join(f"| {' | '.join(map(markdown_cell, cells))} |" for cells in (columns, rule, *rows))


def markdown_cell(value: Any) -> str:
    """`value` as it can stand in a table in Markdown."""
    return " ".join(str(value).replace("|", "\\|").split())


def _read(*paths: Path) -> str:
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def embedded_json(data: Any) -> Markup:
    """JSON for a `<script type="application/json">`, escaped so that no text in it can end the element."""
    return Markup(json.dumps(data, separators=(",", ":")).replace("<", "\\u003c"))
