"""What a report needs to know of an evaluated subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from lorabank.evaluation.confusion import LabelScores
from lorabank.evaluation.text_samples import TextScores


class Measured(Protocol):
    """What a report needs to know of an evaluated subject; ``lorabank.api.evaluate`` returns such objects."""

    @property
    def subject(self) -> str:
        """``"as-trained"`` or a composition."""

    @property
    def mode(self) -> str:
        """How the adapters answered together."""

    @property
    def task_id(self) -> str:
        """``"given"`` or ``"routed"``."""

    @property
    def metric(self) -> str:
        """What the scores are."""

    @property
    def tasks(self) -> Sequence[str]:
        """T names in sequence order."""

    @property
    def values(self) -> Any:
        """Scores [T + 1, T], None or NaN where missing."""

    @property
    def low(self) -> Any:
        """Lower ends of the intervals [T + 1, T], or None."""

    @property
    def high(self) -> Any:
        """Upper ends."""

    @property
    def counts(self) -> Any:
        """Evaluation rows of each task [T]."""

    @property
    def scalars(self) -> Mapping[str, float | None]:
        """Metric to value."""

    @property
    def labels(self) -> Mapping[str, LabelScores]:
        """Task to how the rows of each label were answered after the last stage."""

    @property
    def environments(self) -> Sequence[Mapping[str, Any]]:
        """In which environments the cells were computed."""

    @property
    def texts(self) -> Mapping[str, TextScores]:
        """Task to how its rows were answered in free text."""

    @property
    def routing(self) -> Mapping[str, Any] | None:
        """``oracle``, ``routed``, ``accuracy``, ``confusion`` [T, T] and ``tasks``, for a routed subject."""
