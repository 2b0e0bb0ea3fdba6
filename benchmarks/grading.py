"""How many answers are graded in a second, and what a hostile answer costs.

    python benchmarks/grading.py --data_dir folder_with_gsm8k

Gold answers are those of GSM8K or similar numbers. An answer is a long text around a box that is right or wrong. Most are plain
numbers, like a model's answers to GSM8K; a second row has only fractions, which math-verify must read.
"""

import argparse
import random
import time

from tables import add_output, machine, save, table

from relay_trl.cli.endings import run
from relay_trl.data.sources import load_rows
from relay_trl.grading.grader import Grader

HOSTILE = {
    "9^{9^{9^9}}": r"\boxed{9^{9^{9^9}}}",
    "100 kB of braces": "{" * 100_000,
    "a box of 100 kB": r"\boxed{" + "{" * 100_000,
}


def answers_to(golds: list[str], seed: int, plain: float) -> list[str]:
    """One text per gold answer, half of them right. A share `plain` of them needs no math-verify."""
    draw = random.Random(seed)
    texts = []
    for gold in golds:
        number = int(float(gold.replace(",", "")))
        number += draw.randint(1, 9) if draw.random() < 0.5 else 0
        simple = [f"{number}", f"{number:,}", f"{number}.00", rf"\${number}", rf"{number} \text{{ apples}}"]
        box = draw.choice(simple) if draw.random() < plain else rf"\frac{{{2 * number}}}{{2}}"
        texts.append("First we add what is left, " * 40 + rf"so the answer is \boxed{{{box}}}.")
    return texts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="folder with a copy of GSM8K (default: whole numbers drawn at random)")
    parser.add_argument("--runs", type=int, default=5, help="(default: %(default)s)")
    parser.add_argument("--time_limit_s", type=float, default=2.0, help="(default: %(default)s)")
    add_output(parser, "grading")
    args = parser.parse_args()
    draw = random.Random(0)
    golds = [f"{int(draw.lognormvariate(4.0, 2.0)) + 1}" for _ in range(1319)]
    if args.data_dir:
        golds = [row["answer"] for row in load_rows("gsm8k", args.data_dir)]
    rates: dict[float, list[float]] = {0.95: [], 0.0: []}
    right = []
    hostile: dict[str, list[float]] = {name: [] for name in HOSTILE}
    for seed in range(args.runs):
        with Grader(time_limit_s=args.time_limit_s) as grader:
            grader.grade([r"\boxed{\frac{1}{2}}"] * 8, ["0.5"] * 8)  # starts the processes
            for plain, measured in rates.items():
                texts = answers_to(golds, seed, plain)
                started = time.perf_counter()
                verdicts = grader.grade(texts, golds)
                measured.append(len(texts) / (time.perf_counter() - started))
                right.append(100 * sum(verdicts) / len(verdicts))
            for name, text in HOSTILE.items():
                started = time.perf_counter()
                verdicts = grader.grade([text, *texts[:64]], ["7", *golds[:64]])
                hostile[name].append(time.perf_counter() - started)
                assert verdicts[0] is False
    kinds = {0.95: "95 % plain numbers, 5 % fractions", 0.0: "fractions only"}
    rows = [{"name": f"{len(golds):,} answers ({kinds[p]}), answers a second", "value": v} for p, v in rates.items()]
    rows += [
        {"name": f"64 fractions and one hostile ({name}), seconds", "value": seconds}
        for name, seconds in hostile.items()
    ]
    columns = {"what": lambda row: row["name"], "measured": lambda row: row["value"]}
    note = (
        f"Golds {'of GSM8K' if args.data_dir else 'drawn at random'}. Median [smallest, largest] of {args.runs} runs with other answers each; {min(right):.0f} to {max(right):.0f} % of "
        f"the answers right; time limit {args.time_limit_s:g} s. {machine()}"
    )
    save(
        args.output_dir,
        "grading",
        {"rows": rows, "arguments": vars(args)},
        f"{table(columns, rows, digits=1)}\n\n{note}",
    )


if __name__ == "__main__":
    run(main)
