"""Options that more than one stage shares: which problems, and how they are asked.

Owns names, defaults and limits of these options, as dataclasses that the stages' own configs inherit.
"""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from .command import CallSyntax
from .engines.base import BACKENDS
from .prompts import check_template


def mapping(name: str, value: dict[str, Any] | str | None) -> dict[str, Any] | None:
    """An option that is a mapping, in a YAML as such and on the command line as JSON.

    Raises:
        ValueError: it is neither.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise ValueError(f"{name} is {value!r}; it must be JSON.") from error
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r}; it must be a JSON object.")
    return value


def broken_groups(batch: int, processes: int, steps: int, group: int) -> str | None:
    """What is wrong with a draw of rollouts that leaves a group incomplete, `None` where all are whole.

    Args:
        batch (`int`): `per_device_train_batch_size`.
        processes (`int`), steps (`int`): processes, and `steps_per_generation`.
        group (`int`): `num_generations`.
    """
    rollouts = batch * processes * steps
    if rollouts % group == 0:
        return None
    return (
        f"{batch} (per_device_train_batch_size) x {processes} (processes) x {steps} (steps_per_generation) = "
        f"{rollouts} rollouts are no whole groups of num_generations={group}"
    )


@dataclass
class DataConfig:
    """Which problems a run uses.

    Args:
        dataset (`str`): a registered set (see `data/sources.py`), `"arithmetic"`, `"lookups"`, a file, or a Hub dataset.
        data_dir (`str`, *optional*): folder with local copies of registered sets; `None` loads them from the Hub.
        dataset_split (`str`, *optional*): of a Hub dataset or of the arithmetic task.
        dataset_size (`int`, *optional*): rows to use, chosen by `dataset_seed`; `None` uses all.
        dataset_seed (`int`, defaults to `0`).
        problem_column, answer_column (`str`): of a file or Hub dataset.
        decontaminate (`bool`, defaults to `False`): leave out rows that share a problem with a reported benchmark (see
            `data/decontamination.py`); the benchmarks come from `data_dir` or the Hub.
        validation (`str`, *optional*): the set to validate on; `None` splits `validation_size` rows off the training set.
        validation_split (`str`, *optional*): likewise for the validation set.
        validation_size (`int`, defaults to `256`): rows to validate on.
    """

    dataset: str = field(
        metadata={"help": "Registered set, 'arithmetic', a .jsonl/.csv/.parquet file or a Hub dataset."}
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder with local copies of registered sets."})
    dataset_split: str | None = field(default=None, metadata={"help": "Split of a Hub dataset or of 'arithmetic'."})
    dataset_size: int | None = field(default=None, metadata={"help": "Rows to use; all if unset."})
    dataset_seed: int = field(default=0, metadata={"help": "Chooses the rows of dataset_size and validation_size."})
    problem_column: str = field(default="problem", metadata={"help": "Column of the problem in a file or Hub dataset."})
    answer_column: str = field(default="answer", metadata={"help": "Column of the gold answer."})
    decontaminate: bool = field(default=False, metadata={"help": "Leave out rows that a reported benchmark has too."})
    validation: str | None = field(
        default=None, metadata={"help": "Set to validate on; unset splits off the training set."}
    )
    validation_split: str | None = field(default=None, metadata={"help": "Split of the validation set."})
    validation_size: int = field(default=256, metadata={"help": "Rows to validate on."})

    def __post_init__(self):
        from .data.registry import REPORTED

        for name in ("dataset_size", "validation_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        reported = [name for name in (self.dataset, self.validation) if name in REPORTED]
        if reported:
            raise ValueError(
                f"{reported[0]!r} is a benchmark that results are reported on; training and choosing "
                f"checkpoints must not see it. Use another set than {', '.join(REPORTED)}."
            )

    def load(self) -> list[dict]:
        """The training rows, see [`~relay_trl.data.sources.load_rows`], without those of benchmarks where that is asked for."""
        from .data.decontamination import decontaminate
        from .data.sources import load_rows

        rows = load_rows(
            self.dataset,
            self.data_dir,
            self.dataset_split,
            self.dataset_size,
            self.dataset_seed,
            self.problem_column,
            self.answer_column,
        )
        return decontaminate(rows, self.dataset, self.data_dir) if self.decontaminate else rows

    def load_with_validation(self) -> tuple[list[dict], list[dict]]:
        """Training rows and validation rows, which have none in common.

        Raises:
            ValueError: too few rows are left for training.
        """
        from .data.sources import load_rows

        rows = self.load()
        if self.validation is not None:
            validation = load_rows(
                self.validation,
                self.data_dir,
                self.validation_split,
                self.validation_size,
                self.dataset_seed,
                self.problem_column,
                self.answer_column,
            )
        else:
            random.Random(self.dataset_seed).shuffle(rows)
            rows, validation = rows[self.validation_size :], rows[: self.validation_size]
        seen = {repr(row["prompt"]) for row in validation}
        training = [row for row in rows if repr(row["prompt"]) not in seen]
        if not training:
            raise ValueError(
                f"{self.dataset} has no row left to train on beside its {len(validation)} validation rows; lower "
                "validation_size or name another set as validation."
            )
        return training, validation


@dataclass
class PromptFields:
    """How prompts are built and answers read: the same in every stage.

    Args:
        prompt_template (`str`, defaults to `"{problem}"`): the user's turn.
        system_prompt (`str`, *optional*).
        is_chat (`bool`, *optional*): use the chat template; `None` uses it where there is one.
        max_prompt_length (`int`, defaults to `4096`): most tokens of a prompt; longer ones stop the run before it begins.
        skip_long_prompts (`bool`, defaults to `False`): leave rows with longer prompts out instead.
        answer_marker (`str`, *optional*): the final answer is what follows the last of these; `None`: the last `\\boxed{}`.
        open_tag, close_tag (`str`): the command is `open_tag`, a number, `close_tag`.
    """

    prompt_template: str = field(default="{problem}", metadata={"help": "The user's turn; {problem} is filled in."})
    system_prompt: str | None = field(default=None, metadata={"help": "A system turn."})
    is_chat: bool | None = field(default=None, metadata={"help": "Use the chat template (default: if there is one)."})
    max_prompt_length: int = field(default=4096, metadata={"help": "Most tokens of a prompt; longer ones are refused."})
    skip_long_prompts: bool = field(default=False, metadata={"help": "Leave out rows with longer prompts."})
    answer_marker: str | None = field(default=None, metadata={"help": "What precedes the answer (default: \\boxed{})."})
    open_tag: str = field(default="<call>", metadata={"help": "Begins a command."})
    close_tag: str = field(default="</call>", metadata={"help": "Ends a command."})

    @property
    def syntax(self) -> CallSyntax:
        """The command's syntax."""
        return CallSyntax(self.open_tag, self.close_tag)

    def check_prompts(self):
        """Refuses tags and templates that cannot work.

        Raises:
            ValueError: naming the field.
        """
        self.syntax  # noqa: B018  (its own checks)
        check_template(self.prompt_template)
        if self.max_prompt_length < 1:
            raise ValueError(f"max_prompt_length is {self.max_prompt_length}; it must be at least 1.")

    def prompt_options(self) -> dict[str, Any]:
        """The options of a [`~relay_trl.prompts.PromptBuilder`]; thinking is off unless asked for."""
        return {
            "template": self.prompt_template,
            "system": self.system_prompt,
            "is_chat": self.is_chat,
            "chat_template_kwargs": {"enable_thinking": False, **(getattr(self, "chat_template_kwargs", None) or {})},
        }


