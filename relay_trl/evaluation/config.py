"""The options of an evaluation, their checks, and which of them come from the student's relay config.

Owns names, defaults and limits of options. A student that was trained to call has a `relay_config.json` (see
`relay_config.py`). Options that are not set come from it, so that the student is asked as it was trained.
"""

import copy
import re
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from ..data.files import kind_of
from ..data.registry import REPORTED, SOURCES
from ..data.sources import load_rows
from ..engines.base import Engine, Sampling
from ..grading.judge import JudgeFields
from ..grading.words import AnyGrader, load_grader
from ..options import TeacherFields, TrainedFields, mapping
from ..prompts import PromptBuilder, check_template
from ..redaction import redact
from ..relay import RelayRules
from ..relay_config import RelayRecord, load_record
from ..run_files import fingerprint, fingerprint_rows
from .methods import known_methods, load_methods

FROM_STUDENT = {
    "teacher": None,
    "max_completion_length": 1024,
    "max_calls": 5,
    "max_call_tokens": None,
    "teacher_temperature": 0.7,
    "is_ended_by_teacher": True,
    "prompt_template": None,
    "system_prompt": None,
    "is_chat": None,
    "chat_template_kwargs": {"enable_thinking": False},
    "answer_marker": None,
    "open_tag": "<call>",
    "close_tag": "</call>",
}
"""Fields that come from the student's relay config if they are not set, and their values without one: 5 calls and the
teacher's temperature as in the paper's evaluation; the benchmark's template."""

# Options that no answer depends on, and methods and benchmarks, which can be added to a run later.
_NOT_SETTINGS = {
    *("methods", "benchmarks", "output_dir", "data_dir", "max_in_flight", "training_logs", "pages_answers"),
    *("grading_time_limit_s", "teacher_timeout_s", "teacher_retries", "teacher_concurrency"),
    *("num_processes", "shard", "costs", "judge", "judge_model", "judge_sample"),
}
_AT_LEAST_ONE = (
    *("limit", "samples", "max_completion_length", "max_prompt_length", "max_call_tokens", "max_in_flight"),
    *("teacher_concurrency", "pages_answers", "num_processes"),
)


