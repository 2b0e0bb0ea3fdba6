"""Rollouts beside the training: relays without pause in a process of their own.

Owns the process's side: which prompts are under way, and how the process ends. Weights are `async_student.py`'s, and what a finished
group becomes is `async_groups.py`'s. How the process is started is TRL's `AsyncRolloutWorker`, of which tests/training/test_async_grpo.py holds what
is used.
"""

import asyncio
import contextlib
import itertools
import multiprocessing
import os
import queue
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import wait
from typing import Any

import torch
from trl.experimental.async_grpo import async_rollout_worker
from trl.experimental.async_grpo.async_rollout_worker import AsyncRolloutWorker

from ..cli.endings import first_of
from ..engines.base import Engine
from ..engines.checks import check_teacher_context
from ..engines.in_flight import ask_all
from ..prompts import RunPrompts
from ..rewards import load_reward
from ..rollout_files import Draw
from .async_config import RelayAsyncGRPOConfig
from .async_groups import Group, advantages_of, to_samples
from .async_student import Student, Turns
from .grading import RolloutGrader
from .groups import score_groups
from .metrics import GRADED, facts
from .rollouts import Rollouts, rollout_seed, together
from .student_engine import replaced

_POLL_S = 0.02
_BEAT_S = 1.0
_END_S = 15.0


