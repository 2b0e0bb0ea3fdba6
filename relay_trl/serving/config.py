"""The options of a server, their checks, and which of them come from the student's relay config.

Owns names, defaults and limits of options, and how a pair is loaded. The parameters of a request are in `protocol.py`.
"""

import ipaddress
import logging
import os
import re
from dataclasses import dataclass, field, fields, replace
from typing import Any

from ..engines.base import BACKENDS, Sampling
from ..engines.circuit_breaker import GuardedTeacher
from ..engines.loading import load_engine
from ..engines.threaded import ThreadedEngine
from ..options import TeacherFields, TrainedFields, mapping
from ..relay_config import RelayRecord, load_record
from .limits import Limits
from .pair import Pair

logger = logging.getLogger(__name__)

KEYS_VARIABLE = "RELAY_TRL_API_KEYS"
FROM_STUDENT = ("teacher", *(item.name for item in fields(TrainedFields)))
"""Fields that come from the student's relay config if they are not set."""


@dataclass(kw_only=True)
class ServingConfig(Limits, TrainedFields, TeacherFields):
    """A pair, and how it is served. Fields marked *from the student* take the value of the student's
    `relay_config.json` where they are unset, else that of [`RelayRecord`].

    Args:
        student (`str`): a folder, a Hub id, or the URL of its own `vllm serve`.
        student_backend (`str`, defaults to `"auto"`): `auto`, `transformers`, `vllm` or `openai`.
        student_tokenizer (`str`, *optional*): of a student behind a URL: the folder or Hub id that it was made from, with
            its tokenizer and its relay config.
        student_model (`str`, *optional*): its name on its own server; `None` takes the only one.
        student_engine (`dict`, *optional*): of its engine in this process, such as `{"max_model_len": 4096}`.
        teacher (`str`, *optional*, from the student), other `teacher_` fields: see [`~relay_trl.options.TeacherFields`].
        teacher_engine (`dict`, *optional*): likewise.
        teacher_timeout_s (`float`, defaults to `30`): seconds for one answer of a teacher's server.
        teacher_retries (`int`, defaults to `1`): retries of a failed request.
        teacher_pause_s (`float`, defaults to `5`): seconds in which a teacher that failed is not asked again.
        temperature (`float`, defaults to `0.7`): of the student, where a request does not say.
        top_p (`float`, defaults to `1.0`): of the student, where a request does not say.
        max_calls, max_call_tokens, prompt_template and others on how it is asked: see [`~relay_trl.options.TrainedFields`]; a
            request can only lower limits.
        use_template (`bool`, defaults to `True`): ask each user's turn of a conversation as the student was trained to be
            asked, with its template and system prompt; else conversations go to the models as they are.
        served_model_name (`str`, *optional*): defaults to the last part of the student's path.
        costs (`str`, *optional*): YAML with prices, for the cost line of the page at `/`; see [`~relay_trl.serving.chat_page.load_prices`].
        host (`str`, defaults to `"127.0.0.1"`): others than this machine need an API key.
        port (`int`, defaults to `8080`): 0 takes a free one.
        api_key_file (`str`, *optional*): one key a line. The environment's RELAY_TRL_API_KEYS, separated by commas, counts
            too.
        max_in_flight, max_queue, max_body_bytes, max_prompt_length, body_timeout_s, client_timeout_s: see
            [`~relay_trl.serving.limits.Limits`].
        cors_origins (`list[str]`, *optional*): origins of other servers' pages that may ask this one from a browser, such as
            `https://chat.example.com`; `*` is all. `None`: none but its own page.
        shutdown_s (`float`, defaults to `30`): seconds that answers under way have to end after a SIGTERM.

    Raises:
        ValueError: a field is out of its range.
    """

    student: str
    student_backend: str = "auto"
    student_tokenizer: str | None = None
    student_model: str | None = None
    student_engine: dict[str, Any] | str | None = None
    teacher_engine: dict[str, Any] | str | None = None
    teacher_timeout_s: float = 30.0
    teacher_retries: int = 1
    teacher_pause_s: float = 5.0
    temperature: float = 0.7
    top_p: float = 1.0
    use_template: bool = True
    served_model_name: str | None = None
    costs: str | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    api_key_file: str | None = field(default=None, metadata={"help": f"One key a line; {KEYS_VARIABLE} counts too."})
    cors_origins: list[str] | None = None
    shutdown_s: float = 30.0

    def __post_init__(self):
        for name in ("student_engine", "teacher_engine", "chat_template_kwargs"):
            setattr(self, name, mapping(name, getattr(self, name)))
        if self.student_backend not in BACKENDS:
            raise ValueError(f"student_backend is {self.student_backend!r}; it must be one of {', '.join(BACKENDS)}.")
        self.check_teacher()
        for name in ("max_in_flight", "max_body_bytes", "max_prompt_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        for name in ("body_timeout_s", "client_timeout_s", "teacher_timeout_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0.")
        for name in ("max_queue", "teacher_pause_s", "shutdown_s"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if not 0 <= self.port <= 65535:
            raise ValueError(f"port is {self.port}; it must be 0 (any free one) to 65535.")
        Sampling(self.temperature, self.top_p)
        if isinstance(self.cors_origins, str):
            self.cors_origins = [self.cors_origins]
        for origin in self.cors_origins or ():
            if origin != "*" and not re.fullmatch(r"https?://[^/\s]+", origin):
                raise ValueError(
                    f"cors_origins has {origin!r}; an origin is like https://chat.example.com, without a path, or *."
                )
        if not self.keys() and not _is_local(self.host):
            raise ValueError(
                f"host is {self.host!r}, where others than this machine can ask, and there is no API key; set "
                f"{KEYS_VARIABLE} or api_key_file, or listen at 127.0.0.1."
            )

    def keys(self) -> list[str]:
        """The API keys; without any, everybody who can reach the server may ask."""
        keys = os.environ.get(KEYS_VARIABLE, "").split(",")
        if self.api_key_file is not None:
            with open(self.api_key_file, encoding="utf-8") as file:
                keys += file.read().splitlines()
            if not any(key.strip() for key in keys):
                raise ValueError(f"api_key_file {self.api_key_file} has no key in it; write one a line.")
        return [key.strip() for key in keys if key.strip()]

    @property
    def model_name(self) -> str:
        """The name that clients ask for."""
        return self.served_model_name or (self.student_tokenizer or self.student).rstrip("/").rpartition("/")[2]

    def record(self) -> RelayRecord:
        """The student's relay config with the fields that are set here.

        Raises:
            ValueError: there is no such student, or no relay is possible with a field's value.
        """
        is_url = "://" in self.student
        source = self.student_tokenizer if is_url else self.student
        record = load_record(source) if source else None
        if record is None:
            logger.warning("%s has no relay config: it is asked with the defaults.", source or self.student)
            record = RelayRecord(versions={}, commit=None)
        given = {name: getattr(self, name) for name in FROM_STUDENT if getattr(self, name) is not None}
        return replace(record, **given)

    def load(self) -> Pair:
        """Loads both models.

        Raises:
            ValueError, ImportError, EngineError: see [`~relay_trl.engines.loading.load_engine`].
        """
        record = self.record()
        teacher = None
        # The teacher first, so that a server that is down is noticed before a model is loaded.
        if record.teacher is not None:
            template = {"chat_template_kwargs": record.chat_template_kwargs}
            options = {**self.teacher_options(), **template, **(mapping("teacher_engine", self.teacher_engine) or {})}
            engine = load_engine(self.teacher or record.teacher, **options)
            teacher = GuardedTeacher(_apart(engine), self.teacher_pause_s)
        server = {
            "tokenizer": self.student_tokenizer,
            "model": self.student_model,
            "max_concurrency": self.max_in_flight,
        }
        options = {
            **(server if "://" in self.student else {}),
            **(mapping("student_engine", self.student_engine) or {}),
        }
        student = load_engine(self.student, self.student_backend, **options)
        sampling = Sampling(self.temperature, self.top_p)
        return Pair(_apart(student), teacher, record, sampling, self.teacher_top_p, self.use_template)


def _apart(engine):
    """Puts an engine of this process into its own thread; an engine behind a URL needs none."""
    return engine if "://" in engine.name else ThreadedEngine(engine)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
