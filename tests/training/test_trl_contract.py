"""Undocumented behaviour of the installed TRL that the training uses.

A failure after an upgrade of TRL shows what to look at. Nothing else is tested here.
"""

import inspect
import math

import pytest
import torch
from helpers.trainers import grpo_config, grpo_trainer, in_turn, rows
from trl.generation.vllm_generation import VLLMGeneration
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import RepeatSampler

from relay_trl.training import call_entropy, profile, rollouts

MIXED = ("right", "call to the end", "wrong", "call, wrong")


@pytest.fixture
def trainer(tmp_path):
    return grpo_trainer(grpo_config(tmp_path, learning_rate=0.0, max_steps=1), in_turn(*MIXED))


@pytest.fixture
def batch(trainer):
    """The trainer after one step, and the tensors that the step's loss was made of."""
    trainer.train()
    trainer.model.train()
    return trainer, dict(trainer._buffered_inputs[0])


def loss_and_gradients(trainer, inputs):
    trainer.model.zero_grad()
    loss = trainer._compute_loss(trainer.model, inputs)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


def is_same(left, right):
    return left[0] == right[0] and all(torch.equal(left[1][name], right[1][name]) for name in left[1])


def test_rollout_func_gets_repeated_prompts_and_the_trainer(trainer):
    seen, original = [], trainer.rollout_func
    trainer.rollout_func = lambda *args: (seen.append(args), original(*args))[1]
    trainer.train()
    ((prompts, given),) = seen
    assert given is trainer
    assert len(prompts) == 8 and all(len(set(prompts[k : k + 4])) == 1 for k in (0, 4)) and prompts[0] != prompts[4]


@pytest.mark.parametrize("key", ["prompt_ids", "completion_ids", "logprobs"])
def test_rollout_func_has_to_return(trainer, key):
    original = trainer.rollout_func
    trainer.rollout_func = lambda *args: {k: v for k, v in original(*args).items() if k != key}
    with pytest.raises(ValueError, match=rf"must return keys \['{key}'\]"):
        trainer.train()


def test_env_mask_becomes_the_loss_mask(batch):
    trainer, inputs = batch
    assert "env_mask" not in inputs and inputs["tool_mask"].shape == inputs["completion_ids"].shape
    traces = {tuple(t.completion_ids): t.loss_mask for t in trainer.seen_traces}
    for ids, mask, is_real in zip(
        inputs["completion_ids"], inputs["tool_mask"], inputs["completion_mask"], strict=True
    ):
        length = int(is_real.sum())
        assert mask[:length].tolist() == traces[tuple(ids[:length].tolist())]


def test_the_teachers_tokens_move_neither_loss_nor_gradient(batch):
    trainer, inputs = batch
    # In the rollout that the teacher ends, no token of the student's follows, so its tokens are in no context either
    row = next(i for i, m in enumerate(inputs["tool_mask"]) if (m * inputs["completion_mask"][i]).sum() == 4)
    masked = (inputs["tool_mask"][row] == 0) & (inputs["completion_mask"][row] == 1)
    assert masked.sum() > 5 and inputs["advantages"][row] != 0
    plain = loss_and_gradients(trainer, inputs)
    assert any(gradient.abs().sum() > 0 for gradient in plain[1].values())

    ids = inputs["completion_ids"].clone()
    ids[row, masked] = torch.randint(3, 15, (int(masked.sum()),), generator=torch.Generator().manual_seed(0))
    assert not torch.equal(ids, inputs["completion_ids"])
    assert is_same(loss_and_gradients(trainer, {**inputs, "completion_ids": ids}), plain)

    unmasked = {key: value for key, value in inputs.items() if key != "tool_mask"}
    assert not is_same(loss_and_gradients(trainer, unmasked), plain)  # or the mask would be in no use


@pytest.mark.parametrize("value", [0.0, -0.5, 40.0, -40.0])
def test_any_value_at_a_masked_position_leaves_the_loss_alone(batch, value):
    trainer, inputs = batch
    with torch.no_grad():
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        old, *_ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, attention, inputs["completion_ids"].shape[1]
        )
    plain = loss_and_gradients(trainer, {**inputs, "old_per_token_logps": old})
    filled = torch.where(inputs["tool_mask"] == 0, value, old)
    assert is_same(loss_and_gradients(trainer, {**inputs, "old_per_token_logps": filled}), plain)