def prompt_order(seed: int, size: int, start: int) -> Iterator[int]:
    """Rows in the order of the run, epoch after epoch, each in an order of its own, from the `start`-th on."""
    for epoch in itertools.count(start // size):
        order = torch.randperm(size, generator=torch.Generator().manual_seed(rollout_seed(seed, "epoch", epoch)))
        yield from order[start % size if epoch == start // size else 0 :].tolist()


class RelayLoop:
    """What runs in the worker's process. TRL's `_child_main` makes it and calls `run`; SIGTERM ends it.

    Args:
        args ([`RelayAsyncGRPOConfig`]), rows (`list[dict]`): the run's options and its problems.
        engines (`Callable`): gives student and teacher, see [`~relay_trl.training.async_student.load_engines`].
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): the student's.
        weights (`str`, *optional*): the file of weights.
        threads (`int`): torch threads.
        dataset_start_index (`int`): prompts that a run before this one has learnt from.
        rollout_buffer, model_version_value, heartbeat_value, failed_event, exception_info_queue: TRL's.
    """

    def __init__(
        self,
        *,
        args: RelayAsyncGRPOConfig,
        rows: list[dict],
        engines: Callable[[], tuple[Engine, Engine | None]],
        tokenizer,
        weights: str | None,
        threads: int,
        dataset_start_index: int,
        rollout_buffer,
        model_version_value,
        heartbeat_value,
        failed_event,
        exception_info_queue,
        **_: Any,
    ):
        self.args, self.rows, self.start, self.buffer = args, rows, dataset_start_index, rollout_buffer
        self._engines, self._tokenizer, self._weights, self._threads = engines, tokenizer, weights, threads
        # Without their locks, which a process that is killed might hold for ever
        self._version, self._heartbeat = model_version_value.get_obj(), heartbeat_value.get_obj()
        self._failed, self._faults = failed_event, exception_info_queue
        self._loop = asyncio.new_event_loop()
        self._stop_event = asyncio.Event()
        self._room = asyncio.Lock()
        self._under_way = 0
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training ends both
        threading.Thread(target=self._end_with_the_training, daemon=True).start()

    def _end_with_the_training(self):
        """Leaves nothing behind where the training's process was killed."""
        training = multiprocessing.parent_process()
        assert training is not None
        wait([training.sentinel])
        if self._weights:
            shutil.rmtree(os.path.dirname(self._weights), ignore_errors=True)
        os._exit(1)

    def run(self):
        """Until the training ends, or something fails, which the trainer is told."""
        asyncio.set_event_loop(self._loop)
        torch.set_num_threads(self._threads)
        try:
            self._begin()
            self._loop.run_until_complete(self._until_stopped())
        except Exception as raised:
            error = first_of(raised)
            if os.environ.get("RELAY_TRL_TRACEBACK") == "1":
                traceback.print_exception(error)
            self._faults.put((type(error).__name__, str(error), ""))
            self._failed.set()
        finally:
            self.buffer.cancel_join_thread()  # nobody reads the groups that are left

    def _begin(self):
        """Makes engines, prompts and rewards."""
        args = self.args
        engine, teacher = self._engines()
        if hasattr(engine, "check"):
            self._loop.run_until_complete(engine.check())
        self.student = Student(engine, lambda: self._version.value, self._weights)
        prompts = RunPrompts(self._tokenizer, teacher, **args.prompt_options())
        contexts = (prompts.teacher_context(row["prompt"]) for row in self.rows)
        check_teacher_context(teacher, contexts, args.max_completion_length)
        self.rollouts = Rollouts(prompts, args.relay_config(), teacher)
        self.grader = RolloutGrader(args)
        self.reward = partial(load_reward(args.reward), **(args.reward_kwargs or {}))

    async def _until_stopped(self):
        self._loop.add_signal_handler(signal.SIGTERM, self._stop_event.set)
        work = asyncio.create_task(self._produce())
        stop = asyncio.create_task(self._stop_event.wait())
        try:
            while not stop.done() and not work.done():
                self._heartbeat.value = time.time()
                await asyncio.wait([work, stop], timeout=_BEAT_S, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
        finally:
            for task in (work, stop):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await task
            self.grader.close()

    async def _produce(self):
        order = enumerate(prompt_order(self.args.seed, len(self.rows), self.start))
        most = self.args.max_inflight_tasks // self.args.num_generations
        async for _, group in ask_all(order, partial(self._group, most), max(1, most)):
            self.buffer.put(group)
            self._under_way -= 1

    async def _group(self, most: int, job: tuple[int, int]) -> Group:
        async with self._room:
            # What would be stale by the time it is learnt from is not begun
            while self._under_way and self._under_way + self.buffer.qsize() >= most:
                await asyncio.sleep(_POLL_S)
            self._under_way += 1
        (number, k), args = job, self.args
        row, size = self.rows[k], args.num_generations
        turns = [Turns(self.student) for _ in range(size)]
        seeds = [rollout_seed(args.seed, "group", self.start + number, i) for i in range(size)]
        started = time.perf_counter()
        jobs = [self.rollouts.one(row["prompt"], seed, one) for one, seed in zip(turns, seeds, strict=True)]
        traces = await together(jobs)
        drawn = time.perf_counter()
        correct = await asyncio.to_thread(self.grader.grade, traces, [row] * size)
        found = [facts(trace, is_correct) for trace, is_correct in zip(traces, correct, strict=True)]
        rewards, kinds = score_groups(found, size, args, self.reward)
        draw = Draw("train", 0, 0, size, [row] * size, 0, traces, correct, rewards=rewards, kinds=kinds)
        draw.advantages = advantages_of(rewards, args.scale_rewards)
        draw.rollout_s = drawn - started
        draw.metrics = {
            "grading_s": time.perf_counter() - drawn,
            **dict(zip(GRADED, self.grader.counts(), strict=True)),
        }
        return Group(number, draw, to_samples(draw, [one.versions for one in turns], number))


class RelayRolloutWorker(AsyncRolloutWorker):
    """TRL's worker with a [`RelayLoop`] in its process; what goes wrong there is said in one sentence.

    Args:
        kwargs: of [`RelayLoop`].
    """

    _loop_cls = RelayLoop

    def __init__(self, **kwargs: Any):
        with replaced(async_rollout_worker, "is_vllm_available", lambda: True):  # its own process would need it
            super().__init__(**kwargs)

    def start(self):
        """Starts the process. Its queue ends with it: of a process that is killed while it writes, half a group may be left."""
        super().start()
        self.rollout_buffer._writer.close()

    def stop(self):
        """Ends the process, by a signal: TRL's event would wait for ever for one that dies before it has woken up."""
        process, self._process = self._process, None
        if process is None or process.pid is None:
            return
        process.terminate()
        process.join(_END_S)
        if process.is_alive():
            process.kill()
            process.join()

    def check_health(self, stale_after_s: float):
        """Raises `RuntimeError` if the process has failed, died, or not moved for `stale_after_s` seconds."""
        process = self._process
        if self._failed_event.is_set():
            said = "The process of the rollouts has failed."
            with contextlib.suppress(queue.Empty):
                said = self._exception_info_queue.get(timeout=5)[1] or said
            raise RuntimeError(said)
        if process is not None and not process.is_alive():
            raise RuntimeError(
                f"The process of the rollouts has died (exit status {process.exitcode}), perhaps for want of memory; go on with "
                "resume_from_checkpoint: auto."
            )
        if process is not None and time.time() - self._heartbeat_value.value > stale_after_s:
            process.kill()  # one that hangs would not end when it is asked to
            process.join()
            raise RuntimeError(
                f"The process of the rollouts has not moved for {stale_after_s:g} s (heartbeat_stale_after_s), so it was ended; go on "
                "with resume_from_checkpoint: auto."
            )
