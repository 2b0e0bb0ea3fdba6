"""Links, headings, files and modules that documents and docstrings point to exist."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [
    ROOT / name
    for name in subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True
    ).stdout.splitlines()
]
DOCUMENTS = [path for path in FILES if path.suffix == ".md" and path.exists()]
MODULES = [path for path in FILES if path.suffix == ".py" and path.exists()]

LINK = re.compile(r"\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```", re.DOTALL)
PATH = re.compile(r"`([\w./-]+/[\w.-]+\.(?:py|md|yaml|jsonl|j2|json))`")
NAMED = re.compile(r"([\w./-]*\w\.(?:py|md))\b(?!\.)")
REFERENCE = re.compile(r"\[`~(relay_trl(?:\.\w+)+)`\]")
MADE = ("runs/", "my_", "_rollouts/", "results.md")
"""What a command makes, or a user: not in the repository."""


def anchors(path: Path) -> set[str]:
    """The fragments that GitHub gives the headings of a document."""
    text = CODE.sub("", path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(path: Path) -> list[str]:
    broken = []
    for link in LINK.findall(CODE.sub("", path.read_text(encoding="utf-8"))):
        name, _, fragment = link.partition("#")
        target = path.parent / name if name else path
        if "://" in link or link.startswith("mailto:"):
            continue
        if not target.exists() or (fragment and fragment not in anchors(target)):
            broken.append(link)
    return broken


def is_there(name: str, beside: Path) -> bool:
    """Whether a file that a text names exists: from the root, from a room at the top, or from the text's own folder."""
    rooms = (ROOT, ROOT / "relay_trl", ROOT / "recipes", ROOT / "tests", beside)
    return any((room / name).exists() for room in rooms)


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_document_points_to_what_is_there(path):
    text = path.read_text(encoding="utf-8")
    missing = [name for name in PATH.findall(text) if not name.startswith(MADE) and not is_there(name, path.parent)]
    assert not missing and not broken_links(path)


@pytest.mark.parametrize("folder", ["relay_trl", "recipes", "benchmarks", "tests"])
def test_docstrings_name_files_that_are_there(folder):
    missing = []
    for path in MODULES:
        if path.relative_to(ROOT).parts[0] != folder:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                text = ast.get_docstring(node) or ""
                missing += [
                    f"{path.relative_to(ROOT)}: {name}"
                    for name in NAMED.findall(text)
                    if not name.startswith(MADE) and not is_there(name, path.parent)
                ]
    assert not missing


def is_defined(name: str) -> bool:
    """Whether a dotted name such as `relay_trl.options.TeacherFields` is a module, or a name or member that one defines."""
    parts = name.split(".")
    modules = [(ROOT.joinpath(*parts[:k]).with_suffix(".py"), parts[k:]) for k in range(len(parts), 1, -1)]
    path, rest = next(((path, rest) for path, rest in modules if path.exists()), (None, parts))
    text = path.read_text(encoding="utf-8") if path else ""
    return path is not None and all(
        re.search(rf"^ *(class|def|async def) {part}\b|^{part} ", text, re.M) for part in rest
    )


def test_references_lead_to_a_definition():
    missing = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in MODULES
        for name in REFERENCE.findall(path.read_text(encoding="utf-8"))
        if not is_defined(name)
    ]
    assert not missing


def test_what_is_missing_is_seen(tmp_path):
    (tmp_path / "page.md").write_text("# One heading\n[a](page.md#one-heading) [b](page.md#two) [c](gone.md)\n")
    assert broken_links(tmp_path / "page.md") == ["page.md#two", "gone.md"]
    assert PATH.findall("`relay_trl/gone.py` and `gone.py`") == ["relay_trl/gone.py"]
    assert is_there("data/registry.py", tmp_path) and not is_there("data/sets.py", tmp_path)
    assert is_defined("relay_trl.prompts.PromptBuilder.teacher_context") and is_defined("relay_trl.prompts")
    assert not is_defined("relay_trl.prompts.Gone") and not is_defined("relay_trl.gone.PromptBuilder")
