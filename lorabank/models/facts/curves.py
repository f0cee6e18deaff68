"""How a training went: loss and learning rate by step, and what was measured on rows that it did not train on.

The bank keeps this beside the adapter, as JSON of bounded size. Importing this module loads only the standard library.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lorabank.core.errors import DamagedError

ROLE = "learning-curve"
"""Role of the bytes among the objects of an adapter."""

MOST_POINTS = 4096
"""Points of a curve that is read; what is recorded has fewer."""
_MOST_BYTES = 1024**2


@dataclass(frozen=True)
class HeldOut:
    """What was measured on training rows that were held out.

    Attributes:
        rows: How many they are.
        every: Optimizer steps between two measurements.
        patience: Measurements without a lower loss after which the training stops; None where it does not.
        steps: Steps after which they were measured.
        losses: Mean cross entropy of their labels or of their answers' tokens.
        accuracies: Share of these that had the highest probability.
        best: The step of the lowest loss, whose adapter was kept.
        stopped: Whether the training ended before its last step.
    """

    rows: int
    every: int
    patience: int | None
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    accuracies: tuple[float, ...]
    best: int
    stopped: bool

    @property
    def lowest(self) -> float:
        """The loss at the best step."""
        return self.losses[self.steps.index(self.best)]


@dataclass(frozen=True)
class LearningCurve:
    """A training by its optimizer steps.

    Attributes:
        every: Steps that a point stands for; the last point may stand for fewer.
        steps: The last step of each point.
        losses: Mean task loss of these steps, without penalties.
        learning_rates: At that last step, of the parameters without a rate of their own.
        held: What was measured on held-out rows; None where there were none.
    """

    every: int
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    learning_rates: tuple[float, ...]
    held: HeldOut | None = None

    def to_bytes(self) -> bytes:
        """JSON, the same for equal curves."""
        return json.dumps(asdict(self), separators=(",", ":"), sort_keys=True, allow_nan=False).encode()

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> LearningCurve:
        """The curve of plain values, as `dataclasses.asdict` and JSON have them; they are not checked."""
        held = plain["held"]
        return cls(**_lists(plain) | {"held": held and HeldOut(**_lists(held))})

    @classmethod
    def from_bytes(cls, data: bytes) -> LearningCurve:
        """What `to_bytes` gave.

        Raises:
            DamagedError: It is anything else.
        """
        try:
            if len(data) > _MOST_BYTES:
                raise ValueError("too many bytes")
            curve = cls.of(json.loads(data))
            _check(curve)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise DamagedError(f"a learning curve cannot be read: {error!r:.200}") from error
        return curve


def _lists(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}


def _check(curve: LearningCurve) -> None:
    """Refuse what no training records.

    Raises:
        ValueError: A number is missing, has another type, or is out of bounds.
    """
    _check_series(curve.steps, curve.losses, curve.learning_rates)
    counts: list[Any] = [curve.every]
    if (held := curve.held) is not None:
        _check_series(held.steps, held.losses, held.accuracies)
        counts += [held.rows, held.every, *([] if held.patience is None else [held.patience])]
        if held.best not in held.steps or type(held.stopped) is not bool:
            raise ValueError("no best step")
    if not all(_is_count(count) for count in counts):
        raise ValueError("a count below 1")


def _check_series(steps: Sequence[Any], *values: Sequence[Any]) -> None:
    if type(steps) is not tuple or any(type(one) is not tuple or len(one) != len(steps) for one in values):
        raise ValueError("lists of different lengths")
    if len(steps) > MOST_POINTS or not all(map(_is_count, steps)) or list(steps) != sorted(set(steps)):
        raise ValueError("steps that do not ascend")
    if not all(type(value) in (int, float) and math.isfinite(value) for one in values for value in one):
        raise ValueError("a number that is not finite")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 2**53
