"""The formulas of the evaluation: gap recovered, cost reduction, bootstrap intervals, paired tests, pass@k.

Works on arrays with one row per problem, which come from `summaries.py`. The same seed gives the same numbers.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.stats import binomtest

BOOTSTRAP_ROUNDS = 10_000
_CHUNK = 8_000_000  # resampled numbers held in memory at a time


def gap_recovered(accuracy: float, student: float, teacher: float) -> float | None:
    """The share of the gap between student and teacher that a method closes. A random router that sends this share of the
    queries to the teacher has the same accuracy.

    Returns:
        `float` or `None`: 1 at the teacher's accuracy, negative below the student's; `None` if the teacher is not better
        than the student, because there is no gap.
    """
    return (accuracy - student) / (teacher - student) if teacher > student else None


def cost_reduction(teacher_share: float, gap: float) -> float | None:
    """The share of teacher tokens that a method saves compared with the random router of equal accuracy: 1 - share / p.

    Args:
        teacher_share (`float`): share of the tokens that the teacher wrote, 0 to 1.
        gap (`float`): [`gap_recovered`], the router's share p. Above 1 no router is as accurate; then p = 1 is used (all
            queries go to the teacher), which is to the method's disadvantage.

    Returns:
        `float` or `None`: `None` if nothing is recovered, because the router then needs no teacher.
    """
    return 1.0 - teacher_share / min(gap, 1.0) if gap > 0 else None


def resampled_means(table: np.ndarray, rounds: int = BOOTSTRAP_ROUNDS, seed: int = 0) -> np.ndarray:
    """Means over problems that are drawn with replacement, the same problems for all columns.

    Returns shape (rounds, K) for a table of shape (P, K).
    """
    table = np.asarray(table, dtype=float)
    problems = len(table)
    return np.concatenate([counts @ table / problems for counts in _all_counts(problems, rounds, seed)])


def _all_counts(problems: int, rounds: int, seed: int) -> Iterator[np.ndarray]:
    """[`_counts`] in chunks. A single chunk is kept for the next table, because drawing takes longer than using it."""
    step = max(1, _CHUNK // problems)
    if rounds <= step:
        yield _kept_counts(problems, rounds, seed)
        return
    rng = np.random.default_rng(seed)
    for done in range(0, rounds, step):
        yield _counts(rng, problems, min(step, rounds - done))


@lru_cache(maxsize=2)
def _kept_counts(problems: int, rounds: int, seed: int) -> np.ndarray:
    return _counts(np.random.default_rng(seed), problems, rounds)


def _counts(rng: np.random.Generator, problems: int, rounds: int) -> np.ndarray:
    """How often each problem is drawn in each round, shape (rounds, P)."""
    drawn = rng.integers(problems, size=(rounds, problems))
    flat = (drawn + problems * np.arange(rounds)[:, None]).ravel()
    return np.bincount(flat, minlength=rounds * problems).reshape(rounds, problems).astype(float)


def interval_of(values: np.ndarray) -> tuple[float, float] | None:
    """The 95 % percentile interval of bootstrap values; `None` if more than half of them do not exist (NaN)."""
    known = values[~np.isnan(values)]
    if 2 * len(known) < len(values):
        return None
    # No interpolation: it has no meaning between a number and minus infinity.
    low, high = np.quantile(known, [0.025, 0.975], method="inverted_cdf")
    return float(low), float(high)


def bootstrap_interval(values: Sequence[float] | np.ndarray, seed: int = 0) -> tuple[float, float]:
    """The 95 % percentile bootstrap interval of the mean of `values`, shape (P,), one per problem."""
    found = interval_of(resampled_means(np.asarray(values, dtype=float)[:, None], seed=seed)[:, 0])
    assert found is not None  # means of numbers exist
    return found


@dataclass(frozen=True)
class Headline:
    """Gap recovered and cost reduction with 95 % bootstrap intervals over problems.

    Args:
        gap, gap_interval: [`gap_recovered`]; `None` without a gap.
        reduction, reduction_interval: [`cost_reduction`]; `None` if it has no meaning.
    """

    gap: float | None = None
    gap_interval: tuple[float, float] | None = None
    reduction: float | None = None
    reduction_interval: tuple[float, float] | None = None


def headline(means: np.ndarray, rounds: np.ndarray) -> Headline:
    """The paper's headline figures from means over problems.

    Args:
        means (`np.ndarray` of shape (5,)): accuracy of the method, of the student and of the teacher; the method's teacher
            tokens and all its tokens, per problem.
        rounds (`np.ndarray` of shape (rounds, 5)): the same, resampled.
    """
    gap = gap_recovered(*map(float, means[:3]))
    if gap is None:
        return Headline()
    # A method without any teacher token has no cost to reduce.
    is_costly = means[3] > 0 and means[4] > 0
    reduction = cost_reduction(float(means[3] / means[4]), gap) if is_costly else None
    with np.errstate(divide="ignore", invalid="ignore"):
        gaps = (rounds[:, 0] - rounds[:, 1]) / (rounds[:, 2] - rounds[:, 1])
        gaps[rounds[:, 2] <= rounds[:, 1]] = np.nan
        reductions = 1 - rounds[:, 3] / rounds[:, 4] / np.minimum(gaps, 1)
        # If nothing is recovered, the router needs no teacher: the reduction is minus infinity, not unknown.
        reductions = np.where(gaps <= 0, -np.inf, reductions)
    low_high = None if reduction is None else interval_of(reductions)
    return Headline(gap, interval_of(gaps), reduction, low_high)


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same problems.

    Args:
        problems (`int`): problems that both answered.
        difference (`float`): accuracy of the first minus that of the second.
        interval (`tuple[float, float]`): paired bootstrap 95 % interval of the difference.
        p_bootstrap (`float`): two-sided p-value from the same rounds: twice the share of resampled differences on the other
            side of zero.
        first_only, second_only (`int`, *optional*): problems that only one of them solved; `None` with several answers to a
            problem.
        p_mcnemar (`float`, *optional*): McNemar's exact two-sided test on these two numbers.
    """

    problems: int
    difference: float
    interval: tuple[float, float]
    p_bootstrap: float
    first_only: int | None = None
    second_only: int | None = None
    p_mcnemar: float | None = None


