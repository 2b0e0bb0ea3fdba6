"""The warm-up's trainer and the call tokens: labels, rows that are refused, new embeddings, what is saved."""

import json
from collections import Counter

import pytest
import torch
from datasets import Dataset
from helpers.tokenizers import byte_level
from helpers.trainers import PAIR, SYNTAX, load_student, load_tokenizer
from helpers.warmup import sft_config, warmup_rows
from peft import LoraConfig
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from relay_trl.relay_config import load_record
from relay_trl.reproduction.expand import expand
from relay_trl.reproduction.pair import load_pair
from relay_trl.training import RelaySFTTrainer
from relay_trl.training.call_tokens import add_call_tokens, grow_embeddings
from relay_trl.training.sft import check_rows, to_sft_row
from relay_trl.vocabulary import Vocabulary


def sft_trainer(args, rows=None, model=None):
    tokenizer = load_tokenizer()
    rows = warmup_rows(tokenizer) if rows is None else rows
    return RelaySFTTrainer(model=model or load_student(), args=args, train_dataset=rows, processing_class=tokenizer)


def test_labels_are_the_completion_alone():
    row = {"prompt_ids": [4, 5, 6], "completion_ids": [19, 7, 20, 1], "completion_mask": [1, 1, 1, 1]}
    assert to_sft_row(row) == {"input_ids": [4, 5, 6, 19, 7, 20, 1], "labels": [-100, -100, -100, 19, 7, 20, 1]}
    row["completion_mask"] = [1, 0, 0, 1]
    assert to_sft_row(row)["labels"] == [-100, -100, -100, 19, -100, -100, 1]


def helped_rows(tokenizer, size=16):
    """Rows in which the teacher wrote two tokens behind the call, and only there does the symbol # stand."""
    mark = tokenizer.convert_tokens_to_ids("#")

    def help_with(row):
        ids = [token for token in row["completion_ids"] if token != mark]
        at = row["completion_ids"].index(tokenizer.convert_tokens_to_ids("</call>")) + 1
        ids, mask = [*ids[:at], mark, mark, *ids[at:]], [1] * at + [0, 0] + [1] * (len(ids) - at)
        return {"completion_ids": ids, "completion_mask": mask, "completion": tokenizer.decode(ids[:-1])}

    return warmup_rows(tokenizer, size).map(help_with)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"pad_to_multiple_of": 16},
        {"padding_free": True, "max_length": None},
        {"packing": True, "packing_strategy": "bfd"},
        {"packing": True, "packing_strategy": "bfd_split"},
        {"packing": True, "packing_strategy": "wrapped"},
        {"train_sampling_strategy": "group_by_length"},
    ],
    ids=str,
)
def test_the_teachers_tokens_are_never_in_the_loss(tmp_path, fields):
    tokenizer = load_tokenizer()
    rows = helped_rows(tokenizer)
    mark = tokenizer.convert_tokens_to_ids("#")
    trainer = sft_trainer(sft_config(tmp_path, per_device_train_batch_size=4, learning_rate=0.0, **fields), rows)
    seen, in_loss = 0, Counter()
    for batch in trainer.get_train_dataloader():
        assert mark not in batch["labels"]
        seen += int((batch["input_ids"] == mark).sum())
        in_loss.update(batch["labels"][batch["labels"] != -100].tolist())
    assert seen == 2 * len(rows)
    own = Counter(
        token
        for ids, mask in zip(rows["completion_ids"], rows["completion_mask"], strict=True)
        for token, is_own in zip(ids, mask, strict=True)
        if is_own
    )
    assert in_loss == own


