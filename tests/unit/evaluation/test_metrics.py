"""Metrics against numbers worked out by hand and against the released logs of O-LoRA."""

from __future__ import annotations

import inspect

import numpy as np
import pytest

from lorabank.core.shelves import METRICS
from lorabank.evaluation.metrics import Values, compute_scalars, intransigence, wilson_interval

NAN = float("nan")

# Three tasks; the first row is the untrained base.
SMALL = np.array(
    [
        [0.10, 0.20, 0.30],
        [0.80, 0.25, 0.35],
        [0.90, 0.70, 0.45],
        [0.95, 0.60, 0.90],
    ]
)
COUNTS = np.array([100, 300, 600])

# name: (macro, micro), by hand. For example forgetting: (0.90 - 0.95, 0.70 - 0.60) -> mean 0.025, over rows
# (100 * -0.05 + 300 * 0.10) / 400 = 0.0625.
BY_HAND = {
    "average_accuracy": (2.45 / 3, 0.815),
    "average_incremental_accuracy": ((0.8 + 0.8 + 2.45 / 3) / 3, (0.8 + 0.75 + 0.815) / 3),
    "learning_accuracy": (0.8, 0.83),
    "backward_transfer": (0.025, -0.0375),
    "backward_transfer.div_t": (0.05 / 3, -0.015),
    "forward_transfer": (0.1, 105 / 900),
    "forgetting": (0.025, 0.0625),
    "forgetting.first_last": (-0.025, 0.0375),
    "forgetting.max_all": (0.05, 0.075),
    "intransigence": (0.1, 0.07),
}
REFERENCE = np.array([0.9, 0.9, 0.9])


def lower_triangle(*rows: list[float]) -> Values:
    """A matrix whose untrained row and upper triangle were not measured."""
    values = np.full((len(rows) + 1, len(rows)), NAN)
    for index, row in enumerate(rows, start=1):
        values[index, : len(row)] = row
    return values


def test_every_metric_has_a_number_by_hand() -> None:
    assert set(BY_HAND) == set(METRICS)


@pytest.mark.parametrize("name", METRICS)
def test_metric_by_hand(name: str) -> None:
    macro, micro = BY_HAND[name]
    assert compute_scalars(SMALL, None, REFERENCE)[name] == pytest.approx(macro, abs=1e-12)
    assert compute_scalars(SMALL, COUNTS, REFERENCE)[name] == pytest.approx(micro, abs=1e-12)


# From the logs released with O-LoRA (arXiv 2310.14152), order 1: dbpedia, amazon, yahoo, agnews.
ORDER_1 = {
    "O-LoRA": lower_triangle(
        [98.7105],
        [98.5526, 57.7632],
        [97.4079, 57.4079, 71.9079],
        [97.7368, 56.0658, 71.0395, 88.6184],
    ),
    "IncLoRA": lower_triangle(
        [98.7105],
        [82.4737, 57.0132],
        [80.7763, 44.9474, 72.3816],
        [79.5, 40.8158, 64.1447, 90.0132],
    ),
    "SeqFT": lower_triangle(
        [97.0132],
        [89.1053, 55.25],
        [74.7632, 53.4474, 72.2763],
        [79.5263, 52.6711, 48.8421, 90.0263],
    ),
}
ORDER_1_SCALARS = {  # AA, BWT/(T-1), BWT/T, F first-last, F max without last row, F max with it, AIA, mean diagonal
    "O-LoRA": (78.3651, -1.1798, -0.8849, 1.1798, 1.1798, 1.1798, 82.7020, 79.2500),
    "IncLoRA": (68.6184, -14.5483, -10.9112, 14.5483, 14.5483, 14.5483, 75.7769, 79.5296),
    "SeqFT": (67.7665, -14.5000, -10.8750, 14.5000, 14.5000, 14.5000, 75.9466, 78.6414),
}
NAMES = (
    "average_accuracy",
    "backward_transfer",
    "backward_transfer.div_t",
    "forgetting.first_last",
    "forgetting",
    "forgetting.max_all",
    "average_incremental_accuracy",
    "learning_accuracy",
)


@pytest.mark.parametrize("run", ORDER_1)
def test_released_logs_order_1(run: str) -> None:
    scalars = compute_scalars(ORDER_1[run])
    assert [scalars[name] for name in NAMES] == pytest.approx(ORDER_1_SCALARS[run], abs=5.1e-5)


