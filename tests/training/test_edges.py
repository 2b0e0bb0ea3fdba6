"""The edges of the trainers: arguments, teachers, datasets and texts that would train on the wrong thing, each refused or right."""

import inspect
import json

import pandas as pd
import pytest
import torch
from datasets import Dataset
from helpers.tokenizers import byte_level
from helpers.trainers import (
    PlannedTeacher,
    grpo_config,
    grpo_trainer,
    in_turn,
    load_student,
    load_tokenizer,
    rows,
)
from helpers.warmup import sft_config, warmup_rows
from jinja2 import Template

from relay_trl.cli.endings import run
from relay_trl.engines.base import EngineError
from relay_trl.engines.scripted import ScriptedEngine
from relay_trl.prompts import PromptBuilder, check_problem
from relay_trl.training import RelayGRPOTrainer, RelaySFTTrainer
from relay_trl.training.columns import to_dataset, used_columns
from relay_trl.training.metrics import effective_share, weight_sums
from relay_trl.training.trl_options import WORDS
from relay_trl.vocabulary import Vocabulary

MIXED = ("right", "call, right", "wrong", "call, wrong")


# --- arguments ---


@pytest.mark.parametrize(
    "name", ["tools", "environment_factory", "rollout_func", "reward_funcs", "reward_processing_classes"]
)
def test_arguments_of_trl_that_cannot_be_honoured_are_refused_by_name(tmp_path, name):
    with pytest.raises(TypeError, match=name):
        grpo_trainer(grpo_config(tmp_path), **{name: []})


@pytest.mark.parametrize("kind", [RelayGRPOTrainer, RelaySFTTrainer])
def test_no_trainer_takes_arguments_that_it_does_not_name(kind):
    kinds = {parameter.kind for parameter in inspect.signature(kind.__init__).parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}


def test_options_for_loading_a_model_that_is_loaded_are_refused(tmp_path):
    with pytest.raises(ValueError, match="model_init_kwargs is set, but the model is loaded already"):
        grpo_trainer(grpo_config(tmp_path, model_init_kwargs={"dtype": "float32"}))


# --- the teacher ---


def test_a_teacher_that_only_the_trainer_holds_is_asked_and_recorded(tmp_path):
    trainer = grpo_trainer(grpo_config(tmp_path, teacher=None, max_steps=1), in_turn("call, right"))
    trainer.train()
    assert trainer.state.log_history[0]["relay/delivered"] == 5
    assert trainer.relay_record().teacher == PlannedTeacher().name


def test_a_teacher_without_its_engine_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"args.teacher is '.*teacher', but no engine was given for it"):
        RelayGRPOTrainer(load_student(), grpo_config(tmp_path), rows(), processing_class=load_tokenizer())


# --- the warm-up's evaluation ---


@pytest.mark.parametrize("is_given_later", [False, True])
def test_an_evaluation_of_the_warm_up_has_no_loss_on_the_prompt(tmp_path, is_given_later):
    tokenizer = load_tokenizer()
    held_out = warmup_rows(tokenizer, 4)
    args = sft_config(tmp_path, per_device_eval_batch_size=4)
    given = None if is_given_later else held_out
    trainer = RelaySFTTrainer(load_student(), args, warmup_rows(tokenizer), tokenizer, eval_dataset=given)
    found = trainer.evaluate(held_out) if is_given_later else trainer.evaluate()
    losses, count = 0.0, 0
    for row in held_out:
        ids = torch.tensor([row["prompt_ids"] + row["completion_ids"]])
        with torch.no_grad():
            scores = trainer.model.eval()(ids).logits[0, len(row["prompt_ids"]) - 1 : -1].log_softmax(-1)
        losses -= scores.gather(1, ids[0, len(row["prompt_ids"]) :, None]).sum().item()
        count += len(row["completion_ids"])
    assert found["eval_loss"] == pytest.approx(losses / count, rel=1e-3)


def test_rows_of_an_evaluation_are_checked_too(tmp_path):
    with pytest.raises(ValueError, match="has no column"):
        RelaySFTTrainer(
            load_student(),
            sft_config(tmp_path),
            warmup_rows(load_tokenizer()),
            load_tokenizer(),
            eval_dataset=Dataset.from_list([{"completion": "1"}]),
        )


