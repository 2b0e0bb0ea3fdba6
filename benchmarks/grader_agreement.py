r"""How well the grader agrees with people: gold answers against themselves, other ways to write them, near misses.

    python benchmarks/grader_agreement.py --data_dir ../shared/benchmarks

Every gold answer of the six benchmarks is graded against itself and against its rewritings, which are made here by rule. The
near misses are in tests/grading/near_misses.jsonl. `--bare` adds the verdict of math-verify alone, with the answer in
`\boxed{}` and the gold answer as in the data.
"""

import argparse
import json
import re
from collections import Counter
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from relay_trl.cli.endings import run
from relay_trl.data.registry import PAPER_SIX
from relay_trl.data.sources import load_rows
from relay_trl.grading.grader import Grader

NEAR_MISSES = Path(__file__).parents[1] / "tests" / "grading" / "near_misses.jsonl"

_INTEGER = re.compile(r"-?\d+")
_FRACTION = re.compile(r"(-?)\\[dt]?frac\{(-?\d+)\}\{(\d+)\}")
_ROOT = re.compile(r"(\d+) ?\\sqrt\{(\d+)\}")
_SCIENTIFIC = re.compile(r"(-?\d+(?:\.\d+)?)e(-?\d+)")
_INTERVAL = re.compile(r"(\\left)?([(\[])([^()\[\]]+),([^()\[\]]+?)(\\right)?([)\]])")
_WORD = re.compile(r"\\text\{(\(?[A-Za-z]+\)?)\}")


def golds_of(name: str, data_dir: str | None) -> list[str]:
    """All gold answers of a benchmark, with every alternative of a row."""
    golds = [row["answer"] for row in load_rows(name, data_dir)]
    return [one for gold in golds for one in ([gold] if isinstance(gold, str) else gold)]


