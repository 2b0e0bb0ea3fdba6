"""Prints what a training or a service will need, from configs alone.

python recipes/plan.py --config recipes/configs/arithmetic/grpo_relay.yaml --student data/arithmetic/student
python recipes/plan.py --student Qwen/Qwen3-1.7B --teacher Qwen/Qwen3-8B --requests_per_s 50
"""

import sys
from dataclasses import dataclass

from transformers import HfArgumentParser

from relay_trl.cli.endings import run
from relay_trl.cli.help_text import add_texts


@dataclass
class PlanConfig:
    """The options of a plan, of a training (`config`) or of a service (`requests_per_s`).

    Args:
        config (`str`, *optional*): YAML of grpo_relay.py or sft_warmup.py.
        accelerate_config (`str`): how the training is launched.
        num_processes (`int`, *optional*): over that of accelerate_config.
        gpu_memory (`float`, defaults to `80`): GiB of one GPU.
        student (`str`, *optional*): folder or Hub id; by default that of the YAML.
        teacher (`str`, *optional*): folder or Hub id; by default that of the YAML, if it is no URL.
        mean_prompt (`int`, *optional*): expected tokens of a prompt; by default half of the limit.
        mean_tokens (`int`, *optional*): expected tokens of an answer; by default half of the limit.
        rho (`float`, defaults to `0.01`): expected teacher share.
        calls (`float`, defaults to `1`): expected calls in an answer.
        requests_per_s (`float`, *optional*): of a service. Its table goes from 1 to 100,000 and has this row too.
        student_curve (`str`, *optional*): file of benchmarks/service_curves.py; estimated by default.
        teacher_curve (`str`, *optional*): the same of the teacher.
        slowdown (`float`, defaults to `2`): 95 % of the answers may take at most so many times as long as alone.
    """

    config: str | None = None
    accelerate_config: str = "accelerate_configs/single_gpu.yaml"
    num_processes: int | None = None
    gpu_memory: float = 80.0
    student: str | None = None
    teacher: str | None = None
    mean_prompt: int | None = None
    mean_tokens: int | None = None
    rho: float = 0.01
    calls: float = 1.0
    requests_per_s: float | None = None
    student_curve: str | None = None
    teacher_curve: str | None = None
    slowdown: float = 2.0

    def __post_init__(self):
        if (self.config is None) == (self.requests_per_s is None):
            raise ValueError("Give either --config (the YAML of a training) or --requests_per_s (a service).")
        if self.requests_per_s is not None and not (self.student and self.teacher):
            raise ValueError("A service needs --student and --teacher, each a folder or a Hub id.")


def main():
    parser = HfArgumentParser(PlanConfig)  # type: ignore[arg-type]
    add_texts(parser, [PlanConfig])
    config, unknown = parser.parse_args_into_dataclasses(return_remaining_strings=True)
    if unknown:
        raise ValueError(f"Unknown option {unknown[0]!r}. Run with --help for all options.")
    from relay_trl.data.config import DataConfig
    from relay_trl.planning import report  # imports torch
    from relay_trl.training import RelayGRPOConfig, RelaySFTConfig

    if config.config is not None:
        options = report.Options(config.config, [RelayGRPOConfig, DataConfig], [RelaySFTConfig])
        sys.exit(1 if report.print_training(config, options) else 0)
    report.print_service(config)


if __name__ == "__main__":
    run(main)