@dataclass(kw_only=True)
class EvaluationConfig(JudgeFields, TrainedFields, TeacherFields):
    """Who is evaluated on what, and how. Fields marked *from the student* take the value of the student's
    `relay_config.json` where they are unset, else that of [`FROM_STUDENT`]: 1,024 tokens, 5 calls, the teacher at 0.7.

    Args:
        student (`str`): a folder or a Hub id.
        benchmarks (`list[str]`): registered sets (see `data/registry.py`), `"arithmetic"`, `"lookups"`, files, or Hub
            datasets.
        teacher (`str`, *optional*, from the student), other `teacher_` fields: see [`~relay_trl.options.TeacherFields`].
        methods (`list[str]`, defaults to `student relay teacher`): see `evaluation/methods.py`.
        judge, judge_model, judge_sample: see [`~relay_trl.grading.judge.JudgeFields`].
        data_dir (`str`, *optional*): folder with local copies of registered sets; `None` loads them from the Hub.
        split (`str`, *optional*): of a Hub dataset or of the arithmetic task.
        limit (`int`, *optional*): problems to ask of each benchmark, chosen by `seed`; `None` asks all.
        problem_column (`str`): column of the problem.
        answer_column (`str`): column of the gold answer.
        seed (`int`, defaults to `0`): of the choice of problems and of every rollout.
        samples (`int`, *optional*): answers per problem and method; the accuracy is their mean. `None`: as many as the
            benchmark asks for, 32 for AIME and else 1.
        temperature (`float`, defaults to `0.7`): sampling temperature of the student; 0 is greedy.
        top_p (`float`, defaults to `1.0`): nucleus of the student.
        max_prompt_length (`int`, *optional*): most tokens of a prompt; `None`: what the models' contexts leave.
        skip_long_prompts (`bool`, defaults to `False`): leave rows with longer prompts out instead of stopping.
        max_calls, prompt_template and others on how it is asked: see [`~relay_trl.options.TrainedFields`].
        answer_marker (`str`, from the student): what precedes the answer (default: \\boxed{}).
        student_backend (`str`, defaults to `"auto"`): `auto`, `transformers` or `vllm`.
        student_engine (`dict`, *optional*): of its engine, such as `{"gpu_memory_utilization": 0.5}` for vLLM.
        citer_router (`str`, *optional*): folder that `recipes/train_citer.py` wrote, for the methods `citer` and `citer_t`.
        dtype (`str`, *optional*): of both models; `None`: the checkpoints'.
        max_in_flight (`int`, defaults to `256`): rollouts at a time.
        grading_time_limit_s (`float`, defaults to `5.0`): seconds to grade one answer.
        training_logs (`list[str]`, *optional*): trainers' output folders whose curves are plotted; `None` takes the
            student's, if it has a `trainer_state.json`.
        pages_answers (`int`, defaults to `1500`): most answers on the pages of rollouts.
        costs (`str`, *optional*): YAML with parameters and prices of both models, see `relay_trl/costs.py`.
        num_processes (`int`, defaults to `1`): processes that share the problems, each with its own student (and a
            teacher, unless that is a server) and, where there are GPUs, each on its own.
        shard (`str`, *optional*): what one of several processes gets, such as `"0/4"`; set by `num_processes`.
        output_dir (`str`, defaults to `"runs/evaluation"`): gets the answers, tables, plots and pages. A run that was
            killed goes on there.

    Raises:
        ValueError: a field is out of its range, or a method is unknown.
    """

    student: str
    benchmarks: list[str]
    methods: list[str] = field(
        default_factory=lambda: ["student", "relay", "teacher"],
        metadata={"help": f"Of {known_methods()}."},
    )
    data_dir: str | None = None
    split: str | None = None
    limit: int | None = None
    problem_column: str = "problem"
    answer_column: str = "answer"
    seed: int = 0
    samples: int | None = None
    temperature: float = 0.7
    top_p: float = 1.0
    max_prompt_length: int | None = None
    skip_long_prompts: bool = False
    answer_marker: str | None = None
    student_backend: str = "auto"
    student_engine: dict[str, Any] | str | None = None
    citer_router: str | None = None
    dtype: str | None = None
    max_in_flight: int = 256
    grading_time_limit_s: float = 5.0
    training_logs: list[str] | None = None
    pages_answers: int = 1500
    costs: str | None = None
    num_processes: int = 1
    shard: str | None = None
    output_dir: str = "runs/evaluation"

    def __post_init__(self):
        if isinstance(self.methods, str):
            self.methods = [self.methods]
        if isinstance(self.benchmarks, str):
            self.benchmarks = [self.benchmarks]
        load_methods(self.methods)
        self.benchmarks = list(dict.fromkeys(self.benchmarks))
        if not self.benchmarks:
            raise ValueError(f"benchmarks is empty; name at least one, such as {', '.join(REPORTED)}.")
        self.parsed_shard()
        for name in ("student_engine", "chat_template_kwargs"):
            setattr(self, name, mapping(name, getattr(self, name)))
        for name in _AT_LEAST_ONE:
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} is {value!r}; it must be a whole number of at least 1.")
        self.check_teacher()
        self.check_judge()
        known = ("auto", "transformers", "vllm")
        if self.student_backend not in known:
            raise ValueError(f"student_backend is {self.student_backend!r}; it must be one of {', '.join(known)}.")
        if "://" in self.student:
            raise ValueError("student is a URL; a student's token ids are needed, so give a folder or a Hub id.")
        if self.prompt_template is not None:
            check_template(self.prompt_template)
        self._filled(FROM_STUDENT)

    def with_student_defaults(self) -> "EvaluationConfig":
        """A copy whose unset fields are as the student was trained, or have their defaults where it has no relay config.

        Raises:
            ValueError: there is no such student, its relay config is broken, or a method asks a teacher and none is known.
        """
        record = load_record(self.student)
        config = self._filled({name: getattr(record, name) for name in FROM_STUDENT} if record else FROM_STUDENT)
        lonely = [method.name for method in load_methods(self.methods) if method.has_teacher]
        if lonely and config.teacher is None:
            raise ValueError(
                f"The methods {', '.join(lonely)} ask a teacher, but teacher is not set and {self.student} names none in "
                "a relay_config.json; set teacher to a folder, a Hub id or a URL."
            )
        routed = [method.name for method in load_methods(self.methods) if method.has_router]
        if routed and config.citer_router is None:
            raise ValueError(
                f"The methods {', '.join(routed)} need CITER's router; train one with recipes/train_citer.py and give its "
                "output_dir as citer_router."
            )
        return config

    @property
    def benchmark(self) -> str:
        """The benchmark of a config from [`~EvaluationConfig.for_benchmark`], which has only one."""
        (name,) = self.benchmarks
        return name

    def for_benchmark(self, name: str) -> "EvaluationConfig":
        """A copy for one benchmark, with its samples and its template if the run does not set them."""
        source = SOURCES.get(name)
        config = copy.copy(self)
        config.benchmarks = [name]
        config.samples = self.samples or (source.samples if source else 1)
        config.prompt_template = self.prompt_template or (source.template if source else "{problem}")
        return config

    def load_rows(self) -> list[dict]:
        """The problems of the one benchmark, also those without a gold answer; see [`~relay_trl.data.sources.load_rows`]."""
        columns = (self.problem_column, self.answer_column)
        # Of several benchmarks, those that have splits
        is_file = self.benchmark in SOURCES or kind_of(self.benchmark) not in (None, "saved")
        split = None if is_file else self.split
        return load_rows(self.benchmark, self.data_dir, split, self.limit, self.seed, *columns)

    def load_grader(self) -> AnyGrader:
        """The one benchmark's grader."""
        source = SOURCES.get(self.benchmark)
        return load_grader(source.grader if source else "math", self.answer_marker, self.grading_time_limit_s)

    def parsed_shard(self) -> tuple[int, int]:
        """Which part of the problems this process asks, and of how many.

        Raises:
            ValueError: `shard` has another form.
        """
        match = re.fullmatch(r"([0-9]+)/([1-9][0-9]*)", self.shard or "0/1")
        if match is None or int(match[1]) >= int(match[2]):
            raise ValueError(f"shard is {self.shard!r}; it must be like 0/4 to 3/4, and is set by num_processes.")
        return int(match[1]), int(match[2])

    def _filled(self, values: dict[str, Any]) -> "EvaluationConfig":
        filled = copy.copy(self)
        for name, value in values.items():
            if getattr(self, name) is None:
                setattr(filled, name, value)
        filled.relay_config()  # refuses rules that are not possible
        return filled

    def _record(self) -> RelayRecord:
        given = {name: value for name in FROM_STUDENT if (value := getattr(self, name)) is not None}
        return RelayRecord(**given, versions={}, commit=None)

    def relay_config(self) -> RelayRules:
        """The rules of the rollouts. Needs the config of [`~EvaluationConfig.with_student_defaults`]."""
        rules = self._record().relay_config(student=Sampling(self.temperature, self.top_p))
        return replace(rules, teacher=replace(rules.teacher, top_p=self.teacher_top_p))

    def prompt_builder(self, student: Engine, teacher: Engine | None) -> PromptBuilder:
        """Prompts for both models. Needs the config of [`~EvaluationConfig.with_student_defaults`]."""
        return self._record().prompt_builder(student.vocabulary and student.vocabulary.tokenizer, teacher)

    def student_options(self) -> dict[str, Any]:
        """Options of the student's engine; see [`~relay_trl.engines.loading.load_engine`]."""
        engine = mapping("student_engine", self.student_engine) or {}
        return {"backend": self.student_backend, **({"dtype": self.dtype} if self.dtype else {}), **engine}

    def teacher_options(self) -> dict[str, Any]:
        """Options of the teacher's engine, as in training."""
        return {**super().teacher_options(), **({"dtype": self.dtype} if self.dtype else {})}

    def weights(self) -> dict[str, str | None]:
        """Fingerprints of the models."""
        models = {"student_weights": self.student, "teacher_weights": self.teacher or ""}
        if self.citer_router is not None:
            models["router_weights"] = self.citer_router
        return {name: fingerprint(model) for name, model in models.items()}

    def settings(self, rows: list[dict], weights: dict[str, str | None]) -> dict:
        """What the answers depend on, for [`AnswerFile`]. Needs the config of
        [`~EvaluationConfig.with_student_defaults`], and its [`~EvaluationConfig.weights`].
        """
        kept = {name: value for name, value in asdict(self).items() if name not in _NOT_SETTINGS}
        kept["benchmark"] = self.benchmark
        return redact({**kept, **weights, "problems": fingerprint_rows(rows)})
