"""Formulas of the evaluation against other implementations, simulations and cases by hand; costs against sums by hand."""

import math

import numpy as np
import pytest

from relay_trl.costs import (
    ModelCosts,
    PriceTable,
    Usage,
    count_parameters,
    fill_parameters,
    load_costs,
    usage_costs,
    with_prices,
)
from relay_trl.evaluation.report.statistics import (
    compare,
    headline,
    interval_of,
    mcnemar,
    pass_at_k,
    resampled_means,
)
from relay_trl.trace import Author, Reading, Span, Trace


def test_resampling_draws_the_same_problems_for_all_columns():
    table = np.column_stack([np.arange(50.0), 2 * np.arange(50.0) + 1])
    means = resampled_means(table, rounds=500)
    assert means[:, 1] == pytest.approx(2 * means[:, 0] + 1)
    assert means[:, 0].std() == pytest.approx(np.arange(50).std() / 50**0.5, rel=0.15)
    assert np.array_equal(means, resampled_means(table, rounds=500))
    assert not np.array_equal(means, resampled_means(table, rounds=500, seed=1))


def test_mcnemar_is_the_binomial_test():
    for wins, losses in ((0, 0), (1, 0), (5, 5), (12, 3), (40, 20), (700, 600)):
        total = wins + losses
        tail = sum(math.comb(total, k) for k in range(min(wins, losses) + 1)) / 2**total
        assert mcnemar(wins, losses) == mcnemar(losses, wins) == pytest.approx(min(1.0, 2 * tail), rel=1e-6)


def test_a_comparison_by_hand():
    first, second = np.repeat([1.0, 1.0, 0.0, 0.0], [50, 30, 10, 10]), np.repeat([1.0, 0.0, 1.0, 0.0], [50, 30, 10, 10])
    found = compare(first, second)
    assert (found.problems, found.difference, found.first_only, found.second_only) == (100, pytest.approx(0.2), 30, 10)
    error = (first - second).std() / 10
    assert found.interval == pytest.approx((0.2 - 1.96 * error, 0.2 + 1.96 * error), abs=0.015)
    assert found.p_mcnemar == pytest.approx(mcnemar(30, 10)) and found.p_bootstrap < 0.01
    same = compare(first, first)
    assert (same.difference, same.p_bootstrap, same.p_mcnemar) == (0.0, 1.0, 1.0)
    several = compare(first * 0.5, second)
    assert several.p_mcnemar is None and several.first_only is None


def test_p_of_equal_methods_is_uniform():
    rng = np.random.default_rng(0)
    draws = [compare(*(rng.random((2, 60)) < 0.5).astype(float)).p_bootstrap for _ in range(20)]
    assert sum(p < 0.1 for p in draws) <= 6 and max(draws) > 0.5


def test_pass_at_k_counts_subsets():
    from itertools import combinations

    def by_hand(c, n, k):
        subsets = list(combinations([True] * c + [False] * (n - c), k))
        return sum(any(subset) for subset in subsets) / len(subsets)

    for n in (1, 4, 6):
        for k in range(1, n + 1):
            right = list(range(n + 1))
            expected = np.mean([by_hand(c, n, k) for c in right])
            assert pass_at_k(right, [n] * len(right), k) == pytest.approx(expected)
    assert pass_at_k([1, 2], [2, 4], 3) is None and pass_at_k([], [], 1) is None


def test_headlines_with_intervals():
    rng = np.random.default_rng(0)
    draws = rng.random((400, 3)) < [0.7, 0.4, 0.9]
    table = np.column_stack([draws, np.full(400, 5.0), np.full(400, 100.0)]).astype(float)
    found = headline(table.mean(axis=0), resampled_means(table))
    gap = (table[:, 0].mean() - table[:, 1].mean()) / (table[:, 2].mean() - table[:, 1].mean())
    assert found.gap == pytest.approx(gap) and found.reduction == pytest.approx(1 - 0.05 / gap)
    assert found.gap_interval[0] < gap < found.gap_interval[1] and found.gap_interval[1] - found.gap_interval[0] < 0.4
    assert found.reduction_interval[0] < found.reduction < found.reduction_interval[1]
    reverse = table[:, [0, 2, 1, 3, 4]]
    assert headline(reverse.mean(axis=0), resampled_means(reverse)).gap is None
    # No better than the student in many rounds: there the deal is unboundedly bad, so the lower bound is minus infinity.
    weak = table.copy()
    weak[:, 0] = table[:, 1]
    weak[np.flatnonzero(table[:, 1] == 0)[:2], 0] = 1.0
    assert headline(weak.mean(axis=0), resampled_means(weak)).reduction_interval[0] == -math.inf
    assert interval_of(np.array([np.nan, np.nan, 1.0])) is None