# --- texts ---


def test_rewards_and_logs_get_the_answer_and_who_wrote_it(tmp_path):
    seen = {}

    def look(prompts, completions, relay_trace, **columns):
        seen.update(texts=completions, traces=relay_trace)
        return [0.0] * len(prompts)

    args = grpo_config(tmp_path, max_steps=1, log_completions=True)
    trainer = grpo_trainer(args, in_turn(*MIXED), extra_rewards=[look])
    trainer.train()
    assert seen["texts"] == [trace.answer for trace in seen["traces"]]
    table = pd.read_parquet(tmp_path / "completions" / "completions_00001.parquet")
    assert sorted(table["completion"]) == sorted(seen["texts"])
    for _, row in table.iterrows():
        assert bool(row["relay/calls"]) == ("<call>" in row["relay/rollout"]) == bool(row["relay/teacher_words"])
        assert "<call>" not in row["completion"] and row["relay/teacher_words"] in row["relay/rollout"]
        assert (row["relay/teacher_share"] > 0) == bool(row["relay/teacher_words"])
    assert set(table["relay/reward"]) > {0.0, 1.5}


# --- datasets ---

FOREIGN = {"image": None, "images": None, "completions": "a", "prompts": "b", "messages": [{"x": 1}], "relay_trace": 1}


def test_columns_that_nobody_names_stay_behind(tmp_path):
    train = Dataset.from_list([{**row, **FOREIGN} for row in rows()])
    trainer = grpo_trainer(grpo_config(tmp_path, max_steps=1), in_turn(*MIXED), train=train)
    trainer.train()
    assert trainer.train_dataset.column_names == ["prompt", "answer"]


def test_a_reward_gets_the_columns_that_it_names(tmp_path):
    def by_kind(kind, relay_correct, **others):
        assert "solution" not in others and "answer" in others
        return [float(len(one)) for one in kind]

    trainer = grpo_trainer(grpo_config(tmp_path, max_steps=1), in_turn(*MIXED), extra_rewards=[by_kind])
    trainer.train()
    assert set(trainer.train_dataset.column_names) == {"prompt", "answer", "kind"}


def of_images(images, **columns):
    return []


@pytest.mark.parametrize(
    ("dataset", "rewards", "said"),
    [
        (Dataset.from_list([{"prompt": "1"}]), [], "data has no column 'answer'; it has prompt. It needs prompt"),
        (
            Dataset.from_list([{"problem": "1", "answer": "2"}]),
            [],
            "data has no column 'prompt'; it has problem, answer",
        ),
        (
            Dataset.from_list([{"prompt": "1", "answer": "2"}]).to_iterable_dataset(),
            [],
            "data is of type IterableDataset",
        ),
        (Dataset.from_list([{"prompt": " ", "answer": "2"}]), [], "data, row 0: the problem is empty"),
        (
            Dataset.from_list([{"prompt": None, "answer": "2"}]),
            [],
            "data, row 0: the problem is None; it must be a text",
        ),
        (Dataset.from_list([{"prompt": 7, "answer": "2"}]), [], "data, row 0: the problem is 7"),
        (Dataset.from_list([{"prompt": "1", "answer": "2", "images": "x"}]), [of_images], "rename the column"),
    ],
)
def test_datasets_that_cannot_be_used(dataset, rewards, said):
    with pytest.raises(ValueError, match=said):
        used_columns(dataset, rewards, "data")


@pytest.mark.parametrize(
    ("problem", "said"),
    [
        ([], "the problem is \\[\\]"),
        (["a", "b"], "the problem is \\['a', 'b'\\]; it must be a text, or a list of messages"),
        ([{"type": "text", "text": "a"}], "it must be a text, or a list of messages"),
        ([{"role": "user", "content": ""}], "the message of the user is empty"),
        ([{"role": "user", "content": None}], "a message has the content None"),
        ([{"role": "user", "content": [{"type": "image", "image": "x"}]}], "it must be a text, or text parts"),
        (float("nan"), "the problem is nan"),
    ],
)
def test_problems_that_are_none(problem, said):
    with pytest.raises(ValueError, match=said):
        check_problem(problem)


