"""Pair files: what wins over what, which stages follow, what comparisons share, and what is refused in a sentence."""

from pathlib import Path

import pytest
import yaml

from relay_trl.reproduction.check import problems
from relay_trl.reproduction.command import check
from relay_trl.reproduction.expand import expand, server_words
from relay_trl.reproduction.pair import load_pair, read
from relay_trl.reproduction.runs import Runs

ROOT = Path(__file__).parents[2]
PAIRS = sorted((ROOT / "recipes" / "pairs").glob("*.yaml"))
SMALL = {
    "student": "some/student",
    "teacher": "some/teacher",
    "output_dir": "runs/{student}_with_{teacher}",
    "task": {"dataset": "dapo_math", "max_completion_length": 64, "prompt_template": "{problem} {{}}"},
    "warmup": {"dataset_size": 8},
    "sft": {"max_length": 80},
    "grpo": {"max_steps": 5, "learning_rate": 1e-5},
    "evaluate": {"benchmarks": ["math500"], "methods": ["relay", "teacher"]},
    "citer": {"rounds": 1},
    "baselines": {
        "alone": {"warmup": None, "sft": None, "grpo": {"teacher": None}, "evaluate": {"methods": ["student"]}},
        "simple": {"grpo": {"reward": "simple"}},
        "untaught": {"sft": {"max_steps": 1}},
        "untrained": {"warmup": None, "sft": None, "grpo": None, "evaluate": {"methods": ["student"]}},
        "citer": {"warmup": None, "sft": None, "grpo": None, "citer": {}, "evaluate": {"methods": ["citer"]}},
    },
    "hardware": {
        "cpu": {},
        "1gpu": {
            "gpus": 1,
            "launch": "accelerate_configs/single_gpu.yaml --num_processes 1",
            "devices": {"grpo": "0", "teacher": "0"},
            "serve": {"grpo": "--max-model-len 99"},
            "grpo": {"learning_rate": 2e-5, "teacher_backend": "vllm"},
        },
    },
}


@pytest.fixture
def write(tmp_path):
    def call(name="mine", **changes):
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**SMALL, **changes}))
        return path

    return call


def by_section(pair, layers=(), **options):
    return {stage.section: stage for stage in expand(pair, layers, **options)}


@pytest.mark.parametrize("path", PAIRS, ids=lambda path: path.stem)
def test_every_shipped_pair_expands_on_each_of_its_profiles(path):
    for profile in read(path)["hardware"]:
        pair = load_pair(path, profile)
        stages = Runs(pair, None, ["all"]).all_stages()
        assert len({stage.name for stage in stages}) == len(stages) >= 4
        assert all("{" not in str(stage.result) for stage in stages)


def test_each_layer_wins_over_those_below_it(write, tmp_path):
    write()
    above = tmp_path / "above.yaml"
    above.write_text(yaml.safe_dump({"base": "mine.yaml", "grpo": {"max_steps": 6}, "hardware": {"1gpu": {"port": 9}}}))
    grpo = by_section(load_pair(above, "cpu"))["grpo"].settings
    assert (grpo["max_steps"], grpo["learning_rate"], grpo["max_completion_length"]) == (6, 1e-5, 64)
    pair = load_pair(above, "1gpu")
    assert by_section(pair)["grpo"].settings["learning_rate"] == 2e-5 and pair.profile.port == 9
    change = {"grpo": {"learning_rate": 3e-5, "max_steps": None}}
    changed = by_section(pair, [("mine", change)])["grpo"].settings
    assert changed["learning_rate"] == 3e-5 and "max_steps" not in changed
    pair = load_pair(above, "1gpu", ["grpo.learning_rate=0.5", "max_completion_length=9"])
    settings = by_section(pair, [("mine", change)])["grpo"].settings
    assert settings["learning_rate"] == 0.5 and settings["max_completion_length"] == 9


def test_stages_hand_over_to_one_another(write):
    stages = by_section(load_pair(write(filter={"samples": 2}), "cpu"))
    assert list(stages) == ["warmup", "sft", "filter", "grpo", "evaluate"]
    settings = {name: stage.settings for name, stage in stages.items()}
    assert settings["sft"]["warmup_data"] == settings["warmup"]["output"] == "runs/student_with_teacher/warmup.jsonl"
    assert settings["grpo"]["model_name_or_path"] == settings["sft"]["output_dir"]
    assert settings["grpo"]["dataset"] == settings["filter"]["output_dir"] + "/train.jsonl"
    assert settings["evaluate"]["student"] == settings["grpo"]["output_dir"]
    assert settings["grpo"]["prompt_template"] == settings["warmup"]["prompt_template"] == "{problem} {{}}"
    assert "prompt_template" not in settings["evaluate"]  # the student's own record has it
    assert stages["grpo"].needs == ("sft", "filtered") and stages["evaluate"].needs == ("grpo",)