# Costs


def trace(student, teacher, student_read=(10, 4), teacher_read=(20, 15)):
    spans = [Span(Author.STUDENT, list(range(student)), "s"), Span(Author.TEACHER, list(range(teacher)), "t")]
    spans.append(Span(Author.CLOSING, [0], ""))
    return Trace([0], spans, student_read=Reading(*student_read), teacher_read=Reading(*teacher_read))


PRICES = PriceTable(ModelCosts(10, 1.0, 0.1, 2.0), ModelCosts(100, 10.0, None, 30.0), "EUR")


def test_costs_by_hand():
    costs = usage_costs([trace(6, 2), trace(10, 4)], PRICES)
    assert (costs.student.written, costs.teacher.written) == (8, 3)  # the end token set by nobody costs nothing
    assert (costs.teacher.read, costs.teacher.computed) == (20, 5)
    assert costs.active_parameters == pytest.approx((8 * 10 + 3 * 100) / 11)
    assert costs.flops == pytest.approx(2 * 10 * (6 + 8) + 2 * 100 * (5 + 3))
    assert costs.flops_uncached == pytest.approx(2 * 10 * (10 + 8) + 2 * 100 * (20 + 3))
    student, teacher = 6 * 1 + 4 * 0.1 + 8 * 2, 5 * 10 + 15 * 10 + 3 * 30
    assert costs.money == pytest.approx((student + teacher) / 1e6) and costs.currency == "EUR"


def test_what_is_unknown_makes_the_sum_unknown_and_no_more():
    unknown = usage_costs([trace(6, 2), trace(6, 2, teacher_read=(None, None))], PRICES)
    assert unknown.teacher.read is None and unknown.flops is None and unknown.money is None
    assert unknown.active_parameters is not None
    alone = with_prices(Usage(5, 10, 0), Usage(0, 0, 0), PriceTable(ModelCosts(10, 1, 1, 1)))
    assert alone.flops == 2 * 10 * 15 and alone.money == pytest.approx(
        15e-6
    )  # a teacher that is not asked costs nothing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("student: {parametres: 3}", "student has parametres; known are parameters, read, cached, write"),
        ("teacher: {read: -1}", "teacher.read is -1; it must be a finite number of at least 0"),
        ("teacher: {read: .inf}", "teacher.read is inf"),
        ("teacher: {read: much}", "teacher.read is 'much'"),
        ("prices: {}", "must have the fields currency, student, teacher"),
        ("student: [", "is not valid YAML"),
        ("student: 3", "student has 3"),
    ],
)
def test_price_tables_that_are_none(tmp_path, text, message):
    (tmp_path / "costs.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        load_costs(str(tmp_path / "costs.yaml"))


def test_a_price_table_and_counted_parameters(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, tmp_path / "model.safetensors")
    (tmp_path / "costs.yaml").write_text("currency: EUR\nteacher: {parameters: 8.2e9, read: 0.1, write: 3}\n")
    table = fill_parameters(load_costs(str(tmp_path / "costs.yaml")), str(tmp_path), "http://somewhere")
    assert table == PriceTable(ModelCosts(17), ModelCosts(8.2e9, 0.1, None, 3.0), "EUR")
    assert count_parameters("no/folder") is None and load_costs(None) == PriceTable()
    with pytest.raises(FileNotFoundError, match="costs: the file nothing.yaml"):
        load_costs("nothing.yaml")
