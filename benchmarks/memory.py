"""Whether the memory of a training stays flat: 300 steps of the arithmetic pair, with the main memory after each.

    python benchmarks/memory.py --model runs/arithmetic/sft

Measures the memory of the training process and its grading processes together.
"""

import argparse
import tempfile

import psutil
from tables import add_output, machine, save, table
from transformers import TrainerCallback

from relay_trl.cli.endings import run


class MemoryCallback(TrainerCallback):
    """Records the memory after every step, in MiB."""

    def __init__(self):
        self.mib: list[float] = []
        self._process = psutil.Process()

    def on_step_end(self, args, state, control, **kwargs):
        processes = [self._process, *self._process.children(recursive=True)]
        self.mib.append(sum(process.memory_info().rss for process in processes) / 2**20)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="data/arithmetic/student", help="the student (default: %(default)s)")
    parser.add_argument("--teacher", default="data/arithmetic/teacher", help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=300, help="(default: %(default)s)")
    parser.add_argument("--batch", type=int, default=64, help="rollouts a step (default: %(default)s)")
    add_output(parser, "memory")
    args = parser.parse_args()

    from datasets import Dataset
    from transformers import AutoTokenizer

    from relay_trl.data.arithmetic import problems
    from relay_trl.engines.loading import load_engine
    from relay_trl.training import RelayGRPOConfig, RelayGRPOTrainer

    callback = MemoryCallback()
    with tempfile.TemporaryDirectory() as folder:
        config = RelayGRPOConfig(
            output_dir=folder,
            teacher=args.teacher,
            answer_marker="#",
            per_device_train_batch_size=args.batch,
            max_completion_length=48,
            max_steps=args.steps,
            learning_rate=1e-4,
            bf16=False,
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            use_cpu=True,
        )
        trainer = RelayGRPOTrainer(
            model=args.model,
            args=config,
            train_dataset=Dataset.from_list(problems("train", 2048, seed=0)),
            processing_class=AutoTokenizer.from_pretrained(args.model),
            teacher=load_engine(args.teacher),
            callbacks=[callback],
        )
        trainer.train()
        trainer.grader.close()
    steps = [k for k in (1, 10, 50, 100, 200, 300) if k <= args.steps]
    row = {f"step {k}": callback.mib[k - 1] for k in steps}
    later = callback.mib[min(50, args.steps) - 1 :]
    row["most after step 50, % above step 50"] = 100 * (max(later) / later[0] - 1)
    row["last, % above step 50"] = 100 * (later[-1] / later[0] - 1)
    columns = {name: lambda row, name=name: row[name] for name in row}
    note = f"MiB of main memory, {args.batch} rollouts a step, student {args.model}. {machine()}"
    save(
        args.output_dir,
        "memory",
        {"mib": callback.mib, "arguments": vars(args)},
        f"{table(columns, [row], 1)}\n\n{note}",
    )


if __name__ == "__main__":
    run(main)