def test_a_second_warm_up_goes_on_from_the_first_with_its_options(write):
    more = {"second_warmup": {"dataset_seed": 2}, "second_sft": {"average_with_start": True}}
    pair = load_pair(write(**more), "1gpu", ["warmup.dataset_size=9", "sft.learning_rate=0.5"])
    stages = by_section(pair, seed=3)
    assert list(stages) == ["warmup", "sft", "second_warmup", "second_sft", "grpo", "evaluate"]
    settings = {name: stage.settings for name, stage in stages.items()}
    first, second = settings["warmup"], settings["second_warmup"]
    assert second == {**first, "dataset_seed": 2, "output": first["output"].replace("warmup", "second_warmup")}
    folder = settings["sft"]["output_dir"]
    changed = {"model_name_or_path": folder, "warmup_data": second["output"], "average_with_start": True}
    assert settings["second_sft"] == {**settings["sft"], **changed, "output_dir": folder.replace("sft", "second_sft")}
    assert settings["second_sft"]["learning_rate"] == 0.5 and second["dataset_size"] == 9
    assert settings["grpo"]["model_name_or_path"] == settings["second_sft"]["output_dir"]
    assert stages["second_sft"].needs == ("sft_seed_3", "second_warmup_seed_3")
    assert stages["second_sft"].launch == stages["sft"].launch
    once = by_section(pair, [("once", {"second_sft": None, "grpo": None})])
    assert list(once) == ["warmup", "sft", "evaluate"]
    assert once["evaluate"].settings["student"] == once["sft"].settings["output_dir"]
    assert once["evaluate"].settings["max_completion_length"] == 64  # GRPO records it, a warm-up does not
    assert "max_completion_length" not in settings["evaluate"]
    assert list(by_section(pair, [("alone", pair.baselines["alone"])])) == ["grpo", "evaluate"]
    again = by_section(load_pair(write(second_sft={"max_steps": 4}), "cpu"))["second_sft"].settings
    assert again["warmup_data"] == "runs/student_with_teacher/warmup.jsonl"  # the same rows


def test_a_second_warm_up_without_the_first_is_refused(write):
    with pytest.raises(ValueError, match="a section second_warmup but none for second_sft; add that, or leave"):
        expand(load_pair(write(second_warmup={"dataset_seed": 2}), "cpu"))
    with pytest.raises(ValueError, match="a section second_sft but none for sft"):
        expand(load_pair(write(second_sft={}, sft=None, warmup=None), "cpu"))


