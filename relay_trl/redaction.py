"""Keeps secrets out of what a run writes: URLs without credentials, training arguments without tokens.

Owns what counts as a secret. `hub/upload.py` decides which files are pushed.
"""

import copy
import re
from typing import Any
from urllib.parse import urlsplit

_SECRET_NAME = re.compile(r"(^|_)(api_key|password|secret|headers)$|^((hub|hf|push_to_hub|use_auth)_)?token$")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://\S+")


def mask_credentials(text: str) -> str:
    """`text` with the user, password, query and fragment of every URL in it replaced by `***`; other text is unchanged.

    A URL that cannot be taken apart keeps only its scheme.
    """
    return _URL.sub(lambda match: _mask_url(match[0]), text)


def _mask_url(url: str) -> str:
    scheme = url.partition("://")[0]
    try:
        parts = urlsplit(url)
        # A password with an unescaped "/", "?" or "#" ends the host too early, and then the port is no number.
        _ = parts.port
    except ValueError:
        return f"{scheme}://***"
    if not (parts.query or parts.fragment or "@" in url):
        return url
    user = "***@" if "@" in parts.netloc else ""
    rest = "?***" if parts.query or parts.fragment else ""
    if "@" in parts.path:
        return f"{scheme}://***"
    return f"{scheme}://{user}{parts.netloc.rpartition('@')[2]}{parts.path}{rest}"


def redact(value: Any, name: str = "") -> Any:
    """A copy of `value` without secrets.

    Args:
        value (`Any`): dicts, lists and tuples are searched, URLs in strings are masked, other values stay as they are.
        name (`str`, *optional*): name of the setting. The value of a setting such as `hub_token` or `teacher_api_key`
            becomes `None`.
    """
    if _SECRET_NAME.search(name):
        return None
    if isinstance(value, str):
        return mask_credentials(value)
    if isinstance(value, dict):
        return {key: redact(item, key if isinstance(key, str) else "") for key, item in value.items()}
    if type(value) in (list, tuple):
        return type(value)(redact(item) for item in value)
    return value


class RedactedArguments:
    """Mixin, named before the parent, for training arguments that are written next to a model.

    `Trainer` pickles its arguments, `hub_token` included, into `training_args.bin`, which `push_to_hub` uploads. It also gives
    `to_dict()` to every tracker, among them TensorBoard's event files, which are uploaded too. Copies in memory stay complete.

    Decorate the child with `@dataclass(repr=False)`, or the generated `repr` shows everything.
    """

    def __getstate__(self) -> dict:
        return redact(self.__dict__)

    def __copy__(self):
        copied = object.__new__(type(self))
        copied.__dict__.update(self.__dict__)
        return copied

    def __deepcopy__(self, memo: dict):
        copied = object.__new__(type(self))
        memo[id(self)] = copied
        copied.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return copied

    def to_dict(self) -> dict:
        """The parent's form for trackers, without secrets."""
        return redact(super().to_dict())  # type: ignore[misc]

    def __str__(self) -> str:
        settings = "".join(f"    {name}={value!r},\n" for name, value in sorted(redact(self.__dict__).items()))
        return f"{type(self).__name__}(\n{settings})"

    __repr__ = __str__
