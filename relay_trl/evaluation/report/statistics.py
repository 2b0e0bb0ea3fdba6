"""The figures of a comparison: the paper's headlines, bootstrap intervals, paired tests, pass@k.

Owns the formulas, on plain arrays with one row per problem. What the answers add up to is `summaries.py`'s business. Seeds
in, same numbers out.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

BOOTSTRAP_ROUNDS = 10_000
_CHUNK = 8_000_000  # resampled numbers held in memory at a time


def gap_recovered(accuracy: float, student: float, teacher: float) -> float | None:
    """How much of the way from the student's to the teacher's accuracy a method goes. A random router that sends this
    share of the queries to the teacher is as accurate.

    Returns:
        `float` or `None`: 1 at the teacher's accuracy, negative below the student's; `None` if the teacher is no better
        than the student, so that there is no gap.
    """
    return (accuracy - student) / (teacher - student) if teacher > student else None


def cost_reduction(teacher_share: float, gap: float) -> float | None:
    """How much less of the teacher a method takes than the random router of equal accuracy: 1 - share / p.

    Args:
        teacher_share (`float`): share of the tokens that the teacher wrote, 0 to 1.
        gap (`float`): [`gap_recovered`], the router's share p; above 1, where no router is as accurate, the router that
            sends everything (p = 1) is taken, so that the figure errs against the method.

    Returns:
        `float` or `None`: `None` where nothing is recovered, so that the router needs no teacher either.
    """
    return 1.0 - teacher_share / min(gap, 1.0) if gap > 0 else None


def resampled_means(table: np.ndarray, rounds: int = BOOTSTRAP_ROUNDS, seed: int = 0) -> np.ndarray:
    """Means of columns over problems drawn with replacement, the same problems for all columns: shape (rounds, K) from
    a table of shape (P, K).
    """
    table = np.asarray(table, dtype=float)
    problems = len(table)
    return np.concatenate([counts @ table / problems for counts in _all_counts(problems, rounds, seed)])


def _all_counts(problems: int, rounds: int, seed: int) -> Iterator[np.ndarray]:
    """[`_counts`] in chunks; a single one is kept for the next table, as it takes longer to draw than to use."""
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


def interval_of(values: np.ndarray, level: float = 0.95) -> tuple[float, float] | None:
    """The percentile interval of bootstrap values; `None` where more than half of them do not exist (NaN)."""
    known = values[~np.isnan(values)]
    if 2 * len(known) < len(values):
        return None
    # Without interpolation, which has no meaning between a number and minus infinity.
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    return float(low), float(high)


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, level: float = 0.95, rounds: int = BOOTSTRAP_ROUNDS, seed: int = 0
) -> tuple[float, float]:
    """The percentile bootstrap interval of the mean of `values`, shape (P,), one per problem."""
    column = np.asarray(values, dtype=float)[:, None]
    found = interval_of(resampled_means(column, rounds, seed)[:, 0], level)
    assert found is not None  # means of numbers exist
    return found


@dataclass(frozen=True)
class Headline:
    """Gap recovered and cost reduction with 95 % bootstrap intervals over problems.

    Args:
        gap, gap_interval: [`gap_recovered`]; `None` without a gap.
        reduction, reduction_interval: [`cost_reduction`]; `None` where it has no meaning.
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
    # A method that takes no teacher at all has no cost to reduce.
    is_costly = means[3] > 0 and means[4] > 0
    reduction = cost_reduction(float(means[3] / means[4]), gap) if is_costly else None
    with np.errstate(divide="ignore", invalid="ignore"):
        gaps = (rounds[:, 0] - rounds[:, 1]) / (rounds[:, 2] - rounds[:, 1])
        gaps[rounds[:, 2] <= rounds[:, 1]] = np.nan
        reductions = 1 - rounds[:, 3] / rounds[:, 4] / np.minimum(gaps, 1)
        # Where nothing is recovered the router needs no teacher either: an unboundedly bad deal, not an unknown one.
        reductions = np.where(gaps <= 0, -np.inf, reductions)
    low_high = None if reduction is None else interval_of(reductions)
    return Headline(gap, interval_of(gaps), reduction, low_high)


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same problems.

    Args:
        problems (`int`): that both answered.
        difference (`float`): accuracy of the first minus that of the second.
        interval (`tuple[float, float]`): paired bootstrap 95 % interval of the difference.
        p_bootstrap (`float`): two-sided, from the same rounds: how often the resampled difference lies on the other side
            of zero, twice.
        first_only, second_only (`int`, *optional*): problems that only one of them got right; `None` with several
            answers a problem.
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
    # One more on both sides, so that no p-value is smaller than the rounds can show.
    below, above = (int((side).sum()) + 1 for side in (rounds <= 0, rounds >= 0))
    p = min(1.0, 2 * min(below, above) / (len(rounds) + 1))
    result = Comparison(len(difference), float(difference.mean()), found, p)
    is_single = all(set(np.unique(scores)) <= {0.0, 1.0} for scores in (first, second))
    if not is_single:
        return result
    wins, losses = int((difference > 0).sum()), int((difference < 0).sum())
    return Comparison(*(result.problems, result.difference, found, p), wins, losses, mcnemar(wins, losses))


def mcnemar(first_only: int, second_only: int) -> float:
    """McNemar's exact two-sided p-value: how likely so uneven a split of the discordant problems is if none is better."""
    total = first_only + second_only
    log_half = total * math.log(0.5)
    tail = sum(
        math.exp(math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1) + log_half)
        for k in range(min(first_only, second_only) + 1)
    )
    return min(1.0, 2 * tail)


def pass_at_k(right: Sequence[int], answers: Sequence[int], k: int) -> float | None:
    """The unbiased estimate of the share of problems solved by at least one of k answers (Chen et al., 2021).

    Args:
        right (`Sequence[int]`), answers (`Sequence[int]`): right answers and all answers of each problem.
        k (`int`).

    Returns:
        `float` or `None`: the mean over problems; `None` if a problem has fewer than k answers.
    """
    if not answers or min(answers) < k:
        return None

    def miss(c: int, n: int) -> float:
        return 0.0 if n - c < k else math.prod(1 - k / j for j in range(n - c + 1, n + 1))

    return sum(1 - miss(c, n) for c, n in zip(right, answers, strict=True)) / len(answers)