def test_recipes_and_launch_files_are_found_from_another_folder(write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for stage in expand(load_pair(write(hardware={"cpu": {}}), "cpu")):
        paths = [word for word in stage.words() if "recipes/" in word or "accelerate_configs/" in word]
        assert len(paths) == 1 + bool(stage.launch) and all(Path(path).is_file() for path in paths)


def test_two_words_swap_the_pair_everywhere(write):
    before = load_pair(write(), "cpu")
    after = load_pair(write(), "cpu", (), "other/pupil", "http://127.0.0.1:9/v1")
    assert before.output_dir != after.output_dir == Path("runs/pupil_with_127.0.0.1_9_v1")
    text = "".join(stage.text() for stage in expand(after))
    assert "some/" not in text and text.count("other/pupil") == 2


def test_a_served_teacher_is_reached_by_its_address_where_the_profile_says_so(write):
    pair = load_pair(write(), "1gpu")
    stages = by_section(pair)
    assert (
        stages["grpo"].settings["teacher"] == "http://127.0.0.1:8001/v1"
        and "teacher_backend" not in stages["grpo"].settings
    )
    assert stages["evaluate"].settings["teacher"] == "some/teacher" and stages["evaluate"].serve is None
    assert server_words(pair, stages["grpo"].serve)[-4:] == ["--port", "8001", "--max-model-len", "99"]
    assert (
        stages["grpo"]
        .line()
        .startswith(
            "CUDA_VISIBLE_DEVICES=0 accelerate launch --config_file accelerate_configs/single_gpu.yaml --num_processes 1 recipes/grpo_relay.py --config "
        )
    )
    elsewhere = by_section(load_pair(write(), "1gpu", (), None, "http://host/v1"))["grpo"]
    assert elsewhere.serve is None and elsewhere.settings["teacher"] == "http://host/v1"
    alone = by_section(pair, [("alone", pair.baselines["alone"])])["grpo"]
    assert alone.serve is None and "teacher" not in alone.settings


def test_a_comparison_shares_what_it_does_not_change(write):
    pair = load_pair(write(), "cpu")
    names = {name: [stage.name for stage in expand(pair, [(name, change)])] for name, change in pair.baselines.items()}
    assert names == {
        "alone": ["grpo_alone", "evaluate_alone"],
        "simple": ["warmup", "sft", "grpo_simple", "evaluate_simple"],
        "untaught": ["warmup", "sft_untaught", "grpo_untaught", "evaluate_untaught"],
        "untrained": ["evaluate_untrained"],
        "citer": ["citer", "evaluate_citer"],
    }
    alone = by_section(pair, [("alone", pair.baselines["alone"])])
    assert alone["grpo"].settings["model_name_or_path"] == "some/student"
    routed = by_section(pair, [("citer", pair.baselines["citer"])])["evaluate"].settings
    assert routed["citer_router"].endswith("/citer") and routed["student"] == "some/student"
    assert routed["prompt_template"] == "{problem} {{}}"  # the untrained student has no record of it


def test_seeds_reach_what_is_trained_and_nothing_else(write):
    pair = load_pair(write(filter={"samples": 2}), "cpu")
    stages = by_section(pair, seed=7)
    assert [stages[name].settings["seed"] for name in ("warmup", "sft", "grpo")] == [7, 7, 7]
    assert "seed" not in stages["filter"].settings and "seed_7" not in str(stages["filter"].result)
    assert (
        "/seed_7/grpo" in stages["grpo"].settings["output_dir"]
        and stages["evaluate"].result.parent.name == "relay_seed_7"
    )
    runs = Runs(pair, [1, 2], ["untrained", "simple"])
    names = [stage.name for stage in runs.all_stages()]
    assert names.count("evaluate_untrained") == 1 and {"grpo_simple_seed_1", "grpo_simple_seed_2", "sft_seed_2"} <= set(
        names
    )


def test_runs_are_based_on_the_chosen_candidate_unless_they_say_on_what(write):
    candidates = {
        "slow": {"warmup": {"dataset_size": 4}, "grpo": {"learning_rate": 1e-7}},
        "slower": {"over": "slow", "grpo": {"learning_rate": 1e-8}},
    }
    baselines = {
        **SMALL["baselines"],
        "own": {"over": "pair", "grpo": {"max_steps": 2}},
        "own_simple": {"over": "own", "grpo": {"reward": "simple"}},
    }
    pair = load_pair(write(candidates=candidates, baselines=baselines, seeds=[3, 4]), "cpu")
    runs = Runs(pair, names=["all"])
    assert runs.seeds == [3, 4] and runs.names[-1] == "relay"
    runs.chosen = "slower"

    def grpo(name):
        (stage,) = (stage for stage in runs.stages(name, 3) if stage.section == "grpo")
        return stage.name, *map(stage.settings.get, ("learning_rate", "max_steps", "reward"))

    assert grpo("relay") == ("grpo_slower_seed_3", 1e-8, 5, None)
    assert grpo("simple") == ("grpo_simple_seed_3", 1e-8, 5, "simple")
    assert grpo("own") == ("grpo_own_seed_3", 1e-5, 2, None)
    assert grpo("own_simple") == ("grpo_own_simple_seed_3", 1e-5, 2, "simple")
    assert runs.stages("relay", 3)[0].name == "warmup_slow_seed_3"  # one for both candidates
    names = [stage.name for stage in runs.all_stages()]
    assert {"evaluate_slow_validation_seed_3", "evaluate_slower_validation_seed_3"} <= set(names)
    assert len(names) == len(set(names)) and "evaluate_slow_validation_seed_4" not in names
    with pytest.raises(ValueError, match="chooses among slow, slower first, which takes all of their stages"):
        Runs(pair, stages=["sft"])
    alone = Runs(pair, names=["own"], stages=["sft"])  # does not depend on the choice
    assert "evaluate_slow_validation_seed_3" not in [stage.name for stage in alone.all_stages()]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"grpoo": {}}, r"has no option 'grpoo' (did you mean 'grpo'?)"),
        ({"grpo": {"max_step": 1}}, r"the section grpo has no option 'max_step' (did you mean 'max_steps'?)"),
        (
            {"task": {"prompt_tmplate": "x"}},
            r"the section task has no option 'prompt_tmplate' (did you mean 'prompt_template'?)",
        ),
        ({"hardware": {"cpu": {"lanch": "x"}}}, r"hardware.cpu has no option 'lanch' (did you mean 'launch'?)"),
        (
            {"hardware": {"cpu": {"grpo": {"beat": 1}}}},
            r"hardware.cpu.grpo has no option 'beat' (did you mean 'beta'?)",
        ),
        ({"baselines": {"a": {"evalute": {}}}}, r"baselines.a has no option 'evalute' (did you mean 'evaluate'?)"),
        ({"baselines": {"a": 3}}, r"baselines.a is 3; it must be a mapping"),
        ({"grpo": [1]}, r"grpo is [1]; it must be a mapping"),
        ({"student": None}, r"student is None; give a folder or a Hub id."),
        ({"student": "http://x/v1"}, r"student is a URL, but it is trained here"),
        ({"base": "none.yaml"}, r"is based on does not exist"),
        ({"base": "mine.yaml"}, r"is based on itself"),
        ({"seeds": 3}, r"seeds is 3; it must be a list of whole numbers"),
        ({"seeds": ["one"]}, r"seeds is ['one']; it must be a list of whole numbers"),
        ({"candidates": {"a": {"over": "simple"}}}, r"over of candidates.a has no option 'simple'; it has a, pair"),
        ({"baselines": {"a": {"over": "b"}, "b": {"over": "a"}}}, r"baselines.a is over itself, by way of b"),
        ({"baselines": {"relay": {}}}, r"baselines.relay has a name that is taken"),
        (
            {"hardware": {"8gpu": {"gpus": 8}}},
            r"no hardware profile for this machine, which has 0 GPUs; it has 8gpu (8 GPUs)",
        ),
    ],
)
def test_a_file_with_a_fault_is_refused(write, changes, said):
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        Runs(load_pair(write(**changes), None, gpus=0))
    assert said in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("max_steps=3", r"max_steps=3: sft and grpo have an option max_steps; say which, as grpo.max_steps=3"),
        ("grpo.max_step=3", r"The section grpo has no option 'max_step' (did you mean 'max_steps'?)"),
        ("gpro.max_steps=3", r"The pair has no option 'gpro' (did you mean 'grpo'?)"),
        ("max_stepz=3", r"The pair has no option 'max_stepz' (did you mean 'max_steps'?)"),
        ("grpo.max_steps", r"is no change of a setting; write section.option=value"),
        ("grpo.reward_kwargs={a: [}", r"the value is no valid YAML"),
        ("filter.max_in_flight=2", r"filter.max_in_flight would change nothing"),
    ],
)
def test_a_change_with_a_fault_is_refused(write, change, said):
    with pytest.raises(ValueError) as error:
        Runs(load_pair(write(), "cpu", [change]))
    assert said in str(error.value)


