"""accelerate can read the files of accelerate_configs/, and each says when to use it. tests/distributed/test_same_numbers.py
starts those that work without a GPU.
"""

from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "accelerate_configs").glob("*.yaml"))
NAMES = {"cpu", "cpu_2", "single_gpu", "ddp", "zero1", "zero2", "zero3", "zero3_offload", "fsdp2", "multi_node"}


def test_every_situation_has_its_file():
    assert {path.stem for path in CONFIGS} == NAMES


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_accelerate_reads_it(path):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(path))
    assert config.use_cpu == path.stem.startswith("cpu")
    assert config.num_processes % config.num_machines == 0
    # accelerate starts one process, and says nothing, when this name stands beside num_processes: 2.
    assert config.distributed_type != "MULTI_CPU"


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_it_says_when_to_take_it(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0].startswith("# ")
    assert any(line.startswith("# Change: ") for line in lines)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_launcher_knows_every_option(path):
    from accelerate.commands.launch import launch_command_parser

    known = {action.dest for action in launch_command_parser()._actions}
    given = yaml.safe_load(path.read_text(encoding="utf-8"))
    for part in ("deepspeed_config", "fsdp_config", "mpirun_config"):
        assert given.get(part, {}).keys() <= known  # a key that it does not know is passed over without a word


@pytest.mark.parametrize("name", ["cpu", "single_gpu"])
def test_an_error_of_one_process_is_the_recipes_sentence_alone(name):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    words = ["--config_file", str(ROOT / f"accelerate_configs/{name}.yaml"), "recipes/grpo_relay.py"]
    args, *_ = _validate_launch_command(launch_command_parser().parse_args(words))
    assert args.quiet is True  # or accelerate raises, and prints where


def test_the_zero_stages_are_what_their_names_say():
    for path in CONFIGS:
        given = yaml.safe_load(path.read_text(encoding="utf-8")).get("deepspeed_config")
        if path.stem.startswith("zero"):
            assert given["zero_stage"] == int(path.stem[4])
            assert (given["offload_param_device"] == "cpu") == path.stem.endswith("offload")
        if given and given["zero_stage"] == 3:
            assert given["zero3_save_16bit_model"]  # or no checkpoint would hold weights to load