def test_entropies_of_a_loss_can_be_kept_and_the_number_mask_finds_the_calls_digits(batch):
    trainer, inputs = batch
    kept, compute = [], trainer._get_per_token_logps_and_entropies
    trainer._get_per_token_logps_and_entropies = lambda *args, **kwargs: (
        kept.append(compute(*args, **kwargs)) or kept[-1]
    )
    trainer._compute_loss(trainer.model, inputs)
    ((_, entropies, _),) = kept  # one forward pass a loss
    assert entropies.requires_grad and entropies.shape == inputs["completion_ids"].shape
    mask = call_entropy.number_mask(inputs, trainer._vocabulary, trainer.args.syntax)
    marked = [
        trainer._vocabulary.decode(ids[row == 1].tolist())
        for ids, row in zip(inputs["completion_ids"], mask, strict=True)
    ]
    assert sorted(marked) == ["", "", "", "", "2", "2", "90", "90"]

    with torch.no_grad():  # worked out from the model's own logits
        ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
        attention = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
        logits = trainer.model(ids, attention_mask=attention).logits[:, inputs["prompt_ids"].shape[1] - 1 : -1]
        expected = torch.distributions.Categorical(logits=logits).entropy()
    real = inputs["completion_mask"] == 1
    assert (entropies - expected)[real].abs().max() < 1e-4
    assert call_entropy.mean_entropy(entropies, mask).item() == pytest.approx(
        expected[mask == 1].mean().item(), rel=1e-4
    )


def corrected(trainer, fill):
    """One step as with vLLM, whose logprobs TRL compares with its own; `fill` stands where the student did not sample."""
    trainer.use_vllm, trainer._last_loaded_step = True, 0
    engine = trainer._engines["student"]

    def roll_out(prompts, _):
        traces = trainer.rollouts.run(prompts, list(range(len(prompts))), engine)
        output = rollouts.to_trl(traces, has_logprobs=True)
        output["logprobs"] = [
            [p if is_student else fill for p, is_student in zip(logprobs, trace.loss_mask, strict=True)]
            for logprobs, trace in zip(output["logprobs"], traces, strict=True)
        ]
        return output

    trainer.rollout_func = roll_out
    torch.manual_seed(0)  # TRL shuffles the rollouts of a step
    trainer.train()
    return trainer.state.log_history[0]


def test_logprobs_at_masked_positions_do_not_reach_the_correction_for_vllm(tmp_path):
    logs = []
    for fill in (0.0, -7.0):
        fresh = grpo_trainer(grpo_config(tmp_path, max_steps=1), in_turn(*MIXED))
        logs.append((corrected(fresh, fill), fresh))
    names = ["loss", "grad_norm", "sampling/sampling_logp_difference/mean", "sampling/importance_sampling_ratio/mean"]
    for name in names:
        assert math.isfinite(logs[0][0][name]) and logs[0][0][name] == logs[1][0][name], name
    assert logs[0][0]["grad_norm"] > 0


@pytest.fixture(autouse=True)
def keep_traces(monkeypatch):
    """Keeps what the reward step was given, as `trainer.seen_traces`."""
    from relay_trl.training import RelayGRPOTrainer

    original = RelayGRPOTrainer._calculate_rewards

    def spy(self, inputs, *args):
        self.seen_traces = [row[rollouts.TRACE_COLUMN] for row in inputs]
        self.seen_columns = set(inputs[0])
        self.seen_matrix = original(self, inputs, *args)
        return self.seen_matrix

    monkeypatch.setattr(RelayGRPOTrainer, "_calculate_rewards", spy)


def test_extra_columns_and_those_of_the_dataset_reach_the_rewards(tmp_path):
    seen = {}

    def look(prompts, completions, completion_ids, kind, solution, **columns):
        seen.update(columns, prompts=prompts, completion_ids=completion_ids, kind=kind, solution=solution)
        return [0.0] * len(prompts)

    trainer = grpo_trainer(grpo_config(tmp_path, max_steps=1), in_turn(*MIXED), extra_rewards=[look])
    trainer.train()
    assert {"relay_trace", "relay_correct", "relay_teacher_share", "answer", "kind", "solution"} <= set(seen)
    assert "env_mask" not in seen and "logprobs" not in seen
    assert [trace.completion_ids for trace in seen["relay_trace"]] == seen["completion_ids"]
    assert seen["relay_correct"] == [True, True, False, False] * 2
    assert seen["relay_teacher_share"] == [trace.teacher_share for trace in seen["relay_trace"]]


