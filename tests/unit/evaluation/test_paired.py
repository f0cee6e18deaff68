"""Paired tests, against sums that were worked out by hand and against enumeration."""

from __future__ import annotations

import itertools
from fractions import Fraction
from math import comb

import numpy as np
import pytest

from lorabank.core.records import EvaluationRecord
from lorabank.evaluation.paired import paired_test
from lorabank.evaluation.row_scores import KEY, row_detail, stored_rows


def rows(better: int, worse: int, equal: int) -> np.ndarray:
    return np.array([1.0] * better + [-1.0] * worse + [0.0] * equal)


def test_mcnemar_by_hand() -> None:
    """8 rows against 2: 2 (1 + 10 + 45) / 1024."""
    found = paired_test([rows(8, 2, 90)])
    assert (found.test, found.p_value) == ("mcnemar", 112 / 1024)
    assert (found.better, found.worse, found.rows) == (8, 2, 100)
    assert found.difference == pytest.approx(0.06)
    # sum of squares 10, mean 0.06: (10 - 100 * 0.0036) / 99 / 100
    assert found.standard_error == pytest.approx((9.64 / 9900) ** 0.5)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 5), (0, 12), (61, 39), (700, 800)])
def test_mcnemar_is_the_exact_binomial(better: int, worse: int) -> None:
    n = better + worse
    tail = sum(Fraction(comb(n, k), 2**n) for k in range(min(better, worse) + 1))
    assert paired_test([rows(better, worse, 7)]).p_value == pytest.approx(float(min(Fraction(1), 2 * tail)), rel=1e-12)


def test_few_differences_of_other_sizes_are_enumerated() -> None:
    values = np.array([0.5, -0.1, 0.3, 0.25, 0.0, 0.7])
    found = paired_test([values])
    sums = [abs(np.dot(signs, np.abs(values))) for signs in itertools.product((1, -1), repeat=len(values))]
    assert found.test == "all"
    assert found.p_value == pytest.approx(np.mean([one >= abs(values.sum()) - 1e-12 for one in sums]))


def test_many_differences_are_sampled_near_the_normal_tail() -> None:
    values = np.random.default_rng(3).normal(0.1, 1, 400)
    found = paired_test([values])
    z = abs(values.sum()) / np.sqrt((values**2).sum())
    from scipy.stats import norm

    assert found.test == "sampled"
    assert found.p_value == pytest.approx(2 * norm.sf(z), abs=0.02)
    assert found == paired_test([values])


def test_the_interval_is_that_of_the_mean() -> None:
    found = paired_test([rows(80, 40, 880)])
    assert found.standard_error is not None
    assert found.low == pytest.approx(0.04 - 1.96 * found.standard_error, abs=0.002)
    assert found.high == pytest.approx(0.04 + 1.96 * found.standard_error, abs=0.002)


def test_every_task_counts_the_same() -> None:
    """0.5 on two rows and -0.25 on eight: the mean is 0.125; variances 0.5 / 2 and (1.5 / 7) / 8, over 4."""
    found = paired_test([np.array([1.0, 0.0]), np.array([-1.0, -1.0, *[0.0] * 6])])
    assert found.difference == pytest.approx(0.125)
    assert found.standard_error == pytest.approx(((0.25 + 1.5 / 56) / 4) ** 0.5)
    # sizes 1/4, 1/16, 1/16: of 8 patterns, +-(1/4 + ...) with any sign of the small ones are at least 1/8
    assert (found.test, found.p_value) == ("all", 1.0)


def test_a_single_row_has_no_standard_error() -> None:
    assert paired_test([np.array([1.0])]).standard_error is None


def record(value: float, n: int, detail: dict[str, object]) -> EvaluationRecord:
    return EvaluationRecord("k", "as-trained", 1, "t", "accuracy", value, n, 0.0, 1.0, "given", {}, detail)


def test_right_and_wrong_rows_are_kept_as_bits() -> None:
    scores = np.array([1.0, 0, 0, 1, 1, 1, 0, 0, 1, 1])
    detail = row_detail(scores)
    assert detail == {KEY: "nMA="}  # 10011100 11000000
    np.testing.assert_array_equal(stored_rows(record(0.6, 10, detail)), scores)
    assert row_detail(np.array([0.5, 1])) == {}


@pytest.mark.parametrize("kept", ["", "nMA", "nA==", "????", 7, None])
def test_what_is_not_the_cells_rows_is_not_used(kept: object) -> None:
    assert stored_rows(record(0.6, 10, {KEY: kept})) is None
    assert stored_rows(record(0.7, 10, {KEY: "nMA="})) is None
