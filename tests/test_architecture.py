"""House rules that a machine can check: the direction of imports, modules without torch, the length of modules."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = sorted((ROOT / "relay_trl").rglob("*.py"))
RECIPES = sorted((ROOT / "recipes").rglob("*.py"))

# Tiers, highest first: a module imports from its own tier and those below. A module that stands directly in relay_trl/
# and is not named here belongs to the tier of relay.py.
TIERS = [
    {"recipes", "__main__"},
    {"reproduction"},
    {"training", "evaluation", "serving", "planning", "citer", "viewer", "data", "options", "hub", "cli"},
    {"relay", "rewards", "grading", "prompts"},
    {"engines"},
    {"vocabulary", "call_syntax", "trace", "redaction"},
]
DEFAULT_TIER = 3
SIDE_BY_SIDE = 2
# Training, evaluation, serving and the viewer stand side by side in their tier and share only these.
SHARED = {"citer", "data", "options", "hub", "cli"}

# These describe a rollout and must be usable by a server or a notebook that has no torch.
LIGHT_MODULES = ["call_syntax", "trace", "vocabulary", "relay"]
HEAVY_LIBRARIES = {"torch", "trl", "vllm", "transformers", "accelerate", "datasets", "peft"}

MAX_MODULE_LINES = 300
MAX_RECIPE_LINES = 100


def name_of(path: Path) -> str:
    """`relay_trl/engines/base.py` -> `relay_trl.engines.base`; a package's `__init__.py` has the package's name."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    """The room a dotted module name belongs to; the empty string for `relay_trl` itself."""
    first, _, rest = module.partition(".")
    return "recipes" if first == "recipes" else rest.split(".")[0]


def tier_of(room: str) -> int:
    return next((number for number, rooms in enumerate(TIERS) if room in rooms), DEFAULT_TIER)


def imports_of(source: str, module: str, is_package: bool = False) -> set[str]:
    """The project's modules that `source` imports, wherever it does: at the top, in a function, for types only."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join(parts + ([base] if base else []))
            # In `from relay_trl import relay` the module is the last word.
            found.update(f"{base}.{alias.name}" if base in ("relay_trl", "recipes") else base for alias in node.names)
    return {name for name in found if name.split(".")[0] in ("relay_trl", "recipes")}


def imported_modules(source: str, module: str, is_package: bool = False) -> set[str]:
    """The modules themselves that `source` imports; a package's `__init__` shows what is behind it and is none of them."""
    files = {name_of(path) for path in PACKAGE if path.name != "__init__.py"}
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            base = parts[: len(parts) - node.level + is_package] if node.level else []
            whole = ".".join(base + ([node.module] if node.module else []))
            found |= {f"{whole}.{alias.name}" for alias in node.names} | {whole}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & files


def circles(arrows: dict[str, set[str]]) -> list[list[str]]:
    """The groups of modules that reach one another."""

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        open_ends = [start]
        while open_ends:
            for name in arrows.get(open_ends.pop(), set()) - seen:
                seen.add(name)
                open_ends.append(name)
        return seen

    reach = {name: reached(name) for name in arrows}
    groups = {tuple(sorted(b for b in reach[a] if a in reach.get(b, set()))) for a in arrows if a in reach[a]}
    return [list(group) for group in sorted(groups)]


def wrong_arrows(source: str, module: str, is_package: bool = False) -> list[str]:
    here = room_of(module)
    if not here:  # relay_trl/__init__.py is the front door and may show what is behind it
        return []
    wrong = []
    for imported in sorted(imports_of(source, module, is_package)):
        there = room_of(imported)
        is_upward = there != "" and tier_of(there) < tier_of(here)
        is_sideways = tier_of(here) == tier_of(there) == SIDE_BY_SIDE and there not in SHARED | {here}
        if not there.startswith("_") and (is_upward or is_sideways):
            wrong.append(f"{module} imports {imported}")
    return wrong


def test_imports_go_one_way():
    wrong = [
        arrow
        for path in PACKAGE + RECIPES
        for arrow in wrong_arrows(path.read_text(encoding="utf-8"), name_of(path), path.name == "__init__.py")
    ]
    assert not wrong, "against the arrows:\n" + "\n".join(wrong)


def test_no_module_imports_itself_through_others():
    """At the top, in a function or for types only: a circle means that two modules are one thing, or that one lies too high."""
    arrows = {
        name_of(path): imported_modules(path.read_text(encoding="utf-8"), name_of(path), path.name == "__init__.py")
        for path in PACKAGE
    }
    assert not circles(arrows)


def test_a_circle_is_seen():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set()}) == [["a", "b", "c"]]
    assert not circles({"a": {"b", "c"}, "b": {"c"}, "c": set()})
    assert imported_modules("if TYPE_CHECKING:\n    from .grpo import T", "relay_trl.training.lora") == {
        "relay_trl.training.grpo"
    }
    assert imported_modules("from . import grpo", "relay_trl.training.lora") == {"relay_trl.training.grpo"}


@pytest.mark.parametrize(
    ("module", "source", "is_wrong"),
    [
        ("relay_trl.relay", "from relay_trl.engines.base import Engine", False),
        ("relay_trl.relay", "from relay_trl.training.config import RelayRules", True),
        ("relay_trl.relay", "from .training import RelayRules", True),
        ("relay_trl.trace", "from relay_trl import relay", True),
        ("relay_trl.trace", "def f():\n    import relay_trl.rewards", True),
        ("relay_trl.engines.vllm", "from ..relay import relay", True),
        ("relay_trl.engines.vllm", "from .base import Engine", False),
        ("relay_trl.training.trainer", "from recipes.common import main", True),
        ("relay_trl.training.trainer", "from relay_trl.evaluation import runner", True),
        ("relay_trl.training.trainer", "from relay_trl.data import sources", False),
        ("relay_trl.training.trainer", "from .. import hub", False),
        ("relay_trl.prompts", "from .options import PromptFields", True),
        ("relay_trl.hub.model_card", "from ..training import RelayGRPOTrainer", True),
        ("relay_trl.data.warmup", "from relay_trl.training.config import RelayRules", True),
        ("relay_trl.something_new", "from relay_trl.serving import server", True),
        ("relay_trl.training.hub", "from relay_trl import __version__", False),
        ("recipes.evaluate", "from relay_trl.evaluation import runner", False),
    ],
)
def test_the_arrows_are_seen(module, source, is_wrong):
    assert bool(wrong_arrows(source, module)) == is_wrong


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_the_core_loads_no_heavy_library(module):
    if not (ROOT / "relay_trl" / f"{module}.py").exists():
        pytest.skip(f"there is no relay_trl/{module}.py")
    code = f"import sys, relay_trl.{module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    loaded = sorted(HEAVY_LIBRARIES & set(run.stdout.split()))
    assert not loaded, f"importing relay_trl.{module} loads {loaded}"


@pytest.mark.parametrize("path", PACKAGE + RECIPES, ids=name_of)
def test_modules_are_short_and_say_what_they_own(path):
    source = path.read_text(encoding="utf-8")
    assert ast.get_docstring(ast.parse(source)), (
        "a module opens with a docstring: what it owns, what it leaves to others"
    )
    limit = MAX_RECIPE_LINES if path in RECIPES else MAX_MODULE_LINES
    assert len(source.splitlines()) <= limit, f"at most {limit} lines: split it by what it owns"
