"""Tight micro-batches: the same loss and gradient as TRL's for every loss type, fewer tokens, and an evaluation that only rolls out."""

import pytest
import torch
from helpers.trainers import grpo_config, grpo_trainer, rows

from relay_trl.training import grpo
from relay_trl.training.batches import tight_forward, tighten, trim, why_not_sorted

PLANS = ("right", "endless", "wrong", "call to the end")
LOSSES = ("grpo", "dapo", "dr_grpo", "bnpo", "cispo", "sapo", "luspo", "vespo")


def by_length(problem, seed):
    return PLANS[seed % len(PLANS)]


@pytest.fixture(scope="module")
def draw(tmp_path_factory):
    """A trainer after one draw of 16 rows for 2 steps of 2 micro-batches, and the micro-batches as TRL made them."""
    made, monkeypatch = [], pytest.MonkeyPatch()
    monkeypatch.setattr(grpo, "tighten", lambda batches, trainer: (made.append(batches), tighten(batches, trainer))[1])
    batch = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    fields = {"beta": 0.1, "learning_rate": 0.0, "max_steps": 2, **batch}
    trainer = grpo_trainer(grpo_config(tmp_path_factory.mktemp("draw"), **fields), by_length)
    trainer.train()
    monkeypatch.undo()
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 2
    for batch in made[0]:
        batch["advantages"] = torch.randn(len(batch["advantages"]))  # whatever the rewards were
    return trainer, made[0]


def step(trainer, batches):
    """Loss and gradient of one optimizer step."""
    trainer.model.zero_grad()
    loss = sum(trainer._compute_loss(trainer.model, batch) for batch in batches)
    loss.backward()
    gradient = torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None])
    return loss.item(), gradient


def tokens(batches):
    return sum(batch["prompt_ids"].numel() + batch["completion_ids"].numel() for batch in batches)


def test_loss_and_gradient_stay_for_every_loss_type(draw):
    trainer, wide = draw
    for loss_type in LOSSES:
        trainer.loss_type = trainer.args.loss_type = loss_type
        tight = tighten(wide, trainer)
        assert tokens(tight) < tokens(wide)
        for first in (0, 2):  # each optimizer step keeps its own rows
            before, after = step(trainer, wide[first : first + 2]), step(trainer, tight[first : first + 2])
            assert after[0] == pytest.approx(before[0], rel=1e-4, abs=1e-6), loss_type
            assert (after[1] - before[1]).norm() < 1e-4 * before[1].norm(), loss_type


def test_rows_stay_where_a_loss_depends_on_their_micro_batch(draw, monkeypatch):
    trainer, wide = draw
    trainer.loss_type = trainer.args.loss_type = "bnpo"
    assert why_not_sorted(trainer) == "loss_type='bnpo'"
    kept = tighten(wide, trainer)
    assert [batch["advantages"].tolist() for batch in kept] == [batch["advantages"].tolist() for batch in wide]
    monkeypatch.setattr("relay_trl.training.batches.why_not_sorted", lambda trainer: None)
    moved = tighten(wide, trainer)
    assert step(trainer, moved[:2])[0] != pytest.approx(step(trainer, wide[:2])[0], rel=1e-3)
    trainer.loss_type = trainer.args.loss_type = "dapo"


def test_the_longest_come_first_and_no_row_is_lost(draw):
    trainer, wide = draw
    tight = tighten(wide, trainer)
    for first in (0, 2):
        lengths = [(r["prompt_mask"].sum(1) + r["completion_mask"].sum(1)).tolist() for r in tight[first : first + 2]]
        assert sum(lengths, []) == sorted(sum(lengths, []), reverse=True)

        def contents(batches, first=first):
            found = []
            for batch in batches[first : first + 2]:
                for k, mask in enumerate(batch["completion_mask"].bool()):
                    found.append((batch["completion_ids"][k][mask].tolist(), float(batch["advantages"][k])))
            return sorted(found)

        assert contents(tight) == contents(wide)


def test_a_trimmed_width_is_a_multiple_where_asked():
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]])
    batch = {"prompt_ids": mask.flip(1), "prompt_mask": mask.flip(1), "completion_ids": mask, "completion_mask": mask}
    ratio = torch.ones(2, 1)
    for multiple, width in ((1, 3), (2, 4), (4, 4), (8, 8)):
        cut = trim({**batch, "importance_sampling_ratio": ratio, "tool_mask": mask}, multiple)
        assert {name: value.shape[1] for name, value in cut.items()} == {
            **dict.fromkeys(batch, width),
            "importance_sampling_ratio": 1,
            "tool_mask": width,
        }
        assert cut["prompt_mask"].sum() == cut["completion_mask"].sum() == mask.sum()


def test_logprobs_of_a_draw_are_those_of_its_rows():
    generator = torch.Generator().manual_seed(0)
    prompts, completions = (
        torch.randint(1, 6, (9,), generator=generator),
        torch.randint(1, 9, (9,), generator=generator),
    )
    columns = torch.arange(13)
    mask = ((columns >= 5 - prompts[:, None]) & (columns < 5 + completions[:, None])).long()
    ids = torch.randint(1, 99, mask.shape, generator=generator) * mask
    read = []

    def forward(ids, mask, kept):
        read.append(ids.numel())
        return (ids[:, -kept:] * 2.0) * mask[:, -kept:]

    found = tight_forward(forward, ids, mask, kept=8, rows=2)
    assert torch.equal(found, ids[:, 5:] * 2.0)
    assert sum(read) < ids.numel()


def test_an_evaluation_costs_no_forward_pass(tmp_path, monkeypatch):
    args = grpo_config(tmp_path, beta=0.1, per_device_eval_batch_size=4, steps_per_generation=2)
    trainer = grpo_trainer(args, by_length, eval_dataset=rows(4, "validation"))
    passes = []
    for model in (trainer.model, trainer.ref_model):
        model.register_forward_hook(lambda *given: passes.append(given))
    found = trainer.evaluate()
    assert not passes
    assert 0 <= found["eval_relay/accuracy"] <= 1 and "eval_loss" not in found and "eval_kl" not in found
