"""What an optimizer of a training is: its settings, and what it makes of groups of parameters."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    import torch

    from lorabank.core.errors import LorabankError


@dataclass(frozen=True)
class Optimizer(ABC):
    """An optimizer with its settings, which are the fields of the dataclass.

    What it remembers of a parameter is kept in checkpoints: tensors, and numbers, words or lists of them, by name;
    they may be nested. A resumed training then takes the very steps of an uninterrupted one.

    Attributes:
        paper: Where it was published.
        moments: Whether it keeps the mean of the gradients and of their squares for every number, as torch's Adam does
            (``exp_avg`` and ``exp_avg_sq``).
    """

    paper: ClassVar[str | None] = None
    moments: ClassVar[bool] = False

    @abstractmethod
    def build(self, groups: Sequence[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
        """The optimizer of some parameters.

        Args:
            groups: Each with its ``params``, its ``weight_decay`` and, where it has one of its own, its ``lr``.
            learning_rate: That of the others. A schedule multiplies all of them.
        """

    def refusal(self, device: str) -> LorabankError | None:
        """Why it cannot work on a device (``"cpu"`` or ``"cuda"``), known before anything is trained; else None."""
        return None


def described(optimizer: Optimizer) -> dict[str, Any]:
    """The class and the settings of an optimizer as a checkpoint holds them, with lists for tuples."""
    found: dict[str, Any] = json.loads(json.dumps({"class": type(optimizer).__name__, **asdict(optimizer)}))
    return found
