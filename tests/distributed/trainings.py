"""Runs small trainings in several processes and writes the results of each process.

    accelerate launch --config_file accelerate_configs/cpu_2.yaml tests/distributed/trainings.py FOLDER STUDENT NAME...

Rollouts follow plans chosen by their seeds, or are the model's own; neither depends on the process. A run writes to FOLDER:
rank_<i>.json with the results of process i, and a folder of weights for each name.
"""

import json
import os
import signal
import sys
from pathlib import Path

from accelerate.state import AcceleratorState
from transformers import TrainerCallback
from trl import ModelConfig

sys.path.insert(0, str(Path(__file__).parents[1]))

from helpers import trainers  # noqa: E402
from helpers.trainers import SYNTAX, grpo_config, grpo_trainer, load_student, load_tokenizer, rows  # noqa: E402
from helpers.warmup import sft_config, warmup_rows  # noqa: E402

from relay_trl.cli.endings import end_process  # noqa: E402
from relay_trl.rollout_files import RolloutReader  # noqa: E402
from relay_trl.training import RelaySFTTrainer  # noqa: E402
from relay_trl.training.lora import lora_config  # noqa: E402

PLANS = ("right", "call, right", "wrong", "call, wrong", "call, broken")
GROUP = 8
STEPS = 3


def choose(problem, seed):
    return PLANS[seed % len(PLANS)]


def choose_by_problem(problem, seed):
    """One reward for all rollouts of most problems."""
    return choose(problem, seed) if len(problem) % 3 == 0 else "right"


# What differs between the runs. The global batch is what counts, not its share per process.
RUNS = {
    "a group across the processes": {"batch": GROUP},
    "two groups": {"batch": 2 * GROUP},
    "micro-batches": {"batch": GROUP, "steps_per_generation": 2, "gradient_accumulation_steps": 2},
    "groups that teach": {"batch": 2 * GROUP, "dynamic_sampling": True, "choose": choose_by_problem},
    "the model's own words": {"batch": GROUP, "is_planned": False},
    "an adapter": {"batch": GROUP, "tags": "text"},
    "an adapter and call tokens": {"batch": GROUP, "tags": "tokens"},
}
# The warm-up: whole, and of an adapter with tags that are tokens of their own or not
WARMUPS = {"warm-up": None, "warm-up of an adapter": "text", "warm-up of an adapter and call tokens": "tokens"}
# A run that loses a process in the middle of a step, and the run that goes on from its newest whole checkpoint
KILLED, RESUMED = "killed", "resumed"
KILLED_AT = 2


def adapter(tags):
    if tags is None:
        return None
    tokenizer = load_tokenizer(has_call_tokens=tags == "tokens")
    options = ModelConfig(use_peft=True, lora_r=4, lora_dropout=0.0, lora_target_modules=["q_proj", "down_proj"])
    return lora_config(options, tokenizer, SYNTAX, trainers.student_folder())


class Recorder:
    """A per-rollout reward that keeps the completions of this process's share, batch by batch."""

    __name__ = "recorder"

    def __init__(self):
        self.batches = []

    def __call__(self, prompts, completion_ids, **columns):
        self.batches.append([[prompt, list(ids)] for prompt, ids in zip(prompts, completion_ids, strict=True)])
        return [0.0] * len(prompts)


class Death(TrainerCallback):
    """Kills the last process once a step has been taken and saved, while the others go on into the next one."""

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == KILLED_AT and args.process_index == args.world_size - 1:
            os.kill(os.getpid(), signal.SIGKILL)


def train_grpo(folder, options, num_processes, resume=None, callbacks=(), **fields):
    """One training; returns what this process holds at its end."""
    options = dict(options)
    is_planned, tags, plan = options.pop("is_planned", True), options.pop("tags", None), options.pop("choose", choose)
    recorder = Recorder()
    args = grpo_config(
        folder,
        num_generations=GROUP,
        per_device_train_batch_size=options.pop("batch") // num_processes,
        per_device_eval_batch_size=8 // num_processes,
        num_generations_eval=4,
        max_steps=STEPS,
        eval_strategy="steps",
        eval_steps=2,
        max_teacher_failures=1.0,
        temperature=1.3,
        reward_weights=[1.0, 0.0],
        **{**where(), **options, **fields},
    )
    trainer = grpo_trainer(
        args,
        plan if is_planned else None,
        eval_dataset=rows(4, "validation"),
        extra_rewards=[recorder],
        peft_config=adapter(tags),
        callbacks=list(callbacks),
    )
    seen, original = {"advantages": [], "rewards": []}, trainer.log

    def log(logs, *rest):
        # kept from step to step by TRL, the newest last
        seen["advantages"].append(list(trainer._logs["advantages"]))
        seen["rewards"].append([None if r != r else r for r in trainer._logs["rewards"]["difficulty_aware"]])
        return original(logs, *rest)

    trainer.log = log
    trainer.train(resume_from_checkpoint=resume)
    trainer.save_model(str(folder))
    metrics = [
        {key: value for key, value in entry.items() if "relay/" in key and not key.endswith("_s")}
        for entry in trainer.state.log_history
    ]
    trainer.accelerator.wait_for_everyone()
    found = {"files": RolloutReader(folder).poll()[1], "steps": trainer.state.global_step}
    found["gradients"] = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    return {**seen, **found, "metrics": metrics, "rollouts": recorder.batches}


def train_sft(folder, tags, num_processes):
    """A warm-up of two steps; returns its losses."""
    tokenizer = load_tokenizer()
    trainer = RelaySFTTrainer(
        model=load_student(),
        args=sft_config(folder, per_device_train_batch_size=8 // num_processes, **where()),
        train_dataset=warmup_rows(tokenizer),
        processing_class=tokenizer,
        peft_config=adapter(tags),
    )
    trainer.train()
    trainer.save_model(str(folder))
    return {"losses": [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]}


def where():
    """The options that put a training on CPUs: DeepSpeed takes `use_cpu` for a reason to stay out."""
    is_deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true"
    return {"use_cpu": False, "ddp_backend": "gloo"} if is_deepspeed else {}


def train(folder, name, num_processes):
    folder.mkdir(parents=True, exist_ok=True)
    AcceleratorState._reset_state()  # its DeepSpeed config keeps what the training before filled in
    if name in WARMUPS:
        return train_sft(folder, WARMUPS[name], num_processes)
    if name in (KILLED, RESUMED):
        options, folder = RUNS["a group across the processes"], folder.parent / KILLED
        saves = {"save_strategy": "steps", "save_steps": 1}
        if name == KILLED:
            return train_grpo(folder, options, num_processes, callbacks=[Death()], **saves)
        return train_grpo(folder, options, num_processes, resume="auto", **saves)
    return train_grpo(folder, RUNS[name], num_processes)


def main(folder, student, *names):
    # Only one of several processes would write the model, each into a folder of its own
    trainers.student_folder = lambda: student
    rank, num_processes = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    found = {name: train(Path(folder) / name, name, num_processes) for name in names}
    (Path(folder) / f"rank_{rank}.json").write_text(json.dumps(found))
    if num_processes > 1:
        end_process()


if __name__ == "__main__":
    main(*sys.argv[1:])
