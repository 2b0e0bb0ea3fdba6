"""A short training whose student is drawn from its own vLLM server, in as many processes as it is started with.

    RANK=0 WORLD_SIZE=1 ... python tests/with_vllm/server_training.py MODEL URL FOLDER [KEY=VALUE ...]

Writes FOLDER/rank_<i>.json: the metrics of every step, the largest difference between the server's logprobs and the trainer's, and when the
first request of each draw was sent and each weight sync ended. DELAY=rank:seconds makes a process late, SYNC_S=seconds a sync slow, TEACHER_S=seconds the
teacher, and STOP=step waits for FOLDER/go in the middle of that step's rollouts.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer

from relay_trl.cli import run
from relay_trl.engines.scripted import ScriptedEngine
from relay_trl.training import RelayGRPOConfig, RelayGRPOTrainer
from relay_trl.vocabulary import Vocabulary

PROBLEMS = ["so the call is 10 and ", "the sum of ab and 10 is ", "an ab", "10 10 so "]


def main():
    model, url, folder, *given = sys.argv[1:]
    given = dict(word.split("=", 1) for word in given)
    args = RelayGRPOConfig(
        output_dir=folder,
        use_vllm=True,
        vllm_mode="server",
        vllm_server_base_url=url.removesuffix("/v1"),
        vllm_weights_folder=str(Path(folder) / "weights"),
        student_retries=1,
        student_timeout_s=60,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=32,
        max_prompt_length=64,
        max_steps=3,
        learning_rate=3e-2,
        max_zero_variance=1.0,
        max_truncated=1.0,
        reward="student_server_rewards:length",
        logging_steps=1,
        save_strategy="no",
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        ddp_timeout=240,
    )
    rank = args.process_index
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = Dataset.from_list([{"prompt": problem, "answer": "10"} for problem in PROBLEMS * 4])
    teacher = None
    if "TEACHER_S" in given:
        teacher = LateTeacher(tokenizer, float(given["TEACHER_S"]) if rank else 0.0)
    trainer = RelayGRPOTrainer(model, args, rows, processing_class=tokenizer, teacher=teacher)
    found = {"sent": [], "synced": [], "differences": [], "folder": folder}
    watch(trainer, found, given, rank)
    try:
        trainer.train()
    finally:
        found["metrics"] = [entry for entry in trainer.state.log_history if "loss" in entry]
        found["weights"] = sum(p.abs().sum().item() for p in trainer.model.parameters())
        (Path(folder) / f"rank_{rank}.json").write_text(json.dumps(found))


class LateTeacher(ScriptedEngine):
    """Says two words, after a while."""

    def __init__(self, tokenizer, seconds):
        super().__init__(Vocabulary(tokenizer), lambda context: tokenizer.encode(" so 10"))
        self.seconds = seconds

    async def generate(self, context, max_tokens, stop=(), **options):
        await asyncio.sleep(self.seconds)
        answer = ScriptedEngine(self.vocabulary, self.script)
        return await answer.generate(context, max_tokens, stop, **options)


def watch(trainer, found, given, rank):
    """Notes what happens when, and makes late what is to be late."""
    late_rank, late_s = (float(word) for word in given.get("DELAY", "-1:0").split(":"))
    stop = int(given.get("STOP", 0))
    generation, draw = trainer.vllm_generation, trainer.rollouts.run
    sync = generation.sync_weights

    if trainer.accelerator.is_main_process and "SYNC_S" in given:
        client = generation.vllm_client
        send = client.update_named_params

        def slow(*args):
            send(*args)
            time.sleep(float(given["SYNC_S"]))

        client.update_named_params = slow

    def synced():
        if rank == late_rank:
            time.sleep(late_s)
        sync()
        found["synced"].append(time.time())

    def drawn(problems, seeds, student):
        found["sent"].append(time.time())
        if stop and trainer.state.global_step + 1 == stop:
            (Path(found["folder"]) / f"waits_{rank}").touch()
            while not (Path(found["folder"]) / "go").exists():
                time.sleep(0.1)
        traces = draw(problems, seeds, student)
        found["differences"].append(
            max((difference(trainer, trace) for trace in traces if not trace.error), default=0.0)
        )
        return traces

    generation.sync_weights, trainer.rollouts.run = synced, drawn


def difference(trainer, trace):
    """The largest between the server's logprobs of a rollout and the trainer's own."""
    ids = torch.tensor([trace.prompt_ids + trace.completion_ids])
    model = trainer.accelerator.unwrap_model(trainer.model)
    with torch.no_grad():
        logits = model(ids).logits[0, len(trace.prompt_ids) - 1 : -1].log_softmax(-1)
    own = logits.gather(1, ids[0, len(trace.prompt_ids) :, None])[:, 0]
    mask = torch.tensor(trace.loss_mask, dtype=torch.bool)
    return (own - torch.tensor(trace.logprobs))[mask].abs().max().item()


if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(__file__))
    run(main)
