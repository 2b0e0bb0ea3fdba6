"""What all pages share: the style of a rollout, the script that draws one, and the protection against foreign scripts.

Owns `theme.css`, `rollout.js` and how a page allows its own script in its content security policy. A page's template, style
and script are beside the module that renders it.
"""

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
THEME = _HERE / "theme.css"
ROLLOUT_SCRIPT = _HERE / "rollout.js"


def read_texts(*paths: Path) -> str:
    """The texts of several files as one."""
    return "\n".join(path.read_text(encoding="utf-8") for path in paths)


def script_hash(script: str) -> str:
    """The hash of a script for a content security policy, `'sha256-...'`, so that no other script can run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def embedded_json(data: Any) -> str:
    """JSON for a `<script type="application/json">`, escaped so that no text in it can end the element."""
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
