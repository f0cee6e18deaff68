"""Gates: conditions on measured values, such as ``backward_transfer>=-0.02``, for use in continuous integration."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from lorabank.core.errors import ConfigError
from lorabank.core.settings import nearest
from lorabank.core.shelves import METRICS

# A mean of exact fractions is off by a few ulp: 0.85 must satisfy ">=0.85" however it was summed.
TOLERANCE = 1e-9

_OPERATORS: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda value, threshold: value >= threshold - TOLERANCE,
    "<=": lambda value, threshold: value <= threshold + TOLERANCE,
    "==": lambda value, threshold: abs(value - threshold) <= TOLERANCE,
    ">": lambda value, threshold: value > threshold + TOLERANCE,
    "<": lambda value, threshold: value < threshold - TOLERANCE,
}
_GATE = re.compile(r"\s*([^\s<>=]+)\s*(>=|<=|==|>|<)\s*(\S+)\s*")


@dataclass(frozen=True)
class Gate:
    """A condition on one metric."""

    metric: str
    operator: str
    threshold: float

    def __str__(self) -> str:
        return f"{self.metric}{self.operator}{self.threshold:g}"


@dataclass(frozen=True)
class GateResult:
    """A condition and what was measured; a value that is missing (NaN) never passes."""

    gate: str
    metric: str
    value: float
    passed: bool


def parse_gate(text: str, known: Collection[str] = METRICS) -> Gate:
    """Parse a condition.

    Args:
        text: A metric, one of ``>= <= > < ==``, and a number; blanks around them do not matter.
        known: Names that can be measured.

    Raises:
        ConfigError: The text is not a condition, or the metric is unknown (names the nearest).
    """
    match = _GATE.fullmatch(text)
    threshold = _number(match.group(3)) if match else None
    if match is None or threshold is None:
        raise ConfigError(
            f"gate {text!r} is not a metric, one of {' '.join(_OPERATORS)}, and a number",
            hint="for example --gate 'backward_transfer>=-0.02'",
            unchanged="nothing was changed",
        )
    metric = match.group(1)
    if metric not in known:
        near = nearest(metric, list(known))
        raise ConfigError(
            f"gate {text!r}: unknown metric {metric!r}{near}",
            hint=f"metrics: {', '.join(known)}",
            unchanged="nothing was changed",
        )
    return Gate(metric, match.group(2), threshold)


def check_gates(gates: Iterable[Gate], scalars: Mapping[str, float | None]) -> tuple[GateResult, ...]:
    """Compare measured values with their gates.

    Args:
        gates: The conditions.
        scalars: Metric to value; a metric that is absent, None or NaN fails its gate.

    Returns:
        One result for each gate, in order.
    """
    results = []
    for gate in gates:
        measured = scalars.get(gate.metric)
        value = math.nan if measured is None else measured
        passed = not math.isnan(value) and _OPERATORS[gate.operator](value, gate.threshold)
        results.append(GateResult(gate=str(gate), metric=gate.metric, value=value, passed=passed))
    return tuple(results)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
