"""The options of the training of CITER's router.

Owns names, limits and defaults of options. Defaults are those of CITER's authors if they name them.
"""

from dataclasses import dataclass

from ..options import PromptFields, TeacherFields


@dataclass
class CiterConfig(PromptFields, TeacherFields):
    """How CITER's router is trained.

    Args:
        student (`str`): folder or Hub id of the model whose hidden states are read, run by the transformers engine.
        output_dir (`str`): gets the router.
        solution_column (`str`, *optional*, defaults to `"solution"`): column with a right solution, as the models should
            write it. If empty, the teacher's own greedy answers are used, if they are right.
        rounds (`int`, defaults to `2`): of labelling and training.
        threshold (`float`, defaults to `0.95`): threshold of the roll-outs from round 2 on, and the default of the
            evaluation.
        max_completion_length (`int`, defaults to `1000`): most tokens of an answer that the student finishes alone.
        rollout_length (`int`, defaults to `300`): most tokens of a roll-out from round 2 on.
        temperature (`float`, defaults to `0.0`): of both.
        learning_rate (`float`, defaults to `1e-3`): Adam's, for the router.
        batch_size (`int`, defaults to `512`): positions a step.
        max_epochs (`int`, defaults to `100`): most epochs of a round.
        patience (`int`, defaults to `5`): epochs without a better held-out loss.
        held_out_share (`float`, defaults to `0.2`): share of the questions to validate the router on.
        max_in_flight (`int`, defaults to `256`): requests at a time.
        dtype (`str`, *optional*): of models run in this process; `None`: the checkpoints'.
        seed (`int`, defaults to `42`): of the router's weights, split and batches.

    Raises:
        ValueError: a field is out of its range.
    """

    student: str = ""
    output_dir: str = ""
    solution_column: str | None = "solution"
    rounds: int = 2
    threshold: float = 0.95
    max_completion_length: int = 1000
    rollout_length: int = 300
    temperature: float = 0.0
    learning_rate: float = 1e-3
    batch_size: int = 512
    max_epochs: int = 100
    patience: int = 5
    held_out_share: float = 0.2
    max_in_flight: int = 256
    dtype: str | None = None
    seed: int = 42

    def __post_init__(self):
        self.check_prompts()
        self.check_teacher()
        for name in ("student", "output_dir", "teacher"):
            if not getattr(self, name):
                raise ValueError(f"{name} is not set; there is no default for it.")
        if "://" in self.student:
            raise ValueError("student is a URL, but the router reads hidden states; give a folder or a Hub id.")
        for name in ("rounds", "max_completion_length", "rollout_length", "max_epochs", "patience", "max_in_flight"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.batch_size < 2:
            raise ValueError(f"batch_size is {self.batch_size}; batch normalisation needs at least 2 positions.")
        for name in ("threshold", "held_out_share"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 0 and 1.")
        if self.learning_rate <= 0 or self.temperature < 0:
            raise ValueError(
                f"learning_rate is {self.learning_rate} and temperature {self.temperature}; the first must be above 0, the "
                "second at least 0."
            )
