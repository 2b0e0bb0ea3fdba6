"""No setting was lost when one pair file took the place of a YAML per stage and hardware.

`tests/recipes/settings_before_pairs.json` has what every one of those YAMLs said, by folder and name.
"""

import json
import re
from dataclasses import MISSING, fields
from functools import cache
from pathlib import Path

import pytest

from relay_trl.reproduction.expand import expand
from relay_trl.reproduction.pair import load_pair
from relay_trl.reproduction.runs import Runs
from relay_trl.reproduction.sections import SECTIONS, load_classes

ROOT = Path(__file__).parents[2]
PAIRS = ROOT / "recipes" / "pairs"
BEFORE = json.loads(
    (ROOT / "tests/recipes/settings_before_pairs.json").read_text().replace("http://localhost", "http://127.0.0.1")
)
PATHS = {"model_name_or_path", "output_dir", "output", "warmup_data", "student", "dataset"}
"""Options whose values under runs/ may lie in another folder there now, under the same name."""

# A run that is killed goes on, where a YAML had to say so.
ADDED = {"resume_from_checkpoint"}
# The student's relay_config.json says these to the evaluation, so that its YAML need not.
FROM_STUDENT = {"prompt_template", "answer_marker", "max_completion_length"}
# The server says under which name it serves the teacher, which is the tokenizer's.
KNOWN_BY_THE_SERVER = {"teacher_tokenizer"}
# On one GPU, what the YAML's comment said to add on the command line.
FROM_COMMENTS = {"student_engine"}


@cache
def defaults_of(section: str) -> dict[str, object]:
    """The default of each option; [`~dataclasses.MISSING`] if there is none."""
    found = {}
    for kind in load_classes(section):
        for item in fields(kind):
            found[item.name] = item.default_factory() if callable(item.default_factory) else item.default
    return found


def where(name):
    """The pair files, profiles, baseline and section that say now what the YAML `name` said."""
    folder, _, stem = name.partition("/")
    if folder == "dapo_math":
        pair = next((pair for pair in ("qwen3_0.6b", "qwen3_1.7b") if stem.startswith(pair)), None)
        pairs = [pair] if pair else ["qwen3_0.6b", "qwen3_1.7b"]
        if stem.startswith("filter"):
            return pairs, ["8gpu"] if stem.endswith("server") else ["1gpu", "2gpu"], None, "filter"
        if stem.endswith("_8k"):
            return ["qwen3_1.7b_8k"], ["8gpu"], None, "grpo"
        match = re.search(r"_grpo_(\w+)_(\dgpu)$", stem)
        if match:
            return pairs, [match[2]], None if match[1] == "relay" else match[1], "grpo"
        return pairs, ["1gpu", "2gpu", "8gpu"], None, section_of(stem)
    if folder == "families":
        pair = stem.removesuffix("_grpo_relay")
        return [pair], ["1gpu" if pair.endswith("api") else "2gpu"], None, "grpo"
    if folder == "gsm8k":
        is_cpu = stem.endswith("cpu")
        return (
            ["gsm8k_smollm2" if is_cpu else "gsm8k_qwen3_1.7b"],
            ["cpu" if is_cpu else "1gpu"],
            None,
            section_of(stem),
        )
    return None


def section_of(stem):
    return next(key for key, recipe in SECTIONS.items() if recipe.name in stem)


@cache
def stages(pair, profile, baseline):
    loaded = load_pair(PAIRS / f"{pair}.yaml", profile)
    return {s.section: s for s in expand(loaded, [(baseline, loaded.baselines[baseline])] if baseline else [])}


def resolved(settings, section):
    values = {key: value for key, value in defaults_of(section).items() if value is not MISSING} | settings
    return {
        key: re.sub(r"^runs/(.*/)?(?=[^/]+(/train\.jsonl)?$)", "", str(value))
        if key in PATHS and str(value).startswith("runs/")
        else value
        for key, value in values.items()
    }


CASES = [
    (name, pair, profile, *found[2:])
    for name in BEFORE
    if (found := where(name))
    for pair in found[0]
    for profile in found[1]
]


@pytest.mark.parametrize(("name", "pair", "profile", "baseline", "section"), CASES, ids=lambda value: str(value))
def test_every_setting_is_as_it_was(name, pair, profile, baseline, section):
    before, now = resolved(BEFORE[name], section), resolved(stages(pair, profile, baseline)[section].settings, section)
    left_out = set(ADDED)
    if name.endswith("_8k"):
        before["output_dir"] = "grpo"
    if name == "gsm8k/evaluate_cpu":  # asked the student after its warm-up
        before["student"] = "grpo"
    if section == "evaluate":
        left_out |= {"output_dir", *FROM_COMMENTS} | (FROM_STUDENT if "prompt_template" in BEFORE[name] else set())
    if section == "filter":
        left_out |= {"output_dir", *KNOWN_BY_THE_SERVER}
    before["dataset"] = re.sub(r"^(.*/)?filtered/", "filtered/", str(before.get("dataset")))
    now["dataset"] = re.sub(r"^(.*/)?filtered\w*[^/]*/", "filtered/", str(now.get("dataset")))
    differing = {key: (before.get(key), now.get(key)) for key in {**before, **now} if before.get(key) != now.get(key)}
    assert not {key: pair for key, pair in differing.items() if key not in left_out}