def compare(first: np.ndarray, second: np.ndarray, seed: int = 0) -> Comparison:
    """Compares the scores of two methods, both of shape (P,): each problem's share of right answers."""
    difference = np.asarray(first, dtype=float) - np.asarray(second, dtype=float)
    rounds = resampled_means(difference[:, None], seed=seed)[:, 0]
    found = interval_of(rounds)
    assert found is not None  # differences exist
    # One is added on both sides, so that a p-value is not smaller than the rounds can show.
    below, above = (int((side).sum()) + 1 for side in (rounds <= 0, rounds >= 0))
    p = min(1.0, 2 * min(below, above) / (len(rounds) + 1))
    result = Comparison(len(difference), float(difference.mean()), found, p)
    is_single = all(set(np.unique(scores)) <= {0.0, 1.0} for scores in (first, second))
    if not is_single:
        return result
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    return Comparison(*(result.problems, result.difference, found, p), wins, losses, mcnemar(wins, losses))


def mcnemar(first_only: int, second_only: int) -> float:
    """McNemar's exact two-sided p-value: the probability of such an uneven split if both methods are equally good."""
    total = first_only + second_only
    return float(binomtest(first_only, total).pvalue) if total else 1.0


def pass_at_k(right: Sequence[int], answers: Sequence[int], k: int) -> float | None:
    """The unbiased estimate of the share of problems solved by at least one of k answers (Chen et al., 2021).

    Args:
        right (`Sequence[int]`), answers (`Sequence[int]`): number of right answers and of all answers, for each problem.
        k (`int`).

    Returns:
        `float` or `None`: the mean over problems; `None` if a problem has fewer than k answers.
    """
    if not answers or min(answers) < k:
        return None

    def miss(c: int, n: int) -> float:
        return 0.0 if n - c < k else math.prod(1 - k / j for j in range(n - c + 1, n + 1))

    return sum(1 - miss(c, n) for c, n in zip(right, answers, strict=True)) / len(answers)