def test_what_the_teacher_wrote_moves_no_weight(tmp_path):
    """Two trainings whose rows differ in the last tokens of all, which are the teacher's, end in the same weights."""

    def train(folder, last):
        tokenizer = load_tokenizer()
        end = tokenizer.convert_tokens_to_ids(last)
        rows = warmup_rows(tokenizer).map(
            lambda row: {
                "completion_ids": [*row["completion_ids"][:-1], end, end],
                "completion_mask": [1] * (len(row["completion_ids"]) - 1) + [0, 0],
                "completion": row["completion"] + last,
            }
        )
        trainer = sft_trainer(sft_config(tmp_path / folder), rows)
        trainer.train()
        return trainer.model.state_dict()

    first, second = train("a", "1"), train("b", "7")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_loss_is_that_of_exactly_these_tokens(tmp_path):
    trainer = sft_trainer(sft_config(tmp_path, learning_rate=0.0, max_steps=1))
    batch = next(iter(trainer.get_train_dataloader()))
    rows = {
        tuple(p + c): len(p)
        for p, c in zip(*(warmup_rows(load_tokenizer())[k] for k in ("prompt_ids", "completion_ids")), strict=True)
    }
    for ids, labels, mask in zip(batch["input_ids"], batch["labels"], batch["attention_mask"], strict=True):
        length = int(mask.sum())
        prompt = rows[tuple(ids[:length].tolist())]
        assert (labels[:prompt] == -100).all() and torch.equal(labels[prompt:length], ids[prompt:length])
        assert (labels[length:] == -100).all()
    logits = trainer.model.eval()(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    expected = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    trainer.train()
    assert trainer.state.log_history[0]["loss"] == pytest.approx(expected.item(), rel=1e-3)


def test_training_teaches_the_syntax_and_saves_what_belongs_to_it(tmp_path):
    trainer = sft_trainer(sft_config(tmp_path, max_steps=6, learning_rate=3e-3, save_strategy="steps", save_steps=3))
    trainer.training_set = "rows.jsonl"
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]
    trainer.save_model(str(tmp_path))
    for folder, steps in ((tmp_path, 6), (tmp_path / "checkpoint-3", 3)):
        record = load_record(folder)
        assert (record.stage, record.steps, record.open_tag, record.training_set) == (
            "sft",
            steps,
            "<call>",
            "rows.jsonl",
        )
        assert record.reward is None and (folder / "README.md").exists()
        assert json.loads((folder / "config.json").read_text())["vocab_size"] == 21
        assert AutoTokenizer.from_pretrained(folder).get_added_vocab()["</call>"] == 20


def test_the_result_may_be_the_mean_of_both_ends(tmp_path):
    def ends(folder, **fields):
        """The saved weights of a training that stops after its second step and is resumed."""
        options = {"save_strategy": "steps", "save_steps": 2, **fields}
        sft_trainer(sft_config(tmp_path / folder, max_steps=2, lr_scheduler_type="constant", **options)).train()
        config = sft_config(tmp_path / folder, max_steps=4, lr_scheduler_type="constant", **options)
        trainer = sft_trainer(config)
        trainer.train(resume_from_checkpoint="auto")
        trainer.save_student()
        return load_file(tmp_path / folder / "model.safetensors")

    start, last, mean = load_student().state_dict(), ends("a"), ends("b", average_with_start=True)
    assert set(mean) == set(last)
    for name, weight in mean.items():
        assert not torch.equal(start[name], last[name])
        torch.testing.assert_close(weight, (start[name] + last[name]) / 2)


def test_a_killed_warm_up_is_no_finished_stage(tmp_path):
    """What a pair's stage is finished by is not there behind a checkpoint, and is when the recipe has ended."""
    (stage,) = (s for s in expand(load_pair("recipes/pairs/lookups.yaml", "cpu")) if s.section == "sft")
    trainer = sft_trainer(sft_config(tmp_path, save_strategy="steps", save_steps=1))
    trainer.train()
    assert not (tmp_path / stage.written.name).exists()
    trainer.save_student()
    trainer.save_state()
    assert (tmp_path / stage.written.name).exists()


def test_a_mean_with_an_adapter_is_refused(tmp_path):
    args = sft_config(tmp_path, average_with_start=True)
    tokenizer = load_tokenizer()
    with pytest.raises(ValueError, match="an adapter is trained; it needs the whole weights"):
        RelaySFTTrainer(
            model=load_student(),
            args=args,
            train_dataset=warmup_rows(tokenizer),
            processing_class=tokenizer,
            peft_config=LoraConfig(target_modules=["q_proj"]),
        )


def test_rows_of_another_tokenizer_are_refused(tmp_path):
    args = sft_config(tmp_path)
    rows = warmup_rows(load_tokenizer())
    check_rows(rows, Vocabulary(load_tokenizer()), args)
    for tokenizer in (byte_level(), load_tokenizer(has_call_tokens=False)):
        with pytest.raises(ValueError, match=r"Row 0 of rows\.jsonl does not fit the student's tokenizer"):
            check_rows(rows, Vocabulary(tokenizer), args)
    with pytest.raises(ValueError, match="does not fit the student's tokenizer"):
        sft_trainer(args, rows.select([0]).map(lambda row: {"completion": row["completion"] + "1"}))


