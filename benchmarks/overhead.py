"""What the relay's own logic costs: rollouts with engines that answer at once, from 1 to 10,000 at the same time.

    python benchmarks/overhead.py --tokenizer data/arithmetic/student

Every rollout has the same turns: four of the student, of which the first three end in a call, and three of the teacher. The
engines hold every request until all rollouts have one, and then answer all of them, so that all are under way at every turn.
The work of the engines and of asyncio is measured with the same requests without a relay, and shown separately.
"""

import argparse
import asyncio
import gc
import statistics
import time
import tracemalloc

from tables import add_output, machine, save, table

from relay_trl.cli.endings import run
from relay_trl.engines.base import FinishReason, Generation, Sampling
from relay_trl.engines.loading import load_vocabulary
from relay_trl.relay import RelayPrompt, RelayRules, relay
from relay_trl.vocabulary import Vocabulary

CALLS = 3
TURNS = 2 * CALLS + 1


class Rounds:
    """Student and teacher in one. Holds requests until there are `size` of them, then answers all."""

    name, max_context = "rounds", None

    def __init__(self, vocabulary: Vocabulary, size: int, student_tokens: int, teacher_tokens: int):
        self.vocabulary, self._size = vocabulary, size
        digits = vocabulary.encode("1234567890" * (max(student_tokens, teacher_tokens) // 5 + 1))
        command = vocabulary.encode(f"<call>{teacher_tokens}</call>")
        said = digits[: student_tokens - len(command)] + command
        last = [*digits[: student_tokens - 1], vocabulary.eos_id]
        self._call = self._generation(said, FinishReason.STOP)
        self._end = self._generation(last, FinishReason.EOS)
        self._help = self._generation(digits[:teacher_tokens], FinishReason.LENGTH)
        self._waiting: list[tuple[asyncio.Future, Generation]] = []
        self.most_in_flight = 0
        self._first = None

    def _generation(self, ids: list[int], finish: FinishReason) -> Generation:
        words = ids[:-1] if finish is FinishReason.EOS else ids
        return Generation(ids, self.vocabulary.decode(words), finish, [-0.5] * len(ids), len(ids), 100, 80)

    async def generate(self, context, max_tokens: int, stop=(), sampling=Sampling()) -> Generation:
        answer = (
            self._help if not stop and max_tokens <= len(self._help.ids or ()) else self._call if stop else self._end
        )
        future = asyncio.get_running_loop().create_future()
        self._waiting.append((future, answer))
        if len(self._waiting) == self._size:
            self.most_in_flight = max(self.most_in_flight, self._size)
            waiting, self._waiting = self._waiting, []
            for one, generation in waiting:
                one.set_result(generation)
        return await future


async def bare(prompt: RelayPrompt, engine: Rounds, config: RelayRules):
    """A rollout's requests without a relay."""
    for turn in range(TURNS):
        is_last, is_student = turn == TURNS - 1, turn % 2 == 0
        stop = (config.syntax.close_tag,) if is_student and not is_last else ()
        await engine.generate(prompt.student, 10**6 if is_student else 1, stop)


def measure(vocabulary: Vocabulary, size: int, args, is_bare: bool, is_traced: bool = False) -> tuple[float, float]:
    """CPU seconds of `size` rollouts at the same time, and the bytes that they take at their end."""
    engine = Rounds(vocabulary, size, args.student_tokens, args.teacher_tokens)
    ids = vocabulary.encode("12+34=" * 20)
    prompt, config = RelayPrompt(ids, ids), RelayRules(max_completion_length=10**6, max_calls=CALLS)

    async def all_of_them():
        jobs = (
            bare(prompt, engine, config) if is_bare else relay(prompt, engine, engine, config, k) for k in range(size)
        )
        return await asyncio.gather(*jobs)

    if is_traced:
        tracemalloc.start()
    started = time.process_time()
    traces = asyncio.run(all_of_them())
    took = time.process_time() - started
    taken = tracemalloc.get_traced_memory()[1] if is_traced else 0
    tracemalloc.stop()
    assert is_bare or all(len(trace.calls) == CALLS for trace in traces)
    assert engine.most_in_flight == size
    return took, taken


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tokenizer", default="data/arithmetic/student", help="folder or Hub id (default: %(default)s)"
    )
    parser.add_argument("--in_flight", type=int, nargs="+", default=[1, 100, 1000, 10_000])
    parser.add_argument("--student_tokens", type=int, default=100, help="per turn (default: %(default)s)")
    parser.add_argument("--teacher_tokens", type=int, default=20, help="per turn (default: %(default)s)")
    parser.add_argument("--runs", type=int, default=5, help="(default: %(default)s)")
    add_output(parser, "overhead")
    args = parser.parse_args()
    vocabulary = load_vocabulary(args.tokenizer)
    vocabulary.decode(vocabulary.encode("1"))
    rows = []
    for size in args.in_flight:
        gc.collect()
        repeats = max(1, 200 // size)  # one rollout takes only a millisecond
        per_turn = 1e6 / (size * repeats * TURNS)
        relays, bares = [], []
        for _ in range(args.runs):
            relays.append(per_turn * sum(measure(vocabulary, size, args, False)[0] for _ in range(repeats)))
            bares.append(per_turn * sum(measure(vocabulary, size, args, True)[0] for _ in range(repeats)))
        own = [a - b for a, b in zip(relays, bares, strict=True)]
        memory = measure(vocabulary, size, args, False, is_traced=True)[1] / size
        rows.append({"in_flight": size, "relay_us": own, "engines_us": bares, "bytes_per_rollout": memory})
        print(f"{size} in flight: {statistics.median(own):.1f} us a turn", flush=True)
    shown = {
        "rollouts in flight": lambda row: f"{row['in_flight']:,}",
        "relay, us per turn": lambda row: row["relay_us"],
        "asyncio and engine, us per turn": lambda row: row["engines_us"],
        "memory per rollout, KiB": lambda row: f"{row['bytes_per_rollout'] / 1024:.1f}",
    }
    note = (
        f"Median [smallest, largest] of {args.runs} runs; {TURNS} turns a rollout, {args.student_tokens} tokens a turn of "
        f"the student, {args.teacher_tokens} of the teacher; vocabulary of {args.tokenizer}. {machine()}"
    )
    save(
        args.output_dir,
        "overhead",
        {"rows": rows, "arguments": vars(args)},
        table(shown, rows, digits=1) + "\n\n" + note,
    )


if __name__ == "__main__":
    run(main)