def without_effect(before):
    """By section, the options that have no effect beside the others of a run."""
    is_random = before.get("warmup", {}).get("calls") == "random"
    searches = {"teacher", "doubt", "keep_lucky"}  # nothing is searched for
    return {
        "warmup": searches if is_random else {"call_weights", "num_orders", "step_end"},  # no call is put at random
        "sft": {"num_train_epochs", "per_device_train_batch_size"} if "max_steps" in before.get("sft", {}) else set(),
        "grpo": {"save_steps", "save_total_limit"} if before.get("grpo", {}).get("save_strategy") == "no" else set(),
        "evaluate": FROM_STUDENT,
        "citer": set(),
    }


NAMES = {"arithmetic/grpo_alone": "baseline", "lookups/grpo_alone": "baseline", "lookups/searched": "searched_once"}
EMBEDDED = [(task, name) for task in ("arithmetic", "lookups") for name in BEFORE[f"{task}/reproduce"]["runs"]]


def planned(task, name, seed):
    """What a run of the plan of before said for each stage, with the candidate that was chosen, `constant`."""
    plan = BEFORE[f"{task}/reproduce"]
    run = {**plan["candidates"]["constant"], **plan["runs"][name]}
    if run.get("grpo", {}) is not None and plan["runs"][name].get("grpo") is not None:
        run["grpo"] = {**plan["candidates"]["constant"]["grpo"], **run["grpo"]}
    said = {"evaluate": {"methods": run["methods"], "limit": plan["test_size"], "split": "test"}}
    if "recipe" in run:
        said["citer"] = {"seed": seed, "dataset_seed": 100 + seed}
    else:
        if run["warmup"]:
            warmup = plan["warmups"][run["warmup"]]
            of_data = plan["warmups"][warmup.get("data", run["warmup"])]
            said["warmup"] = {**of_data.get("build", {}), "seed": seed}
            said["sft"] = {**warmup.get("sft", {}), "seed": seed}
        if run["grpo"] is not None:
            said["grpo"] = {**run["grpo"], "seed": seed}
    for section, settings in said.items():
        recipe = run.get("config", SECTIONS[section].name) if section == "grpo" else SECTIONS[section].name
        said[section] = {**BEFORE[f"{task}/{recipe}"], **settings}
    return said


@pytest.mark.parametrize(("task", "name"), EMBEDDED)
def test_every_run_of_the_reproduction_is_as_it_was(task, name):
    runs = Runs(load_pair(PAIRS / f"{task}_reproduce.yaml", "cpu"))
    runs.chosen = "constant"
    before = planned(task, name, 2)
    now = {stage.section: stage.settings for stage in runs.stages(NAMES.get(f"{task}/{name}", name), 2)}
    assert set(now) == set(before)
    for section in now:
        old, new = resolved(before[section], section), resolved(now[section], section)
        differing = {key: (old.get(key), new.get(key)) for key in {**old, **new} if old.get(key) != new.get(key)}
        places = {key for key in (*PATHS, "citer_router") if not str(old.get(key)).startswith("data/")}
        if section == "evaluate":
            places.add("student")
        left_out = ADDED | without_effect(before)[section] | places
        assert not {key: pair for key, pair in differing.items() if key not in left_out}
    if name == "relay":  # the choice is made on the same problems
        asked = runs.candidate("constant")[-1].settings
        plan = BEFORE[f"{task}/reproduce"]
        assert (asked["limit"], asked["split"], asked["methods"]) == (plan["validation_size"], "validation", ["relay"])
        assert list(runs.pair.candidates) == list(plan["candidates"])
        ends = {stage.section: stage.settings for stage in runs.stages("ends", 2)}
        assert list(ends) == ["evaluate"] and ends["evaluate"]["methods"] == plan["ends"]
        missing = {NAMES.get(f"{task}/{name}", name) for name in plan["runs"]} - set(runs.names)
        assert not missing


def test_every_yaml_of_before_is_looked_at():
    unknown = [
        name for name in BEFORE if where(name) is None and name.partition("/")[0] not in ("arithmetic", "lookups")
    ]
    assert not unknown and len(CASES) > 50