def test_names_that_are_not_there_are_refused(write):
    pair = load_pair(write(), "cpu")
    for names, stages, said in (
        (["simpel"], None, "asked for by --runs, has no option 'simpel' (did you mean 'simple'?)"),
        (None, ["filter"], "has no option 'filter'"),
    ):
        with pytest.raises(ValueError) as error:
            Runs(pair, None, names, stages)
        assert said in str(error.value)
    with pytest.raises(ValueError, match="has no hardware profile '4gpu'; it has 1gpu, cpu"):
        load_pair(write(), "4gpu")


def found(path, *changes, hardware="cpu", **models):
    pair = load_pair(path, hardware, changes, gpus=0, **models)
    return " | ".join(problems(pair, Runs(pair).all_stages(), None, is_thorough=True))


def test_check_says_what_would_stop_a_pair(write, tmp_path):
    path = ROOT / "recipes/pairs/arithmetic.yaml"
    out = f"output_dir={tmp_path}"
    assert found(path, out) == ""
    assert "data/none' is neither a folder with a model" in found(path, out, teacher="data/none")
    said = found(path, out, teacher="data/lookups/teacher")
    assert "cannot work together: the teacher writes" in said and "Take two models of one vocabulary" in said
    assert "no whole groups of num_generations=7" in found(path, out, "grpo.num_generations=7")
    assert "sft: " in (said := found(path, out, "sft.learning_rate=fast")) and "'fast'" in said
    assert "data/arithmetic/student has room for 256 tokens" in found(path, out, "grpo.max_completion_length=300")
    assert "there is no such file" in found(path, out, "grpo.dataset=nothing.jsonl")
    assert "does not answer" in found(path, out, teacher="http://127.0.0.1:9/v1")
    assert "needs 1 GPUs, and this process sees 0" in found(write(), hardware="1gpu")


def test_the_warm_up_asks_the_teacher_only_for_a_search():
    path = ROOT / "recipes/pairs/arithmetic.yaml"

    def warmup(*changes, path=path, profile="cpu", gpus=0):
        (stage,) = (s for s in expand(load_pair(path, profile, changes, gpus=gpus)) if s.section == "warmup")
        return stage.settings

    assert warmup()["teacher"] == "data/arithmetic/teacher" and warmup()["calls"] == "searched"
    assert "teacher" not in warmup("warmup.calls=random")
    api = warmup(path=ROOT / "recipes/pairs/smollm2_360m_with_api.yaml", profile="1gpu", gpus=1)
    assert not [name for name in api if name.startswith("teacher")], (
        "what the task says of the teacher is for other stages"
    )


def test_the_checks_command_takes_changes_behind_options(write):
    with pytest.raises(ValueError, match="max_stepz"):
        check([str(write()), "--student", "another/student", "grpo.max_stepz=1"])
