"""A trained student and its teacher in Python: whole or streamed answers, sync or async, one problem or several.

Owns the event loop behind the sync calls. `answer.py` answers.
"""

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from typing import Any, TypeAlias, TypeVar, overload

from ..engines.base import Engine
from ..engines.loading import close_engines, load_engine
from ..relay_config import RelayRecord, load_record
from .answer import Answer, Question, answer, answer_all
from .pair import Pair
from .reader import Delta

Problem: TypeAlias = str | list[dict[str, str]]
"""A problem, which is put into the student's prompt template, or a conversation."""

T = TypeVar("T")


class RelayPipeline:
    """Answers problems with a student and its teacher.

    ```python
    pipeline = RelayPipeline.from_pretrained("user/my-relay-student", teacher="http://localhost:8001/v1")
    answer = pipeline("78*6+49=")
    print(answer.text, answer.teacher_tokens)
    ```

    All work runs on one event loop in its own thread. The async methods can be awaited on any other loop.

    Args:
        pair ([`Pair`]): the models, their prompts and rules. [`RelayPipeline.from_pretrained`] loads one.
    """

    def __init__(self, pair: Pair):
        self.pair = pair
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay pipeline", daemon=True)
        self._thread.start()

    @classmethod
    def from_pretrained(
        cls,
        student: str,
        teacher: str | Engine | None = None,
        *,
        revision: str | None = None,
        token: str | None = None,
        backend: str = "auto",
        teacher_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> "RelayPipeline":
        """Loads a student with its relay config, and its teacher.

        Args:
            student (`str`): a folder or a Hub id.
            teacher (`str` or [`Engine`], *optional*): a folder, Hub id or URL; `None` takes the one that it was trained
                with; `""` takes none.
            revision (`str`, *optional*), token (`str`, *optional*): of the student on the Hub.
            backend (`str`, defaults to `"auto"`): of the student: `"transformers"` or `"vllm"`.
            teacher_options (`dict`, *optional*): of [`~relay_trl.engines.loading.load_engine`], for the teacher.
            **kwargs: the same, for the student.

        Raises:
            ValueError: there is no such student, or its relay config is broken.
            EngineError: a server is down.
        """
        record = load_record(student, revision, token) or RelayRecord(versions={}, commit=None)
        spec = record.teacher if teacher is None else teacher
        options = {"chat_template_kwargs": record.chat_template_kwargs, **(teacher_options or {})}
        if isinstance(spec, str) and spec and "://" not in spec and teacher is None and record.teacher_revision:
            options = {"revision": record.teacher_revision, **options}
        engine = load_engine(spec, **options) if isinstance(spec, str) and spec else (spec or None)
        if revision is not None:
            kwargs["revision"] = revision
        return cls(Pair(load_engine(student, backend, **kwargs), engine, record))  # type: ignore[arg-type]

    def question(self, problem: Problem, **options: Any) -> Question:
        """The question of a problem, which is put into the prompt template that the student was trained with, or of a
        list of messages. The same seed gives the same answer, the same as in training and evaluation. Options and errors
        are those of [`Pair.question`].
        """
        messages = [{"role": "user", "content": problem}] if isinstance(problem, str) else problem
        return self.pair.question(self.pair.chat(messages), **options)

    @overload
    def __call__(self, problem: Problem, **options: Any) -> Answer: ...
    @overload
    def __call__(self, problem: Sequence[Problem], **options: Any) -> list[Answer]: ...
    def __call__(self, problem, **options):
        """The answer to a problem, or the answers to a list of problems, in order. They are written together.

        Args:
            problem (`str`, `list[dict]`, or a list of either).
            **options: see [`Pair.question`]; the seed of the k-th of several is `seed + k`.
        """
        return self._wait(self._answer(problem, options))

    async def generate(self, problem, **options):
        """[`RelayPipeline.__call__`] for async code."""
        return await asyncio.wrap_future(self._start(self._answer(problem, options)))

    def stream(self, problem: Problem, **options: Any) -> Iterator[Delta]:
        """The pieces of an answer as they are written. If you leave the loop early, both models stop."""
        pieces: queue.Queue[Delta | None] = queue.Queue()
        question = self.question(problem, **options)
        future = self._start(answer(question, self.pair.student, self.pair.teacher, pieces.put))
        future.add_done_callback(lambda _: pieces.put(None))
        try:
            while (piece := pieces.get()) is not None:
                yield piece
            future.result()
        finally:
            future.cancel()

    async def astream(self, problem: Problem, **options: Any) -> AsyncIterator[Delta]:
        """[`RelayPipeline.stream`] for async code."""
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Delta | None] = asyncio.Queue()

        def put(piece: Delta | None):
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        question = self.question(problem, **options)
        future = self._start(answer(question, self.pair.student, self.pair.teacher, put))
        future.add_done_callback(lambda _: put(None))
        try:
            while (piece := await pieces.get()) is not None:
                yield piece
            future.result()
        finally:
            future.cancel()

    def close(self):
        """Closes connections and ends the thread. The pipeline cannot be used after that."""
        self._wait(close_engines(self.pair.student, self.pair.teacher))
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def __enter__(self) -> "RelayPipeline":
        return self

    def __exit__(self, *exception):
        self.close()

    async def _answer(self, problem, options: dict[str, Any]):
        student, teacher = self.pair.student, self.pair.teacher
        if isinstance(problem, str) or (problem and isinstance(problem[0], dict)):
            return await answer(self.question(problem, **options), student, teacher)
        seed = options.pop("seed", None)
        seeds = [None if seed is None else seed + k for k in range(len(problem))]
        questions = [self.question(one, seed=s, **options) for one, s in zip(problem, seeds, strict=True)]
        return await answer_all(questions, student, teacher)

    def _start(self, job: Coroutine[Any, Any, T]):
        return asyncio.run_coroutine_threadsafe(job, self._loop)

    def _wait(self, job: Coroutine[Any, Any, T]) -> T:
        return self._start(job).result()