@dataclass
class TeacherFields:
    """The teacher and how it is reached.

    Args:
        teacher (`str`, *optional*): a folder, a Hub id or the URL of an OpenAI-compatible server; `None`: no teacher. A
            list of URLs, joined with blanks here, is a pool: servers of one model that share the work.
        teacher_backend (`str`, defaults to `"auto"`): `auto`, `transformers`, `vllm` or `openai`.
        teacher_tokenizer (`str`, *optional*): tokenizer of a teacher behind a URL, if the server does not tell.
        teacher_model (`str`, *optional*): the model's name on its server; `None` takes the only one.
        teacher_api (`str`, defaults to `"completions"`): `completions`, or `chat` for a server that has nothing else.
        teacher_top_p (`float`, defaults to `1.0`): nucleus of the teacher.
        teacher_timeout_s (`float`, defaults to `120`): seconds for one answer.
        teacher_retries (`int`, defaults to `4`): of a failed request, with back-off.
        teacher_concurrency (`int`, defaults to `64`): requests under way at once, per server.
    """

    teacher: str | None = field(
        default=None, metadata={"help": "Folder, Hub id, URL or several URLs of the teacher.", "nargs": "+"}
    )
    teacher_backend: str = field(default="auto", metadata={"help": "auto, transformers, vllm or openai."})
    teacher_tokenizer: str | None = field(default=None, metadata={"help": "Tokenizer of a teacher behind a URL."})
    teacher_model: str | None = field(default=None, metadata={"help": "The teacher's name on its server."})
    teacher_api: str = field(default="completions", metadata={"help": "completions or chat."})
    teacher_top_p: float = field(default=1.0, metadata={"help": "Nucleus of the teacher."})
    teacher_timeout_s: float = field(default=120.0, metadata={"help": "Seconds for one answer of a teacher's server."})
    teacher_retries: int = field(default=4, metadata={"help": "Retries of a failed request."})
    teacher_concurrency: int = field(default=64, metadata={"help": "Requests to a server under way at once."})

    def check_teacher(self):
        """Refuses a backend or an API that does not exist, and brings a list of servers into one form."""
        if isinstance(self.teacher, list):
            lacking = [name for name in self.teacher if "://" not in name]
            if lacking and len(self.teacher) > 1:
                raise ValueError(
                    f"teacher has several entries, so each must be a URL of a server; {lacking[0]!r} is none."
                )
            self.teacher = " ".join(self.teacher)
        for name, known in (("teacher_backend", BACKENDS), ("teacher_api", ("completions", "chat"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}.")

    def teacher_options(self) -> dict[str, Any]:
        """How the teacher's engine is loaded; see [`~relay_trl.engines.loading.load_engine`]."""
        return {
            "backend": self.teacher_backend,
            "tokenizer": self.teacher_tokenizer,
            "model": self.teacher_model,
            "api": self.teacher_api,
            "timeout_s": self.teacher_timeout_s,
            "max_retries": self.teacher_retries,
            "max_concurrency": self.teacher_concurrency,
        }
