"""Which checkpoints a run resumes from, and what is refused before a model is loaded."""

import json
import logging
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers.trainers import (
    SYNTAX,
    PlannedStudent,
    PlannedTeacher,
    grpo_config,
    grpo_trainer,
    in_turn,
    load_tokenizer,
    rows,
    student_folder,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from trl import ModelConfig, get_quantization_config

from relay_trl.engines.checks import check_teacher_context
from relay_trl.engines.scripted import ScriptedEngine
from relay_trl.training import RelayGRPOTrainer
from relay_trl.training.checkpoints import MARK, bytes_of_checkpoints, check_fits, check_output, find_checkpoint
from relay_trl.training.lora import check_sharding, lora_config, save_merged
from relay_trl.vocabulary import Vocabulary

ROOT = Path(__file__).parents[2]
MIXED = ("right", "call, right", "wrong", "call, wrong")


def adapter(rank=4, has_tokens=True):
    options = ModelConfig(use_peft=True, lora_r=rank, lora_dropout=0.0, lora_target_modules=["q_proj", "v_proj"])
    return lora_config(options, load_tokenizer(has_tokens), SYNTAX, student_folder())


def checkpointed(folder, **kwargs):
    args = grpo_config(folder, save_strategy="steps", save_steps=1, save_total_limit=2, max_steps=3)
    trainer = grpo_trainer(args, in_turn(*MIXED), **kwargs)
    trainer.train()
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a LoRA run with its two newest checkpoints, and its trainer."""
    folder = tmp_path_factory.mktemp("run")
    return folder, checkpointed(folder, peft_config=adapter())


@pytest.fixture
def copy(run, tmp_path):
    return shutil.copytree(run[0], tmp_path / "copy")


def test_auto_takes_the_newest_whole_one(copy, caplog):
    assert sorted(path.name for path in copy.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]
    assert find_checkpoint("auto", str(copy)) == str(copy / "checkpoint-3")
    for damage in ("shorter", "mark", "missing"):
        path = copy / "checkpoint-3" / {"shorter": "optimizer.pt", "mark": MARK, "missing": "scheduler.pt"}[damage]
        kept = path.read_bytes()
        path.write_bytes(kept[:100]) if damage != "missing" else path.unlink()
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert find_checkpoint("auto", str(copy)) == str(copy / "checkpoint-2")
        assert "checkpoint-3 is passed over, as it is not a whole checkpoint" in caplog.text
        path.write_bytes(kept)
    assert find_checkpoint("auto", str(copy)) == str(copy / "checkpoint-3")


def test_from_the_beginning_where_there_is_none(tmp_path):
    assert find_checkpoint("auto", str(tmp_path / "nothing")) is None
    assert find_checkpoint(None, "x") is find_checkpoint("false", "x") is None


def test_one_that_is_named_must_be_there_and_whole(copy, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="there is no folder .*checkpoint-9; give a checkpoint-N folder, or auto"
    ):
        find_checkpoint(str(copy / "checkpoint-9"), str(copy))
    (copy / "checkpoint-3" / "optimizer.pt").unlink()
    with pytest.raises(
        ValueError, match=r"not a whole checkpoint \(optimizer\.pt is missing\); give another one, or auto"
    ):
        find_checkpoint(str(copy / "checkpoint-3"), str(copy))


def test_a_checkpoint_of_another_adapter_is_refused(copy):
    args = grpo_config(copy, max_steps=4)
    trainer = grpo_trainer(args, in_turn(*MIXED), peft_config=adapter(rank=8))
    with pytest.raises(
        ValueError, match=r"another model or adapter: for .*lora_A.* has shape \[4, 64\], this run has shape"
    ):
        trainer.train(resume_from_checkpoint="auto")
    whole = grpo_trainer(args, in_turn(*MIXED))
    with pytest.raises(ValueError, match="this run has nothing of that name|it has nothing of that name"):
        whole.train(resume_from_checkpoint="auto")


def test_a_checkpoint_of_another_model_is_refused(copy):
    teacher = AutoModelForCausalLM.from_pretrained(ROOT / "data" / "arithmetic" / "teacher")
    with pytest.raises(
        ValueError, match="was written by a run that trained another model or adapter: for .*or start over"
    ):
        check_fits(str(copy / "checkpoint-3"), teacher, 1)


def test_rows_of_an_embedding_that_is_split_are_not_trained():
    whole = SimpleNamespace(distributed_state=None, deepspeed_plugin=SimpleNamespace(zero_stage=2))
    check_sharding(adapter(), whole)
    split = SimpleNamespace(distributed_state=None, deepspeed_plugin=SimpleNamespace(zero_stage=3))
    check_sharding(adapter(has_tokens=False), split)
    with pytest.raises(
        ValueError, match="but ZeRO-3 splits the embedding .* use ZeRO-2 or DDP, or leave add_call_tokens"
    ):
        check_sharding(adapter(), split)


def test_one_that_is_sharded_otherwise_is_refused(copy):
    mark = copy / "checkpoint-3" / MARK
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "processes": 4, "is_sharded": True}))
    trainer = grpo_trainer(grpo_config(copy), in_turn(*MIXED), peft_config=adapter())
    with pytest.raises(ValueError, match="is sharded over 4 processes, this run has 1; launch with --num_processes 4"):
        trainer.train(resume_from_checkpoint=str(copy / "checkpoint-3"))


def test_what_cannot_be_written_is_known_before(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"output_dir: nothing can be written to .*file/out \(Not a directory\)"):
        check_output(str(tmp_path / "file" / "out"))
    with pytest.raises(OSError, match=r"GiB left, and the checkpoints of this run need about 931322574\.6 GiB"):
        check_output(str(tmp_path), 10**18)
    check_output(str(tmp_path / "new" / "folder"), 1)
    assert list((tmp_path / "new" / "folder").iterdir()) == []


def test_the_room_that_checkpoints_take(run, tmp_path):
    folder = checkpointed(tmp_path).args.output_dir
    sizes = [sum(f.stat().st_size for f in path.rglob("*")) for path in tmp_path.glob("checkpoint-*")]
    args = grpo_config(folder, save_strategy="steps", save_total_limit=2)
    weights = (tmp_path / "checkpoint-3" / "model.safetensors").stat().st_size
    assert bytes_of_checkpoints(student_folder(), args) == pytest.approx(weights + 3 * max(sizes), rel=0.2)


def test_a_disk_that_is_full_is_one_sentence_and_the_half_written_one_is_passed_over(tmp_path, monkeypatch):
    args = grpo_config(tmp_path, save_strategy="steps", save_steps=1, max_steps=3)
    trainer = grpo_trainer(args, in_turn(*MIXED))
    original = trainer._save_optimizer_and_scheduler

    def save(folder):
        if trainer.state.global_step == 2:
            raise OSError(28, "No space left on device")
        original(folder)

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", save)
    with pytest.raises(
        OSError, match=r"checkpoint of step 2 could not be written to .*No space left.*resume_from_checkpoint: auto"
    ):
        trainer.train()
    assert find_checkpoint("auto", str(tmp_path)) == str(tmp_path / "checkpoint-1")


def test_an_adapter_trains_the_rows_of_the_call_tokens_and_merges_into_a_whole_model(run, tmp_path):
    folder, trainer = run
    names = [name for name, p in trainer.model.named_parameters() if p.requires_grad]
    assert any("lora_A" in name for name in names) and any("trainable_tokens_delta" in name for name in names)
    base = AutoModelForCausalLM.from_pretrained(student_folder())
    tokenizer = load_tokenizer()
    rows = tokenizer.convert_tokens_to_ids(["<call>", "</call>"])
    checkpoint = folder / "checkpoint-3"
    assert (checkpoint / "adapter_model.safetensors").is_file() and not (checkpoint / "model.safetensors").exists()
    save_merged(checkpoint, tmp_path)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    moved = (merged.get_input_embeddings().weight - base.get_input_embeddings().weight).abs().amax(1)
    assert (moved[rows] > 0).all() and moved.sum() == moved[rows].sum()
    ids = torch.tensor([tokenizer("12*3")["input_ids"] + rows])
    with torch.no_grad():
        own = trainer.model(input_ids=ids).logits
        assert torch.allclose(merged(input_ids=ids).logits, own, atol=1e-4)
        assert not torch.allclose(base(input_ids=ids).logits, own, atol=1e-3)


@pytest.mark.skipif(find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
def test_an_adapter_on_4_bit_weights_trains_and_merges(tmp_path):
    options = ModelConfig(use_peft=True, lora_r=4, lora_target_modules=["q_proj", "down_proj"], load_in_4bit=True)
    tokenizer = load_tokenizer()
    args = grpo_config(tmp_path, merge_adapter=True)
    trainer = RelayGRPOTrainer(
        student_folder(),
        args,
        rows(),
        processing_class=tokenizer,
        teacher=PlannedTeacher(),
        peft_config=lora_config(options, tokenizer, SYNTAX, student_folder()),
        quantization_config=get_quantization_config(options),
    )
    trainer._engines["student"] = PlannedStudent(tokenizer, in_turn(*MIXED))
    trainer.train()
    assert any(type(module).__name__ == "Linear4bit" for module in trainer.model.modules())
    assert trainer.state.log_history[0]["grad_norm"] > 0
    trainer.save_student()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert not getattr(merged, "is_quantized", False) and not (tmp_path / "adapter_config.json").exists()


def test_a_teacher_without_room_is_refused():
    teacher = ScriptedEngine(Vocabulary(load_tokenizer()), lambda context: [], max_context=100)
    check_teacher_context(teacher, [[1] * 40, "text"], 60)
    with pytest.raises(
        ValueError, match=r"has room for 100 tokens, but its longest prompt \(40 tokens\) and .*=61 need 101"
    ):
        check_teacher_context(teacher, [[1] * 40, [1] * 3], 61)
    check_teacher_context(None, [], 10**6)


def test_text_tags_need_no_rows():
    assert adapter(has_tokens=False).trainable_token_indices is None


def test_merging_at_the_end(tmp_path):
    args = grpo_config(tmp_path, max_steps=1, merge_adapter=True)
    trainer = grpo_trainer(args, in_turn(*MIXED), peft_config=adapter())
    trainer.train()
    trainer.save_student()
    assert (tmp_path / "model.safetensors").is_file() and not (tmp_path / "adapter_config.json").exists()
    assert "library_name: transformers" in (tmp_path / "README.md").read_text()


@pytest.fixture
def adapter_folder(run, tmp_path):
    """What a LoRA training saved, on a base in a folder of its own."""
    base = shutil.copytree(student_folder(), tmp_path / "base")
    folder = shutil.copytree(run[0] / "checkpoint-3", tmp_path / "adapter")
    config = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(base)}))
    return folder


def merge(*options):
    command = [sys.executable, "recipes/merge_adapter.py", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    # bitsandbytes, where it is installed without a GPU, has a line of its own
    said = [line for line in done.stderr.splitlines(keepends=True) if "kernels-community" not in line]
    return done.returncode, done.stdout, "".join(said)


@pytest.mark.slow
def test_the_recipe_merges_what_was_trained(run, adapter_folder, tmp_path):
    options = ("--adapter", adapter_folder, "--output_dir", tmp_path / "merged")
    status, said, error = merge(*options, "--dtype", "float32")
    assert status == 0 and f"The merged model is in {tmp_path / 'merged'}." in said, error
    merged, tokenizer = AutoModelForCausalLM.from_pretrained(tmp_path / "merged"), load_tokenizer()
    ids = torch.tensor([tokenizer("12*3")["input_ids"] + tokenizer.convert_tokens_to_ids(["<call>", "</call>"])])
    with torch.no_grad():
        assert torch.allclose(merged(input_ids=ids).logits, run[1].model(input_ids=ids).logits, atol=1e-4)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "merged")) == len(tokenizer)
    status, _, error = merge(*options)
    assert status == 1 and error.count("\n") == 1 and "merged is not empty; give a new folder" in error


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        ("adapter", r"has no adapter_config\.json, so there is no adapter in it to merge"),
        ("width", r"was trained on another model than \S+/base is now \(size mismatch for .*; put that model back"),
        (
            "depth",
            r"was trained on another model than \S+/base is now \(\d+ weights such as \S+ are in one of them only\)",
        ),
        ("base", r"is an adapter of '\S+/base', which is neither in a folder nor on the Hub"),
    ],
)
def test_the_recipe_refuses_in_one_sentence(adapter_folder, tmp_path, recipe, spoil, said):
    base = tmp_path / "base"
    if spoil == "adapter":
        (adapter_folder / "adapter_config.json").unlink()
    elif spoil == "base":
        shutil.rmtree(base)
    else:
        config = AutoConfig.from_pretrained(base)
        change = {"hidden_size": 2 * config.hidden_size} if spoil == "width" else {"num_hidden_layers": 1}
        config.update(change | {"layer_types": config.layer_types[: change.get("num_hidden_layers")]})
        AutoModelForCausalLM.from_config(config).save_pretrained(base)
    status, _, error = recipe("merge_adapter", "--adapter", adapter_folder, "--output_dir", tmp_path / "merged")
    assert status == 1
    sentences = [line for line in error.splitlines() if "error:" in line]
    assert "Traceback" not in error and len(sentences) == 1 and re.search(said, sentences[0]), error