def top_level_parts(text: str) -> list[str]:
    """`text` split at its commas outside brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    return [part.strip() for part in parts]


def rewritings(gold: str) -> Iterator[tuple[str, str]]:
    """Other ways to write a gold answer, by kind. A reader would accept all of them."""
    bare = gold.strip()
    if len(bare) > 1 and bare[0] == bare[-1] == "$" and bare.count("$") == 2:
        bare = bare[1:-1].strip()
    if "$" in bare and r"\$" not in bare:  # two formulas with a comma, or text
        return
    yield "dollars", f"${bare}$" if r"\$" not in bare else bare
    yield "full stop", f"{bare}."
    yield from _numbers(bare)
    if match := _ROOT.fullmatch(bare):
        yield "roots", rf"{match[1]} \cdot \sqrt{{{match[2]}}}"
        yield "roots", rf"\sqrt{{{match[2]}}} \times {match[1]}"
        yield "roots", rf"\sqrt{{{int(match[1]) ** 2 * int(match[2])}}}"
        if len(match[2]) == 1:
            yield "roots", rf"{match[1]}\sqrt {match[2]}"
    if match := re.fullmatch(r"(.+?)\^(?:\\circ|\{\\circ\})", bare):
        for written in (match[1], f"{match[1]}°", rf"{match[1]}^{{\circ}}", rf"{match[1]}\text{{ degrees}}"):
            yield "degrees", written
        yield "degrees", f"{match[1]} degrees"
    if match := re.fullmatch(r"(\d+(?:\.\d+)?) ?\\?%", bare):
        yield from (("percent", match[1] + unit) for unit in (r"\%", "%", "", " percent", r"\text{ percent}"))
        yield "percent", f"{float(Fraction(match[1]) / 100)}"
    if match := re.fullmatch(r"(.+?)\\(?:text|mbox) ?\{ [a-z]+\}(?:\^2)?", bare):
        yield "units", match[1].strip()
    yield from _sets(bare)
    if match := _WORD.fullmatch(bare):
        yield from (("words", word) for word in (match[1], match[1].upper(), rf"\textbf{{{match[1]}}}"))
    if r"\begin{pmatrix}" in bare:
        yield "matrices", bare.replace("pmatrix", "bmatrix")
        yield "matrices", bare.replace(r"\begin", r"\left. \begin").replace("pmatrix}", "pmatrix} ")[len(r"\left. ") :]
    if match := re.fullmatch(r"(\d+)_\{?(\d+)\}?", bare):
        yield from (("bases", written) for written in (f"{match[1]}_{match[2]}", rf"{match[1]}_{{{match[2]}}}"))
    if match := re.fullmatch(r"[a-z](?:\([a-z]\))? ?= ?([^=,]+)", bare):
        yield "equations", match[1]


def _numbers(bare: str) -> Iterator[tuple[str, str]]:
    plain = bare.replace(r"\$", "").replace(r",\!", "").replace(r"\! ", "").replace(",", "")
    if _INTEGER.fullmatch(plain) and ("," not in bare or re.fullmatch(r"(?:\\\$)?\d{1,3}(?:,(?:\\! ?)?\d{3})+", bare)):
        yield "units", rf"{plain} \text{{ cm}}"
        yield "units", f"{plain} dollars"
        yield "units", rf"\${plain}"
        yield "units", rf"{plain}\ \text{{square units}}"
        yield "units", rf"{plain}\,\mathrm{{km/h}}"
        yield "units", rf"{plain}\text{{ cm}}^2"
        yield "equations", f"x = {plain}"
        yield "decimals", f"{plain}.0"
        yield "decimals", f"{plain}.00"
        if len(plain.lstrip("-")) > 3:
            grouped = f"{int(plain):,}"
            for comma in (",", "{,}", r"\,", r",\!", " "):
                yield "thousands", grouped.replace(",", comma) if comma != " " else plain
    if match := _FRACTION.fullmatch(bare):
        sign, top, bottom = match[1], int(match[2]), int(match[3])
        yield "fractions", rf"{sign}\dfrac{{{top}}}{{{bottom}}}"
        yield "fractions", f"{sign}{top}/{bottom}"
        yield "fractions", rf"\frac{{{sign}{2 * top}}}{{{2 * bottom}}}"
        if top > 0:
            yield "fractions", rf"\frac{{{'-' if sign == '' else ''}{top}}}{{-{bottom}}}"
        if 0 < top < 10 and bottom < 10:
            yield "fractions", rf"{sign}\frac{top}{bottom}"
        if top > bottom:
            yield "fractions", rf"{sign}{top // bottom}\frac{{{top % bottom}}}{{{bottom}}}"
            yield "fractions", f"{sign}{top // bottom} {top % bottom}/{bottom}"
        value = Fraction(top, bottom)
        if (10**6) % value.denominator == 0:
            yield "fractions", f"{sign}{float(value):.6f}".rstrip("0").rstrip(".")
    if re.fullmatch(r"-?\d*\.\d+", bare):
        value = Fraction(bare)
        yield "decimals", f"{bare}0"
        yield "decimals", bare.replace("0.", ".") if bare.startswith("0.") else bare
        yield "fractions", rf"\frac{{{value.numerator}}}{{{value.denominator}}}"
    if match := _SCIENTIFIC.fullmatch(bare):
        yield "scientific", rf"{match[1]} \times 10^{{{match[2]}}}"
        yield "scientific", rf"{match[1]} \cdot 10^{{{match[2]}}}"
        yield "scientific", f"{match[1]}E{match[2]}"


def _sets(bare: str) -> Iterator[tuple[str, str]]:
    parts = top_level_parts(bare)
    if len(parts) > 1 and not any(mark in bare for mark in ("where", "=", r"\{", r"\pm")):
        if not re.fullmatch(r"\d{1,3}(?:,\d{3})+", bare) and r"\!" not in bare:
            yield "order of sets", ", ".join(reversed(parts))
            yield "order of sets", rf"\{{{', '.join(parts)}\}}"
            yield "order of sets", rf"\left\{{ {' ,'.join(parts)} \right\}}"
            for word in ("and", "or"):
                yield "order of sets", ", ".join(parts[:-1]) + rf" \text{{ {word} }} {parts[-1]}"
            if not any(part.startswith("(") for part in parts):
                yield "equations", r" \text{ or } ".join(f"x = {part}" for part in parts)
    if match := _INTERVAL.fullmatch(bare):
        yield "intervals", rf"\left{match[2]}{match[3]}, {match[4]}\right{match[6]}"
        yield "intervals", f"{match[2]}{match[3].strip()},{match[4].strip()}{match[6]}"
        if match[2] == "[" or match[6] == "]" or "infty" in bare:  # "(1,2)" may be a point
            yield "intervals", rf"x \in {match[2]}{match[3]}, {match[4]}{match[6]}"
            left = "" if "infty" in match[3] else rf"{match[3]} {'<' if match[2] == '(' else chr(92) + 'le'} "
            right = "" if "infty" in match[4] else rf" {'<' if match[6] == ')' else chr(92) + 'le'} {match[4]}"
            yield "intervals", f"{left}x{right}"
    if r"\cup" in bare and r"\{" not in bare:
        yield "intervals", r" \cup ".join(reversed([part.strip() for part in bare.split(r"\cup")]))


def near_misses() -> list[dict]:
    """Wrong answers that are similar to a gold answer: `kind`, `gold` and `answer`."""
    return [json.loads(line) for line in NEAR_MISSES.read_text(encoding="utf-8").splitlines()]


def bare_verdicts(answers: list[str], golds: list[str]) -> list[bool]:
    """The verdict of math-verify without this package."""
    from math_verify import parse, verify

    return [
        bool(verify(parse(gold), parse(rf"\boxed{{{answer}}}"))) for answer, gold in zip(answers, golds, strict=True)
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", help="folder with local copies of the benchmarks; the Hub's if unset")
    parser.add_argument("--bare", action="store_true", help="also ask math-verify alone")
    parser.add_argument("--show", action="store_true", help="print every disagreement")
    args = parser.parse_args()
    cases = [("gold against itself: " + name, g, g, True) for name in PAPER_SIX for g in golds_of(name, args.data_dir)]
    for _, gold, _, _ in list(cases):
        cases += [("rewriting: " + kind, gold, answer, True) for kind, answer in rewritings(gold)]
    cases += [("near miss: " + case["kind"], case["gold"], case["answer"], False) for case in near_misses()]
    cases = list(dict.fromkeys(cases))
    golds, answers = [case[1] for case in cases], [case[2] for case in cases]
    with Grader(time_limit_s=20.0) as grader:
        verdicts = {"this grader": grader.grade([rf"\boxed{{{answer}}}" for answer in answers], golds)}
    if args.bare:
        verdicts["math-verify alone"] = bare_verdicts(answers, golds)
    counts = Counter(case[0] for case in cases)
    print(
        "| what | cases | "
        + " | ".join(f"{name}: agrees" for name in verdicts)
        + " |\n|---|---|"
        + "---|" * len(verdicts)
    )
    agree = {
        name: Counter(case[0] for case, verdict in zip(cases, given, strict=True) if verdict == case[3])
        for name, given in verdicts.items()
    }
    for what, count in counts.items():
        shown = (f"{agree[name][what]} ({100 * agree[name][what] / count:.1f} %)" for name in verdicts)
        print(f"| {what} | {count} | " + " | ".join(shown) + " |")
    if args.show:
        for case, verdict in zip(cases, verdicts["this grader"], strict=True):
            if verdict != case[3]:
                print(f"{case[0]}: gold {case[1]!r}, answer {case[2]!r}: {'right' if verdict else 'wrong'}")


if __name__ == "__main__":
    run(main)
