"""A short training in several processes whose student is drawn from its own vLLM server; rollouts call all the time.

    RANK=0 WORLD_SIZE=2 ... python tests/with_vllm/server_training.py MODEL FOLDER

Begins when FOLDER/start has the server's URL in it. Weight syncs are slow, and so is the teacher of every process but the first. In step
`STOP` all teachers wait for FOLDER/go, and FOLDER/waits_<rank> says so. Writes FOLDER/rank_<rank>.json: the metrics of every step, the rewards, the
largest difference between the server's logprobs and the trainer's, and when the server was paused and went on, when each draw began and
when it ended.
"""

import asyncio
import json
import os
import random
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from transformers import AutoTokenizer

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers.calling import Calling  # noqa: E402

from relay_trl.cli.endings import run  # noqa: E402
from relay_trl.engines.scripted import ScriptedEngine  # noqa: E402
from relay_trl.training import RelayGRPOConfig, RelayGRPOTrainer  # noqa: E402
from relay_trl.vocabulary import Vocabulary  # noqa: E402

PROBLEMS = ["so the call is 10 and ", "the sum of ab and 10 is ", "an ab", "10 10 so "]
STOP = 4
SYNC_S, TEACHER_S = 1.0, 0.5


def main():
    model, folder = sys.argv[1], Path(sys.argv[2])
    while not (folder / "start").exists():
        time.sleep(0.1)
    args = RelayGRPOConfig(
        output_dir=str(folder),
        use_vllm=True,
        vllm_mode="server",
        vllm_server_base_url=(folder / "start").read_text().removesuffix("/v1"),
        vllm_weights_folder=str(folder / "weights"),
        student_retries=1,
        student_timeout_s=60,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=48,
        max_prompt_length=64,
        max_steps=STOP,
        learning_rate=3e-2,
        max_zero_variance=1.0,
        max_truncated=1.0,
        reward="server_training:by_process",
        logging_steps=1,
        save_strategy="no",
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        ddp_timeout=240,
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    rows = Dataset.from_list([{"prompt": problem, "answer": "10"} for problem in PROBLEMS * 4])
    teacher = LateTeacher(tokenizer, args.process_index, folder)
    trainer = RelayGRPOTrainer(model, args, rows, processing_class=tokenizer, teacher=teacher)
    trainer._engines["student"] = Calling(trainer._engines["student"], args.syntax)
    teacher.trainer = trainer
    found = {name: [] for name in ("paused", "resumed", "begun", "ended", "differences", "rewards")}
    watch(trainer, found)
    try:
        trainer.train()
    finally:
        found["metrics"] = [entry for entry in trainer.state.log_history if "loss" in entry]
        found["weights"] = sum(p.abs().sum().item() for p in trainer.model.parameters())
        (folder / f"rank_{args.process_index}.json").write_text(json.dumps(found))


def by_process(correct, called, teacher_share):
    """Other numbers in every process, so that only one may be asked."""
    return [random.Random(os.getpid() + i).random() for i in range(len(correct))]


class LateTeacher(ScriptedEngine):
    """Says two words; late in all processes but the first, and in one step when it may."""

    def __init__(self, tokenizer, rank, folder):
        super().__init__(Vocabulary(tokenizer), lambda context: tokenizer.encode(" so 10"))
        self.rank, self.folder = rank, folder

    async def generate(self, context, max_tokens, stop=(), **options):
        await asyncio.sleep(TEACHER_S * self.rank)
        if self.trainer.state.global_step + 1 == STOP:
            (self.folder / f"waits_{self.rank}").touch()
            while not (self.folder / "go").exists():
                await asyncio.sleep(0.1)
        answer = ScriptedEngine(self.vocabulary, self._script)
        return await answer.generate(context, max_tokens, stop, **options)


def watch(trainer, found):
    """Notes what happens when, and makes syncs slow."""
    draw, score = trainer.rollouts.run, trainer._calculate_rewards
    if trainer.accelerator.is_main_process:
        client = trainer.vllm_generation.vllm_client
        send, pause, resume = client.update_named_params, client.pause, client.resume

        def sent(*args):
            send(*args)
            time.sleep(SYNC_S)

        def paused():
            found["paused"].append(time.monotonic())
            pause()

        def resumed():
            resume()
            found["resumed"].append(time.monotonic())

        client.update_named_params, client.pause, client.resume = sent, paused, resumed

    def drawn(problems, seeds, student):
        found["begun"].append(time.monotonic())
        traces = draw(problems, seeds, student)
        found["ended"].append(time.monotonic())
        found["differences"] += [difference(trainer, trace) for trace in traces if not trace.error]
        return traces

    def scored(*args):
        rewards = score(*args)
        found["rewards"].append(rewards.tolist())
        return rewards

    trainer.rollouts.run, trainer._calculate_rewards = drawn, scored


def difference(trainer, trace):
    """The largest between the server's logprobs of a rollout and the trainer's own; those of commands are made up."""
    ids = torch.tensor([trace.prompt_ids + trace.completion_ids])
    model = trainer.accelerator.unwrap_model(trainer.model)
    with torch.no_grad():
        logits = model(ids).logits[0, len(trace.prompt_ids) - 1 : -1].log_softmax(-1)
    own = logits.gather(1, ids[0, len(trace.prompt_ids) :, None])[:, 0]
    theirs = torch.tensor(trace.logprobs)
    return (own - theirs)[theirs != 0].abs().max().item()


if __name__ == "__main__":
    run(main)
