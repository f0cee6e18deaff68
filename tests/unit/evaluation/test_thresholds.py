"""Gates on measured values."""

from __future__ import annotations

import pytest

from lorabank.core.errors import ConfigError
from lorabank.evaluation.thresholds import Gate, check_gates, parse_gate


@pytest.mark.parametrize(
    ("text", "gate"),
    [
        ("backward_transfer>=-0.02", Gate("backward_transfer", ">=", -0.02)),
        (" forgetting.max_all <= 1e-1 ", Gate("forgetting.max_all", "<=", 0.1)),
        ("learning_accuracy>.5", Gate("learning_accuracy", ">", 0.5)),
        ("forgetting<0", Gate("forgetting", "<", 0.0)),
        ("average_accuracy==1", Gate("average_accuracy", "==", 1.0)),
    ],
)
def test_parse(text: str, gate: Gate) -> None:
    assert parse_gate(text) == gate
    assert parse_gate(str(gate)) == gate


@pytest.mark.parametrize(
    "text", ["", "forgetting", "forgetting>=", "forgetting=1", "forgetting>=x", "forgetting>=nan"]
)
def test_what_is_no_gate_shows_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="is not a metric") as caught:
        parse_gate(text)
    assert "--gate" in (caught.value.hint or "")


def test_an_unknown_metric_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"unknown metric 'backwards_transfer'\. Did you mean 'backward_transfer'\?"):
        parse_gate("backwards_transfer>=0")


@pytest.mark.parametrize(
    ("text", "value", "passed"),
    [
        ("forgetting>=0.1", 0.1, True),
        ("forgetting>0.1", 0.1, False),
        ("forgetting<=0.1", 0.1, True),
        ("forgetting<0.1", 0.1, False),
        ("forgetting==0.1", 0.1, True),
        ("forgetting>=0.1", 0.0999, False),
        ("forgetting<=0.1", 0.1001, False),
        ("forgetting==0.1", 0.1001, False),
        ("forgetting>0.1", 0.1001, True),
        ("forgetting<0.1", 0.0999, True),
        # The sum of three tenths is 0.30000000000000004: rounding must decide neither way.
        ("forgetting<=0.3", 0.1 + 0.1 + 0.1, True),
        ("forgetting>0.3", 0.1 + 0.1 + 0.1, False),
        ("forgetting==0.3", 0.1 + 0.1 + 0.1, True),
        ("forgetting<=0.1", None, False),
        ("forgetting<=0.1", float("nan"), False),
        ("forgetting>=0.1", float("nan"), False),
    ],
)
def test_check(text: str, value: float | None, passed: bool) -> None:
    (result,) = check_gates([parse_gate(text)], {"forgetting": value})
    assert result.passed is passed
    assert result.gate == text


def test_a_metric_that_was_not_measured_fails() -> None:
    results = check_gates([parse_gate("forgetting<=1"), parse_gate("average_accuracy>=0")], {"forgetting": 0.5})
    assert [result.passed for result in results] == [True, False]
