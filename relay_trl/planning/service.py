"""How many GPUs a service of a pair needs, from a small queueing simulation over the engines' service curves.

Owns the simulation and the search for the smallest service that is fast enough.
"""

import heapq
import math
import random
from dataclasses import dataclass, field, replace

from .curves import Curve

_STRIDE = 8
"""Decoding steps that are simulated as one; a new request waits for at most so many."""


@dataclass(frozen=True)
class Demand:
    """The demand on a service.

    Args:
        requests_per_s (`float`): requests arrive at random (Poisson).
        prompt_tokens (`int`), answer_tokens (`int`): means; answers vary log-normally with `spread`.
        calls (`float`): mean number of calls in an answer.
        rho (`float`): the teacher's share of an answer's tokens.
        has_prefix_cache (`bool`): whether the engines have a prefix cache.
        spread (`float`, defaults to `0.5`).
    """

    requests_per_s: float
    prompt_tokens: int
    answer_tokens: int
    calls: float
    rho: float
    has_prefix_cache: bool = True
    spread: float = 0.5

    def __post_init__(self):
        if self.requests_per_s <= 0 or self.prompt_tokens < 1 or self.answer_tokens < 1:
            raise ValueError(
                f"{self.requests_per_s:g} requests a second, {self.prompt_tokens} prompt and {self.answer_tokens} answer tokens: "
                "they must be above 0."
            )
        if not 0 <= self.rho < 1 or self.calls < 0 or (self.rho > 0) != (self.calls > 0):
            raise ValueError(
                f"rho is {self.rho} and calls is {self.calls}; rho is a share from 0 to below 1, and both are 0 or neither is."
            )


@dataclass
class _Turn:
    is_teacher: bool
    reads: int
    writes: int


@dataclass(eq=False)
class _Job:
    arrived: float
    turns: list[_Turn]
    is_counted: bool
    left: int = 0
    home: dict[bool, int] = field(default_factory=dict)


