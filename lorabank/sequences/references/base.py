"""What a reference is: weights of the base itself that one model trains on every task in turn.

Nothing of it could be a state of a bank, whose states are low-rank adapters over the untouched base. So it is not a
strategy: `add-task` refuses it, and a sequence measures it in memory and keeps the scores alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NOT_STORABLE = "not storable"
"""How a reference answers, in the place of a mode."""

OF_ADAPTERS = (
    "r", "lora_alpha", "use_rslora", "target_modules", "first_layer", "variant", "start", "penalty", "penalty_weight",
    "keep_samples", "clusters_per_task", "head", "base_dtype", "save_steps", "report_to", "savings",
)  # fmt: skip
"""Settings of a training that say nothing to a reference: it has no adapter, and no bank keeps what routes to it."""


@dataclass(frozen=True)
class Reference:
    """A model whose own weights are trained on one task after another, each with a head of its own.

    Attributes:
        name: Its key in ``REFERENCES``.
        trained: Which weights, in words.
        learning_rate: That of AdamW where the table ``[strategy.NAME]`` gives none: that of ``[train]`` is an
            adapter's, a hundred times too large for the weights themselves.
        about: What it does, in one sentence.
        paper: Where it was published.
    """

    name: str
    trained: str
    learning_rate: float
    about: str = ""
    paper: str | None = None

    def trains(self, weight: str) -> bool:
        """Whether a weight of the base is trained, by its name in the model; by default every one is."""
        return True

    @property
    def defaults(self) -> Mapping[str, Any]:
        """What it has in the place of the settings of ``[train]``."""
        return {"learning_rate": self.learning_rate}
