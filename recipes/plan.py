"""Prints what a training or a service will need, from configs alone.

python recipes/plan.py --config recipes/configs/arithmetic/grpo_relay.yaml --student data/arithmetic/student
python recipes/plan.py --student Qwen/Qwen3-1.7B --teacher Qwen/Qwen3-8B --requests_per_s 50
"""

import sys
from dataclasses import dataclass, field

from transformers import HfArgumentParser

from relay_trl.cli.endings import run
from relay_trl.data.config import DataConfig
from relay_trl.planning import report
from relay_trl.training import RelayGRPOConfig, RelaySFTConfig


@dataclass
class PlanConfig:
    """The options of a plan, of a training (`config`) or of a service (`requests_per_s`).

    Args:
        config (`str`, *optional*): YAML of grpo_relay.py or sft_warmup.py.
        accelerate_config (`str`, *optional*), num_processes (`int`, *optional*): how it is launched.
        gpu_memory (`float`, defaults to `80`): GiB of one GPU.
        student (`str`, *optional*), teacher (`str`, *optional*): folder or Hub id; by default those of the YAML. Name the
            teacher if the YAML has its URL.
        mean_prompt, mean_tokens (`int`, *optional*): expected tokens of a prompt and of an answer; by default half of the limits.
        rho (`float`, defaults to `0.01`), calls (`float`, defaults to `1`): expected teacher share, and calls in an answer.
        requests_per_s (`float`, *optional*): of a service. Its table goes from 1 to 100,000 and has this row too.
        student_curve, teacher_curve (`str`, *optional*): files of benchmarks/service_curves.py; estimated by default.
        slowdown (`float`, defaults to `2`): 95 % of the answers may take at most so many times as long as alone.
    """

    config: str | None = field(default=None, metadata={"help": "YAML of a training."})
    accelerate_config: str = field(
        default="accelerate_configs/single_gpu.yaml", metadata={"help": "How it is launched."}
    )
    num_processes: int | None = field(default=None, metadata={"help": "Over that of accelerate_config."})
    gpu_memory: float = field(default=80.0, metadata={"help": "GiB of one GPU."})
    student: str | None = field(default=None, metadata={"help": "Folder or Hub id."})
    teacher: str | None = field(default=None, metadata={"help": "Folder or Hub id."})
    mean_prompt: int | None = field(default=None, metadata={"help": "Prompt tokens to expect."})
    mean_tokens: int | None = field(default=None, metadata={"help": "Completion tokens to expect."})
    rho: float = field(default=0.01, metadata={"help": "The teacher's share to expect."})
    calls: float = field(default=1.0, metadata={"help": "Calls an answer to expect."})
    requests_per_s: float | None = field(default=None, metadata={"help": "Of a service."})
    student_curve: str | None = field(default=None, metadata={"help": "Measured service curve."})
    teacher_curve: str | None = field(default=None, metadata={"help": "Measured service curve."})
    slowdown: float = field(default=2.0, metadata={"help": "Promise to the 95th answer of a hundred."})

    def __post_init__(self):
        if (self.config is None) == (self.requests_per_s is None):
            raise ValueError("Give either --config (the YAML of a training) or --requests_per_s (a service).")
        if self.requests_per_s is not None and not (self.student and self.teacher):
            raise ValueError("A service needs --student and --teacher, each a folder or a Hub id.")


def main():
    (config, unknown) = HfArgumentParser(PlanConfig).parse_args_into_dataclasses(return_remaining_strings=True)  # type: ignore
    if unknown:
        raise ValueError(f"Unknown option {unknown[0]!r}. Run with --help for all options.")
    if config.config is not None:
        options = report.Options(config.config, [RelayGRPOConfig, DataConfig], [RelaySFTConfig])
        sys.exit(1 if report.print_training(config, options) else 0)
    report.print_service(config)


if __name__ == "__main__":
    run(main)