# The long order: yelp, amazon, MNLI, CB, COPA, QQP, RTE, IMDB, SST-2, dbpedia, agnews, yahoo, MultiRC, BoolQA, WiC.
LONG_LAST = [
    *(62.1447, 60.0, 61.2368, 73.2143, 64.0, 72.7895, 69.6751, 94.9342),
    *(91.9725, 98.4079, 86.4211, 65.1974, 61.1386, 69.4495, 52.0376),
]
LONG_DIAGONAL = [
    *(60.5658, 60.7895, 69.4211, 87.5, 54.0, 72.7763, 66.787, 94.3421),
    *(91.7431, 98.7105, 87.2895, 65.4079, 62.335, 69.1743, 52.0376),
]
LONG_ROWS = np.array([7600, 7600, 7600, 56, 100, 7600, 277, 7600, 872, 7600, 7600, 7600, 4848, 3270, 638])


def test_released_logs_long_order() -> None:
    values = np.full((16, 15), NAN)
    values[np.arange(1, 16), np.arange(15)] = LONG_DIAGONAL
    values[15] = LONG_LAST
    scalars = compute_scalars(values)
    expected = {
        "average_accuracy": 72.1746,
        "backward_transfer": -0.7329,
        "backward_transfer.div_t": -0.6840,
        "forgetting.first_last": 0.7329,
        "learning_accuracy": 72.8586,
    }
    assert {name: scalars[name] for name in expected} == pytest.approx(expected, abs=5.1e-5)
    assert compute_scalars(values, LONG_ROWS)["average_accuracy"] == pytest.approx(73.88, abs=0.005)
    for name in ("forgetting", "forgetting.max_all", "average_incremental_accuracy", "forward_transfer"):
        assert np.isnan(scalars[name]), f"{name} needs cells that are missing here"


@pytest.mark.parametrize("name", METRICS)
def test_input_is_untouched_and_metrics_are_called_alike(name: str) -> None:
    values, counts = SMALL.copy(), COUNTS.copy()
    values.flags.writeable = counts.flags.writeable = False
    function = METRICS.load(name)
    function(values, counts)
    assert list(inspect.signature(function).parameters)[:2] == ["values", "counts"]


def test_a_missing_cell_is_never_a_number() -> None:
    needed = {
        (3, 0): {"average_accuracy", "backward_transfer", "forgetting", "average_incremental_accuracy"},
        (1, 0): {"learning_accuracy", "backward_transfer", "forgetting", "forgetting.first_last"},
        (2, 0): {"forgetting", "forgetting.max_all", "average_incremental_accuracy"},
        (0, 1): {"forward_transfer"},
        (2, 2): {"forward_transfer"},
    }
    for cell, names in needed.items():
        values = SMALL.copy()
        values[cell] = NAN
        scalars = compute_scalars(values)
        assert all(np.isnan(scalars[name]) for name in names), cell
    values = SMALL.copy()
    values[0] = NAN
    assert compute_scalars(values)["backward_transfer"] == pytest.approx(0.025)


def test_one_task_has_accuracy_but_no_transfer() -> None:
    scalars = compute_scalars(np.array([[0.5], [0.9]]))
    known = {name: value for name, value in scalars.items() if not np.isnan(value)}
    assert known == {"average_accuracy": 0.9, "average_incremental_accuracy": 0.9, "learning_accuracy": 0.9}


def test_intransigence_needs_a_reference() -> None:
    assert "intransigence" not in compute_scalars(SMALL)
    assert np.isnan(intransigence(SMALL))


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [  # R. G. Newcombe, Two-sided confidence intervals for the single proportion, 1998, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_as_published(correct: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=1e-4)
    assert wilson_interval(n - correct, n) == pytest.approx((1 - high, 1 - low), abs=1e-4)


def test_wilson_interval_at_its_ends() -> None:
    assert wilson_interval(0, 20)[0] == 0.0
    assert wilson_interval(20, 20)[1] == 1.0
    assert np.isnan(wilson_interval(0, 0)).all()
    with pytest.raises(ValueError, match="5 of 4"):
        wilson_interval(5, 4)