def test_rows_may_end_in_any_end_token_of_the_model(tmp_path):
    vocabulary = Vocabulary(load_tokenizer())
    other_end = vocabulary.tokenizer.convert_tokens_to_ids("<unk>")
    rows = warmup_rows(vocabulary.tokenizer, 1).map(
        lambda row: {"completion_ids": [*row["completion_ids"][:-1], other_end]}
    )
    check_rows(rows, vocabulary, sft_config(tmp_path))


def test_rows_that_would_be_cut_are_refused(tmp_path):
    rows = warmup_rows(load_tokenizer())
    longest = max(len(p) + len(c) for p, c in zip(rows["prompt_ids"], rows["completion_ids"], strict=True))
    with pytest.raises(
        ValueError, match=f"The longest row of rows.jsonl has {longest} tokens, more than max_length=20"
    ):
        sft_trainer(sft_config(tmp_path, max_length=20), rows)
    check_rows(rows, Vocabulary(load_tokenizer()), sft_config(tmp_path, max_length=longest))


@pytest.mark.parametrize("mask", [[1], [2] * 40, []])
def test_a_mask_that_does_not_fit_its_row_is_refused(tmp_path, mask):
    rows = warmup_rows(load_tokenizer())
    bad = [mask if k == 3 else row["completion_mask"] for k, row in enumerate(rows)]
    rows = rows.remove_columns("completion_mask").add_column("completion_mask", bad)
    said = (
        r"Row 3 of rows.jsonl has \d+ completion_ids and a completion_mask of \d+ numbers; it must be one for each id"
    )
    with pytest.raises(ValueError, match=said):
        sft_trainer(sft_config(tmp_path), rows)


def test_rows_without_the_columns_are_refused(tmp_path):
    with pytest.raises(ValueError, match="has no column completion_ids, completion_mask, prompt_ids"):
        sft_trainer(sft_config(tmp_path), Dataset.from_list([{"completion": "1"}]))


# --- call tokens ---


def tiny_model(is_tied, size=40):
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=is_tied,
    )
    return Qwen3ForCausalLM(config)


def tables_of(model):
    return [model.get_input_embeddings().weight, model.get_output_embeddings().weight]


def cosine(weight, i, j):
    return torch.nn.functional.cosine_similarity(weight[i], weight[j], dim=0).item()


@pytest.mark.parametrize("model", [*map(tiny_model, (True, False)), "shipped"], ids=["tied", "untied", "shipped"])
def test_new_rows_differ_from_each_other_and_old_rows_stay(model):
    tokenizer = load_tokenizer(has_call_tokens=False)
    if model == "shipped":
        model = AutoModelForCausalLM.from_pretrained(PAIR / "student")
    else:
        model.resize_token_embeddings(len(tokenizer))
    old = [table.detach().clone() for table in tables_of(model)]
    assert add_call_tokens(tokenizer, SYNTAX) == 2
    grow_embeddings(model, tokenizer, 2, seed=0)
    is_tied = model.config.tie_word_embeddings
    assert (tables_of(model)[0].data_ptr() == tables_of(model)[1].data_ptr()) is is_tied
    for before, after in zip(old, tables_of(model), strict=True):
        assert after.shape[0] == len(tokenizer) == 21 and torch.equal(after[:19], before)
        assert abs(cosine(after, 19, 20)) < 0.5
        assert after[19:].std().item() == pytest.approx(before.std().item(), rel=0.5)
    if not is_tied:
        assert not torch.equal(tables_of(model)[0][19:], tables_of(model)[1][19:])


def test_a_padded_table_keeps_its_size_and_its_other_rows():
    tokenizer = load_tokenizer(has_call_tokens=False)
    model = tiny_model(is_tied=True, size=64)  # as models have that pad their vocabulary to a round number
    old = tables_of(model)[0].detach().clone()
    grow_embeddings(model, tokenizer, add_call_tokens(tokenizer, SYNTAX))
    new = tables_of(model)[0]
    assert new.shape[0] == 64 and torch.equal(new[:19], old[:19]) and torch.equal(new[21:], old[21:])
    assert not torch.equal(new[19:21], old[19:21])


def test_tags_that_are_there_already_are_left_alone():
    tokenizer = load_tokenizer()
    model = load_student()
    old = tables_of(model)[0].detach().clone()
    assert add_call_tokens(tokenizer, SYNTAX) == 0
    grow_embeddings(model, tokenizer, 0)
    assert torch.equal(tables_of(model)[0], old)


def test_other_special_tokens_stay_special():
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"extra_special_tokens": ["<mine>"]})
    add_call_tokens(tokenizer, SYNTAX)
    assert {"<mine>", "<call>", "</call>"} <= set(tokenizer.all_special_tokens)
