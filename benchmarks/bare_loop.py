"""A GRPO step of the arithmetic pair beside a bare torch loop that samples and learns from as many tokens.

    python benchmarks/bare_loop.py

Both train the warmed-up student alone, on the same problems, from the same weights. The bare loop has what no trainer can do without:
a prefill, one forward pass with a key/value cache for each token, and one forward and backward pass with an optimizer step over rows
of the very lengths that the trainer had drawn. Steps take turns. Processor time is counted, so that others on the machine hardly matter;
grading, which has processes of its own, is left out.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from datasets import Dataset
from tables import add_output, machine, save, table
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, TrainerCallback

from relay_trl.cli.endings import run
from relay_trl.data.arithmetic import problems
from relay_trl.training import RelayGRPOConfig, RelayGRPOTrainer

STUDENT = Path(__file__).parents[1] / "data" / "arithmetic" / "warmed_up"


class Bare:
    """The loop, with a model and an optimizer of its own."""

    def __init__(self, pad: int):
        self.model = AutoModelForCausalLM.from_pretrained(STUDENT, dtype=torch.float32)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6)
        self.pad = pad

    def step(self, prompts: list[list[int]], lengths: list[int]):
        """Samples rows of `lengths` tokens and learns from them."""
        width = max(map(len, prompts))
        ids = torch.tensor([[self.pad] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        cache, new = DynamicCache(), ids
        with torch.no_grad():
            for _ in range(max(lengths)):
                positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -new.shape[1] :]
                given = {"attention_mask": mask, "position_ids": positions, "past_key_values": cache}
                logits = self.model(input_ids=new, logits_to_keep=1, use_cache=True, **given).logits[:, -1]
                new = torch.multinomial(logits.softmax(-1), 1)
                ids, mask = torch.cat([ids, new], 1), torch.cat([mask, torch.ones_like(new)], 1)
        own = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        mask[:, width:] = own
        logits = self.model(input_ids=ids, attention_mask=mask, logits_to_keep=max(lengths) + 1).logits[:, :-1]
        logprobs = logits.log_softmax(-1).gather(2, ids[:, width:, None])[..., 0]
        advantages = torch.linspace(-1, 1, len(ids))[:, None]
        loss = -(advantages * (logprobs - logprobs.detach()).exp() * own).sum() / own.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


class Turns(TrainerCallback):
    """Times each step of the trainer, and lets the bare loop make the same step after it."""

    def __init__(self, trainer: RelayGRPOTrainer, bare: Bare):
        self.trainer, self.bare = trainer, bare
        self.found: dict[str, list[float]] = {"trainer": [], "bare loop": [], "tokens": []}

    def on_step_begin(self, args, state, control, **kwargs):
        self.started = time.process_time()

    def on_step_end(self, args, state, control, **kwargs):
        ended = time.process_time()
        traces = self.trainer._draw.traces
        self.bare.step([trace.prompt_ids for trace in traces], [trace.num_tokens for trace in traces])
        if state.global_step > 1:  # the first one starts processes and fills caches
            self.found["trainer"].append(ended - self.started)
            self.found["bare loop"].append(time.process_time() - ended)
            self.found["tokens"].append(float(sum(trace.num_tokens for trace in traces)))


def measure(args, folder: str) -> dict[str, list[float]]:
    tokenizer = AutoTokenizer.from_pretrained(STUDENT)
    config = RelayGRPOConfig(
        output_dir=folder,
        answer_marker="#",
        num_generations=8,
        per_device_train_batch_size=args.batch,
        max_prompt_length=16,
        max_completion_length=48,
        max_steps=args.steps + 1,
        learning_rate=1e-6,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
        max_zero_variance=1.0,
    )
    rows = Dataset.from_list(problems("train", 1024, seed=0))
    model = AutoModelForCausalLM.from_pretrained(STUDENT, dtype=torch.float32)
    trainer = RelayGRPOTrainer(model, config, rows, processing_class=tokenizer)
    turns = Turns(trainer, Bare(tokenizer.pad_token_id or 0))
    trainer.add_callback(turns)
    trainer.train()
    trainer.grader.close()
    return turns.found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=256, help="rollouts a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=10, help="timed (default: %(default)s)")
    add_output(parser, "bare_loop")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(args, folder)
    ratios = [own / bare for own, bare in zip(found["trainer"], found["bare loop"], strict=True)]
    columns = {
        "tokens of a step": lambda row: row["tokens"],
        "trainer, s": lambda row: row["trainer"],
        "bare loop, s": lambda row: row["bare loop"],
        "trainer / bare loop": lambda row: ratios,
    }
    note = f"Processor time, median [smallest, largest] of {args.steps} steps of {args.batch} rollouts. {machine()}"
    save(args.output_dir, "bare_loop", {**found, "arguments": vars(args)}, table(columns, [found]) + "\n\n" + note)


if __name__ == "__main__":
    run(main)