def test_text_parts_are_one_text():
    parts = [{"type": "text", "text": "1+1"}, {"type": "text", "text": "="}]
    builder = PromptBuilder(byte_level())
    assert builder.messages([{"role": "user", "content": parts}]) == [{"role": "user", "content": "1+1="}]


def test_answers_of_two_kinds_become_lists_and_other_columns_may_be_mixed():
    mixed = [{"prompt": "1", "answer": "2", "x": 1}, {"prompt": "3", "answer": ["4", "5"], "x": "a"}]
    assert to_dataset(mixed, None)["answer"] == [["2"], ["4", "5"]]
    with pytest.raises(ValueError, match="The column 'prompt' has values of several types \\(list, str\\)"):
        to_dataset([mixed[0], {"prompt": [{"role": "user", "content": "1"}], "answer": "2"}], None)


# --- chat templates ---


def with_template(template):
    tokenizer = byte_level()
    tokenizer.chat_template = template
    return tokenizer


USER_ONLY = "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
RAISING = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + USER_ONLY
)


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (RAISING, r"cannot render turns of system, user \(System role not supported\); leave system_prompt out"),
        (USER_ONLY, "leaves the system turn out, so system_prompt would have no effect; write it into prompt_template"),
    ],
)
def test_templates_without_a_system_role(template, said):
    PromptBuilder(with_template(template)).student_ids("so")
    for student, teacher in ((template, None), (None, ScriptedEngine(Vocabulary(with_template(template)), []))):
        with pytest.raises(ValueError, match=said):
            PromptBuilder(with_template(student), teacher, system="Be brief.")


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{{ messages[9].content }}", "{% for %}", "{{ raise_exception('no') }}"]
)
def test_templates_that_raise(template):
    with pytest.raises(ValueError, match="cannot render turns of user .*use another template"):
        PromptBuilder(with_template(template)).student_ids("so")


# --- engines that fail ---


def test_an_engine_that_breaks_is_one_error_and_no_group(tmp_path):
    trainer = grpo_trainer(grpo_config(tmp_path), in_turn(*MIXED))

    async def broken(*args, **options):
        raise KeyError("a fault of the engine")

    trainer._engines["student"].generate = broken
    with pytest.raises(KeyError, match="a fault of the engine"):
        trainer.train()


def test_groups_and_faults_of_templates_end_a_recipe_in_one_sentence(capsys):
    def group():
        raise ExceptionGroup("a", [ExceptionGroup("b", [EngineError("The engine is\nout.")]), KeyError("x")])

    for main, said in ((group, "The engine is out."), (lambda: Template("{% for %}"), "Expected an expression")):
        with pytest.raises(SystemExit) as ended:
            run(main)
        assert ended.value.code == 1
        assert capsys.readouterr().err.startswith(f"error: {said}")


def lossy(trainer, share):
    """Lets a share of the student's requests fail."""
    original, count = trainer._engines["student"].generate, iter(range(10**6))

    async def generate(*args, **options):
        if next(count) % share == 0:
            raise EngineError("The student's server is out for lunch.")
        return await original(*args, **options)

    trainer._engines["student"].generate = generate


def test_a_failed_request_of_the_student_costs_its_rollout_and_many_end_the_run(tmp_path):
    trainer = grpo_trainer(grpo_config(tmp_path, max_steps=1, max_student_failures=0.3), in_turn("right", "wrong"))
    lossy(trainer, 4)
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["relay/student_failures"] == 0.25 and entry["relay/teacher_failures"] == 0
    trainer = grpo_trainer(grpo_config(tmp_path, max_steps=1), in_turn("right", "wrong"))
    lossy(trainer, 4)
    with pytest.raises(RuntimeError, match=r"The student's engine failed in 25% of step 1's .*out for lunch"):
        trainer.train()