def _turns(demand: Demand, rng: random.Random) -> list[_Turn]:
    sigma = demand.spread
    answer = max(2, round(demand.answer_tokens * math.exp(sigma * rng.gauss(0, 1) - sigma * sigma / 2)))
    whole = int(demand.calls)
    calls = whole + (rng.random() < demand.calls - whole)
    # The length of a call keeps the mean share, although some answers have no call
    each = max(1, round(demand.rho * demand.answer_tokens / demand.calls)) if calls else 0
    own = max(calls + 1, answer - calls * each)
    turns, done, seen_by_teacher = [_Turn(False, demand.prompt_tokens, own // (calls + 1))], own // (calls + 1), 0
    for _ in range(calls):
        context = demand.prompt_tokens + done
        turns.append(_Turn(True, context - seen_by_teacher if demand.has_prefix_cache else context, each))
        seen_by_teacher = context + each
        done += each
        reads = each if demand.has_prefix_cache else demand.prompt_tokens + done
        turns.append(_Turn(False, reads, max(1, own // (calls + 1))))
        done += own // (calls + 1)
    return turns


@dataclass
class Result:
    """The result of a simulation.

    Attributes:
        answer_s (`list[float]`): seconds of each answer, sorted.
        busy (`dict[str, float]`): share of the time in which students and teachers were busy.
    """

    answer_s: list[float]
    busy: dict[str, float]

    def quantile(self, share: float) -> float:
        return self.answer_s[min(len(self.answer_s) - 1, int(share * len(self.answer_s)))]


class _Station:
    def __init__(self, curve: Curve):
        self.curve, self.waiting, self.active = curve, [], []
        self.is_stepping, self.busy_s = False, 0.0

    def load(self) -> int:
        return len(self.waiting) + len(self.active)


def simulate(
    demand: Demand, students: int, teachers: int, student: Curve, teacher: Curve, requests: int = 400, seed: int = 0
):
    """Simulates a service with these numbers of engines on random requests; returns a [`Result`].

    A job goes to the engine with the least work. With a prefix cache it stays with the engine that has its prefix. The first
    third of the answers is not counted, because the service fills up in this time.
    """
    rng = random.Random(seed)
    stations = {False: [_Station(student) for _ in range(students)], True: [_Station(teacher) for _ in range(teachers)]}
    events, number, now, done = [], 0, 0.0, []
    clock = 0.0
    for index in range(requests):
        clock += rng.expovariate(demand.requests_per_s)
        heapq.heappush(events, (clock, number, "arrive", _Job(clock, _turns(demand, rng), index >= requests // 3)))
        number += 1

    def place(job: _Job):
        nonlocal number
        kind = job.turns[0].is_teacher
        index = job.home.get(kind)
        if index is None or not demand.has_prefix_cache:
            index = min(range(len(stations[kind])), key=lambda i: stations[kind][i].load())
            job.home[kind] = index
        station = stations[kind][index]
        station.waiting.append(job)
        if not station.is_stepping:
            start(station)

    def start(station: _Station):
        nonlocal number
        reads = 0
        while station.waiting and len(station.active) < station.curve.max_batch:
            job = station.waiting.pop(0)
            reads += job.turns[0].reads
            job.left = job.turns[0].writes
            station.active.append(job)
        station.is_stepping = bool(station.active)
        if station.is_stepping:
            steps = min(_STRIDE, min(job.left for job in station.active))
            spent = steps * station.curve.step(len(station.active)) + reads / station.curve.prefill_tokens_per_s
            station.busy_s += spent
            heapq.heappush(events, (now + spent, number, "step", (station, steps)))
            number += 1

    while events:
        now, _, kind, what = heapq.heappop(events)
        if kind == "arrive":
            place(what)
            continue
        station, steps = what
        ready = []
        for job in station.active:
            job.left -= steps
            if job.left <= 0:
                ready.append(job)
        station.active = [job for job in station.active if job.left > 0]
        start(station)
        for job in ready:
            job.turns.pop(0)
            if job.turns:
                place(job)
            elif job.is_counted:
                done.append(now - job.arrived)
    busy = {
        name: sum(s.busy_s for s in stations[kind]) / (now * max(1, len(stations[kind])))
        for name, kind in (("student", False), ("teacher", True))
    }
    return Result(sorted(done), busy)


@dataclass(frozen=True)
class Service:
    """The smallest service found.

    Attributes:
        students (`int`), teachers (`int`): engines of each.
        median_s (`float`), slow_s (`float`): seconds of the median answer and of the 95th percentile.
        busy (`dict[str, float]`).
    """

    students: int
    teachers: int
    median_s: float
    slow_s: float
    busy: dict[str, float]


_LARGEST = 8
"""Most engines to simulate of the kind that needs more; a larger service is a multiple of this."""


def size_service(demand: Demand, student: Curve, teacher: Curve, slowdown: float = 2.0, seed: int = 0) -> Service:
    """The smallest service in which 95 % of the answers take at most `slowdown` times as long as alone.

    Args:
        demand ([`Demand`]).
        student, teacher ([`Curve`]).
        slowdown (`float`, defaults to `2.0`): the allowed factor.
        seed (`int`, defaults to `0`).
    """
    alone = simulate(replace(demand, requests_per_s=1e-6), 1, 1, student, teacher, 200, seed)
    limit = slowdown * alone.quantile(0.95)
    need = {}
    for is_teacher, curve in ((False, student), (True, teacher)):
        sample = [_turns(demand, random.Random(i)) for i in range(200)]
        work = sum(
            t.writes * curve.step(curve.max_batch) / curve.max_batch + t.reads / curve.prefill_tokens_per_s
            for turns in sample
            for t in turns
            if t.is_teacher == is_teacher
        ) / len(sample)
        need[is_teacher] = demand.requests_per_s * work
    cells = max(1.0, max(need.values()) / _LARGEST)  # number of equal parts of the service
    part = replace(demand, requests_per_s=demand.requests_per_s / cells)
    count = {kind: max(1, math.ceil(work / cells / 0.9)) for kind, work in need.items()}
    if demand.calls == 0:
        count[True] = 0
    requests = max(
        300, math.ceil(4 * part.requests_per_s * alone.quantile(0.95))
    )  # several times the requests under way at once
    while True:
        found = simulate(part, count[False], count[True], student, teacher, requests, seed)
        if found.quantile(0.95) <= limit:
            break
        is_teacher = found.busy["teacher"] > found.busy["student"] and count[True] > 0
        count[is_teacher] += max(1, count[is_teacher] // 8)
    return Service(
        math.ceil(count[False] * cells),
        math.ceil(count[True] * cells),
        found.quantile(0.5),
        found.quantile(0.95),
        found.busy,
    )