def test_calculate_rewards_returns_the_matrix_that_the_advantages_are_made_of(batch):
    trainer, inputs = batch
    assert {"prompt", "answer", rollouts.TRACE_COLUMN} <= trainer.seen_columns
    assert trainer.seen_matrix.shape == (8, 1)
    groups = trainer.seen_matrix[:, 0].view(2, 4)
    expected = (groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)
    assert torch.tensor(list(trainer._logs["advantages"])).view(2, 4).sub(expected).abs().max() < 1e-5


def test_a_row_of_nan_gets_no_advantage_and_is_in_no_baseline(tmp_path):
    plans = ("right", "call, broken", "wrong", "wrong")
    args = grpo_config(tmp_path, max_steps=1, max_teacher_failures=1.0)
    trainer = grpo_trainer(args, in_turn(*plans))
    trainer.train()
    assert trainer.seen_matrix[:, 0].isnan().tolist() == [False, True, False, False] * 2
    advantages = torch.tensor(list(trainer._logs["advantages"])).view(2, 4)
    scored = torch.tensor([1.5, 0.0, 0.0])
    expected = (scored - scored.mean()) / (scored.std() + 1e-4)
    for group in advantages:
        assert group[1] == 0 and (group[[0, 2, 3]] - expected).abs().max() < 1e-5


def test_an_answer_that_the_teacher_ended_counts_as_ended(tmp_path):
    trainer = grpo_trainer(grpo_config(tmp_path, max_steps=1), in_turn("call to the end", "endless"))
    trainer.train()
    assert trainer.state.log_history[0]["completions/clipped_ratio"] == 0.5


def test_metrics_are_kept_by_mode_and_logged_under_eval(tmp_path):
    trainer = grpo_trainer(grpo_config(tmp_path), in_turn(*MIXED), eval_dataset=rows(4, "validation"))
    assert set(trainer._metrics) == {"train", "eval"}
    trainer._metrics["eval"]["relay/mine"] += [1.0, 2.0, float("nan")]
    found = trainer.evaluate()
    # in what `evaluate` returns too, which picks the best checkpoint
    assert found["eval_relay/mine"] == trainer.state.log_history[-1]["eval_relay/mine"] == 1.5
    assert "eval_relay/accuracy" in found and not trainer._metrics["eval"]


def test_what_the_students_engine_is_made_from(trainer):
    parameters = inspect.signature(unwrap_model_for_generation).parameters
    assert {"gather_deepspeed3_params", "gradient_checkpointing_kwargs"} <= set(parameters)
    with trainer._dist.summon_full_params(trainer.model, recurse=False):
        pass
    assert trainer._tokenizer is trainer.processing_class
    assert trainer._tokenizer.eos_token_id in trainer.eos_token_ids
    assert {"use_vllm", "vllm_mode", "model_wrapped", "num_generations", "num_generations_eval"} <= set(vars(trainer))


def test_what_the_vllm_engine_and_its_weight_sync_are_made_from():
    assert inspect.isgeneratorfunction(VLLMGeneration._iter_named_params)
    assert list(inspect.signature(VLLMGeneration.sync_weights).parameters) == ["self"]
    # `_vllm_awake` does what `generate` does around its own requests
    names = VLLMGeneration.generate.__code__.co_names
    assert {"mode", "enable_sleep_mode", "_llm_weights_sleeping", "sync_weights", "wake_up", "sleep"} <= set(names)
    assert {"llm", "_llm_weights_sleeping"} <= set(VLLMGeneration._init_vllm.__code__.co_names)


def test_a_step_goes_through_the_methods_that_the_profile_times(trainer):
    counts = dict.fromkeys(profile._TRL_SECTIONS, 0)

    def counted(name, original):
        def call(*args, **kwargs):
            counts[name] += 1
            return original(*args, **kwargs)

        return call

    for name in counts:
        setattr(trainer, name, counted(name, getattr(trainer, name)))
    trainer.train()
    assert all(counts.values()), counts
    assert callable(VLLMGeneration.sync_weights) and callable(trainer._generate_single_turn)


def test_the_order_of_the_prompts_is_trls_in_every_epoch_and_after_a_restart():
    order = {"mini_repeat_count": 2, "batch_size": 3, "repeat_count": 2, "seed": 4}
    theirs = RepeatSampler(range(9), **order)
    epochs, now = [list(theirs) for _ in range(3)], [0]
    ours = rollouts.EpochSampler(RepeatSampler(range(9), **order), lambda: now[0])
    assert len(ours) == len(theirs) and epochs[0] != epochs[1]
    for now[0] in (0, 1, 2, 1):
        assert list(ours) == epochs[now[0]]
    assert list(RepeatSampler(range(9), **order)) == epochs[0]  # once TRL's goes by epochs, ours can go