def test_an_evaluation_is_judged_as_a_whole(tmp_path):
    """One lost rollout of forty is no reason to stop, though it is an eighth of its batch; more than a tenth of all are."""
    asked = iter(range(10**6))
    args = grpo_config(tmp_path, num_generations_eval=1)
    trainer = grpo_trainer(
        args, lambda *_: "call, broken" if next(asked) == 3 else "right", eval_dataset=rows(40, "validation")
    )
    assert trainer.evaluate()["eval_relay/teacher_failures"] == pytest.approx(1 / 40)
    trainer = grpo_trainer(args, in_turn("call, broken"), eval_dataset=rows(40, "validation"))
    with pytest.raises(RuntimeError, match="failed in 20% of an evaluation"):  # as soon as it is certain
        trainer.evaluate()


# --- saves between draws, the profile, the effective share ---


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 3}, "eval_steps is 3, .*to a multiple of 2"),
        ({"save_strategy": "steps", "save_steps": 0.5}, "save_steps is 0.5, .*to a multiple of 2"),
        ({"enable_jit_checkpoint": True}, "enable_jit_checkpoint saves at any step"),
        ({"save_strategy": "best", "eval_strategy": "steps", "eval_steps": 4}, None),
        ({"save_strategy": "epoch"}, None),
    ],
)
def test_a_run_is_saved_between_two_draws_only(tmp_path, fields, said):
    fields = {"steps_per_generation": 2, **fields}
    if said is None:
        grpo_config(tmp_path, **fields)
        return
    with pytest.raises(ValueError, match=said):
        grpo_config(tmp_path, **fields)


def test_a_draw_that_ends_in_the_middle_of_an_update_is_counted_right(tmp_path):
    fields = {"steps_per_generation": 3, "gradient_accumulation_steps": 2, "save_strategy": "steps"}
    grpo_config(tmp_path, save_steps=3, **fields)
    with pytest.raises(ValueError, match="serves? 3 optimizer steps"):
        grpo_config(tmp_path, save_steps=2, **fields)


def test_the_profile_goes_on_beside_the_entropy_bonus(tmp_path):
    args = grpo_config(tmp_path, max_steps=3, profile_steps=2, call_entropy_coef=0.1)
    trainer = grpo_trainer(args, in_turn(*MIXED))
    trainer.train()
    profile = json.loads((tmp_path / "profile.json").read_text())
    assert profile["steps"] == 2 and profile["sections_s"]["forward, backward, optimizer"] > 0
    assert "_get_per_token_logps_and_entropies" in vars(trainer)  # what times it is still there


def test_the_effective_share_of_weights():
    assert effective_share(*weight_sums(torch.ones(7)).tolist()) == pytest.approx(1.0)
    assert effective_share(*weight_sums(torch.tensor([1.0, 0.0, 0.0, 0.0])).tolist()) == pytest.approx(0.25)
    noise = 0.02 * torch.randn(4096, 2048, generator=torch.Generator().manual_seed(0))
    by_rollout = effective_share(*weight_sums(noise.sum(1).exp()).tolist())
    assert by_rollout == pytest.approx(0.44, abs=0.1)  # as docs/training.md has it
    assert effective_share(*weight_sums(noise.exp()).tolist()) > 0.999


def test_what_lost_rollouts_do_to_the_gradient(tmp_path):
    """Four losses are means over rollouts, the lost ones counted; the others over the student's tokens."""
    args = grpo_config(tmp_path, max_steps=1, learning_rate=0.0, max_teacher_failures=1.0)
    trainer = grpo_trainer(args, in_turn("right", "call, broken", "wrong", "call, wrong"))
    trainer.train()
    trainer.model.train()
    inputs = trainer._buffered_inputs[0]
    alive = (inputs["tool_mask"] * inputs["completion_mask"]).sum(1) > 0
    others = {key: value[alive] if value.dim() else value for key, value in inputs.items()}

    def norm(batch):
        trainer.model.zero_grad()
        trainer._compute_loss(trainer.model, batch).backward()
        return sum(p.grad.square().sum() for p in trainer.model.parameters()).sqrt().item()

    for loss_type in WORDS["loss_type"]:
        trainer.loss_type = args.loss_type = loss_type
        is_mean_of_rollouts = loss_type in ("grpo", "sapo", "dr_grpo", "luspo")
        factor = alive.float().mean().item() if is_mean_of_rollouts else 1.0
        assert norm(inputs) / norm(others) == pytest.approx(factor, rel=1e-3), loss_type
