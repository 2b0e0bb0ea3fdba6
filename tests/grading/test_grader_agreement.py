"""The grader against people: a list of near misses, and every gold answer of the benchmarks in other ways of writing."""

import importlib.util
import os
from pathlib import Path

import pytest

from relay_trl.data.registry import PAPER_SIX
from relay_trl.grading.grader import Grader

ROOT = Path(__file__).parents[2]
BENCHMARKS = Path(os.environ.get("RELAY_TRL_BENCHMARKS", ROOT.parent / "shared" / "benchmarks"))


def load_script():
    spec = importlib.util.spec_from_file_location("grader_agreement", ROOT / "benchmarks" / "grader_agreement.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


agreement = load_script()


def disagreements(cases, is_right):
    """The (gold, answer) pairs that the grader judges otherwise."""
    with Grader(time_limit_s=30.0) as grader:
        verdicts = grader.grade([rf"\boxed{{{answer}}}" for _, answer in cases], [gold for gold, _ in cases])
    return [case for case, verdict in zip(cases, verdicts, strict=True) if verdict != is_right]


def test_the_list_of_near_misses_is_long_and_of_many_kinds():
    cases = agreement.near_misses()
    assert len({(case["gold"], case["answer"]) for case in cases}) >= 300
    kinds = {case["kind"] for case in cases}
    assert {"bare component", "wrong sign", "missing root", "bare number"} < kinds and len(kinds) >= 15


def test_a_sample_of_the_near_misses_does_not_pass():
    assert disagreements([(case["gold"], case["answer"]) for case in agreement.near_misses()[::11]], False) == []


@pytest.mark.slow
def test_no_near_miss_passes():
    assert disagreements([(case["gold"], case["answer"]) for case in agreement.near_misses()], False) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", PAPER_SIX)
def test_every_gold_passes_in_any_way_to_write_it(name, tmp_path, monkeypatch):
    if not (BENCHMARKS / f"{name}.jsonl").exists():
        pytest.skip(f"{BENCHMARKS} has no {name}.jsonl; RELAY_TRL_BENCHMARKS names the folder of the benchmark files")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    golds = dict.fromkeys(agreement.golds_of(name, str(BENCHMARKS)))
    cases = [(gold, answer) for gold in golds for _, answer in agreement.rewritings(gold)]
    assert len(cases) > 4 * len(golds)
    assert disagreements(list(dict.fromkeys(cases)), True) == []


@pytest.mark.parametrize(
    ("gold", "kinds"),
    [
        (r"$\frac{7}{2}$", {"dollars", "full stop", "fractions"}),
        ("12345", {"dollars", "full stop", "units", "equations", "decimals", "thousands"}),
        ("(2,5]", {"dollars", "full stop", "intervals"}),
        ("1,-2", {"dollars", "full stop", "order of sets", "equations"}),
        (r"30^\circ", {"dollars", "full stop", "degrees"}),
        ("62.5%", {"dollars", "full stop", "percent"}),
        ("4.5e33", {"dollars", "full stop", "scientific"}),
        (r"\text{(C)}", {"dollars", "full stop", "words"}),
    ],
)
def test_what_is_rewritten(gold, kinds):
    assert {kind for kind, _ in agreement.rewritings(gold)} == kinds
