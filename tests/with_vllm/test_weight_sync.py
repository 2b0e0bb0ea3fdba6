"""After large updates, the colocated engine's logprobs equal the trainer's: tied and untied heads, with and without LoRA."""

from functools import partial

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from relay_trl.training.lora import give_bias

pytestmark = pytest.mark.vllm

PROBLEMS = ["so the call is 10 and ", "the sum of ab and 10 is ", "an ab", "10 10 so "]
TOLERANCE = 1e-4
UPDATES = 3


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def trainer(request, tiny_model, tiny_tokenizer, tmp_path_factory):
    """A trainer with its engine, which is built once for all updates, as its start takes most of the time."""
    from relay_trl.training import RelayGRPOConfig, RelayGRPOTrainer

    path = tiny_model(tmp_path_factory.mktemp("student"), is_tied=request.param)
    args = RelayGRPOConfig(
        output_dir=str(tmp_path_factory.mktemp("run")),
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=128,
        per_device_train_batch_size=4,
        num_generations=4,
        max_completion_length=32,
        max_prompt_length=64,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
    )
    rows = Dataset.from_list([{"prompt": problem, "answer": "10"} for problem in PROBLEMS])
    trainer = RelayGRPOTrainer(str(path), args, rows, processing_class=tiny_tokenizer)
    assert trainer.model.config.tie_word_embeddings is request.param
    return trainer


@pytest.fixture(scope="module")
def lora_trainer(trainer):
    """The same trainer and engine, its model under an adapter from here on, which also trains the rows of two tokens."""
    rows = {"embed_tokens": [40, 41]} | ({} if trainer.model.config.tie_word_embeddings else {"lm_head": [40, 41]})
    modules = ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"]
    config = LoraConfig(r=4, target_modules=modules, trainable_token_indices=rows)
    trainer.model = trainer.vllm_generation.model = get_peft_model(trainer.model, config)
    give_bias(trainer.model)
    return trainer


def update(trainer, seed):
    """Moves every trained weight by about its own size."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in trainer.model.parameters():
            if weight.requires_grad:
                noise = torch.randn(weight.shape, generator=generator)
                weight += 0.5 * noise * weight.std().clamp(min=0.05)


def largest_difference(trainer):
    """Between the logprobs that the engine reports for what it samples and those that the trainer computes."""
    from relay_trl.training.student_engine import student_engine

    trainer.model.train()  # in an evaluation the trainer computes no logprobs
    trainer.vllm_generation.sync_weights()
    with student_engine(trainer, trainer._engines) as student:
        traces = trainer.rollouts.run(PROBLEMS, [1, 2, 3, 4], student)
    assert sum(trace.num_tokens for trace in traces) > 40
    differences = []
    for trace in traces:
        ids = torch.tensor([trace.prompt_ids + trace.completion_ids])
        with torch.no_grad():
            own, *_ = trainer._get_per_token_logps_and_entropies(
                trainer.model, ids, torch.ones_like(ids), trace.num_tokens
            )
        differences.append((own[0] - torch.tensor(trace.logprobs)).abs().max().item())
    return max(differences)


def test_the_engine_has_the_trainers_weights_after_every_update(trainer):
    assert largest_difference(trainer) < TOLERANCE
    for seed in range(UPDATES):
        update(trainer, seed)
        assert largest_difference(trainer) < TOLERANCE


def test_the_engine_has_the_adapter_merged_after_every_update(lora_trainer):
    for seed in range(UPDATES):
        update(lora_trainer, seed)
        assert largest_difference(lora_trainer) < TOLERANCE


def test_a_sync_leaves_the_trainers_weights_alone(lora_trainer):
    update(lora_trainer, UPDATES)
    before = {name: weight.detach().clone() for name, weight in lora_trainer.model.named_parameters()}
    lora_trainer.vllm_generation.sync_weights()
    after = dict(lora_trainer.model.named_parameters())
    assert [name for name in before if not torch.equal(before[name], after[name])] == []
    assert not any(getattr(module, "merged", False) for module in lora_trainer.model.modules())


def test_many_syncs_of_half_precision_do_not_move_the_weights_under_an_adapter(lora_trainer):
    """Last, as it changes the precision. Merging and subtracting alone does move them."""
    generation, model = lora_trainer.vllm_generation, lora_trainer.model.to(torch.bfloat16)

    def moved(named_weights):
        before = {name: w.detach().clone() for name, w in model.named_parameters() if ".base_layer." in name}
        for _ in range(20):
            for _ in named_weights():
                pass
        return sum((model.get_parameter(name) - w).abs().sum().item() for name, w in before.items())

    assert moved(generation._iter_named_params) == 0
    assert moved(partial(type(generation)._iter_named_params, generation)) > 0
