"""The scores of the tasks that can be among the best of a text, for a sum of Gaussians over several layers.

The score of a task is the sum of its scores by each layer, and of a part that is known for all tasks. A sum of upper
bounds bounds the sum. So the bounds of the layers rule out all but a few of many tasks, and those alone are scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lorabank.compose.routers.gaussians.covariances import Scatter
from lorabank.compose.routers.gaussians.screening import Screening
from lorabank.compose.routers.gaussians.shortlist import Shortlist
from lorabank.compose.routers.ranking import TIE

Matrix = NDArray[np.float64]
Vector = NDArray[np.float64]

_FIRST = 2
"""Tasks with the highest bounds, whose scores say how high the others must reach."""

_BLOCK = 1 << 20  # numbers of a block of features, or of bounds


class Layer(Protocol):
    """Gaussians over T tasks by the features of one layer; see `lorabank.compose.routers.gaussian.GaussianRouter`."""

    @property
    def tasks(self) -> int:
        """T."""
        ...

    def scores(self, features: Matrix) -> Matrix:
        """[n, d] features to [n, T] scores."""
        ...

    def score(self, task: int, rows: Matrix) -> Vector:
        """[n, d] features to [n] scores of one task."""
        ...

    def scatter(self, task: int) -> Scatter:
        """Of one task."""
        ...

    def shortlist(self, count: int) -> Shortlist | None:
        """Bounds that last, where so many texts more make them pay."""
        ...

    def screening(self, rows: Matrix) -> Screening | None:
        """Bounds for a few texts, where they pay."""
        ...


class Known(Protocol):
    """The part of the scores of n texts that does not depend on the layers."""

    @property
    def every(self) -> Matrix:
        """[n, T]."""
        ...

    def bounds(self) -> Matrix:
        """Numbers that none of it lies above, [n, T]."""
        ...

    def of(self, task: int, texts: NDArray[np.intp]) -> Vector:
        """Of some texts in one task."""
        ...


def likely_scores(
    layers: Sequence[Layer], rows: Sequence[Matrix], known: Known | None = None, slack: float = 0.0
) -> Matrix:
    """Scores [n, T]; -inf for tasks that can be none of a text's two best, nor within ``slack`` of the best.

    Args:
        layers: A router for each layer, over the same T tasks.
        rows: Of each layer, the features [n, d].
        known: The part of each score that is known; None for 0.
        slack: How far below the best score a task still counts.
    """
    likely = _Likely(layers, rows, known, slack)
    shortlists = [layer.shortlist(len(rows[0])) for layer in layers]
    bounds = [one for one in shortlists if one is not None]
    if len(bounds) == len(layers):
        return likely.short(bounds)
    screenings = [layer.screening(of) for layer, of in zip(layers, rows, strict=True)]
    screened = [one for one in screenings if one is not None]
    if len(screened) == len(layers):
        return likely.screened(screened)
    return _total(
        [layer.scores(of) for layer, of in zip(layers, rows, strict=True)], None if known is None else known.every
    )


class _Likely:
    def __init__(self, layers: Sequence[Layer], rows: Sequence[Matrix], known: Known | None, slack: float) -> None:
        self._layers = layers
        self._rows = rows
        self._known = known
        self._slack = slack
        self._scores = np.full((len(rows[0]), layers[0].tasks), -np.inf)
        self._best, self._second = np.full((2, len(rows[0])), -np.inf)  # of each text so far

    def short(self, shortlists: Sequence[Shortlist]) -> Matrix:
        """By bounds that last."""
        step = max(1, _BLOCK // max(self._scores.shape[1], *(of.shape[1] for of in self._rows)))
        known = None if self._known is None else self._known.bounds()
        for start in range(0, len(self._scores), step):
            texts = np.arange(start, min(start + step, len(self._scores)))
            white = [one.whitened(own[texts]) for one, own in zip(shortlists, self._rows, strict=True)]
            parts = [one.rough_bounds(own) for one, own in zip(shortlists, white, strict=True)]
            rough = _total(parts, None if known is None else known[texts])
            first = np.zeros(rough.shape, np.bool_)
            np.put_along_axis(first, np.argpartition(rough, -_FIRST, axis=1)[:, -_FIRST:], True, axis=1)
            for task in _descending(first, rough):
                self._score(task, texts[first[:, task]])
            rough[first] = -np.inf
            for task in _descending(rough >= self._reach(texts)[:, None], rough):
                of = np.flatnonzero(rough[:, task] >= self._reach(texts))
                if not len(of):
                    continue
                closer = [one.bounds(own.some(of), task) for one, own in zip(shortlists, white, strict=True)]
                above = _total(closer, self._part(task, texts[of])) >= self._reach(texts[of])
                self._score(task, texts[of[above]])
        return self._scores

    def screened(self, screenings: Sequence[Screening]) -> Matrix:
        """One task after the other, the nearest first, each factored if its bounds do not rule it out."""
        texts = np.arange(len(self._scores))
        far = _total([one.far for one in screenings], None if self._known is None else -2 * self._known.bounds())
        behind = (far - far.min(1, keepdims=True)).min(0)
        for task in map(int, np.argsort(behind, kind="stable")):
            reach = self._reach(texts)
            if np.isneginf(reach).any() or not self._ruled_out(task, screenings, reach):
                self._score(task, texts)
        return self._scores

    def _ruled_out(self, task: int, screenings: Sequence[Screening], reach: Vector) -> bool:
        scatters = [layer.scatter(task) for layer in self._layers]
        known = self._part(task, np.arange(len(reach)))
        for bounds in (Screening.rough_bounds, Screening.bounds):
            parts = [bounds(one, task, scatter) for one, scatter in zip(screenings, scatters, strict=True)]
            if (_total(parts, known) < reach).all():
                return True
        return False

    def _score(self, task: int, texts: NDArray[np.intp]) -> None:
        """Put down the scores of some texts in one task."""
        if len(texts):
            parts = [layer.score(task, own[texts]) for layer, own in zip(self._layers, self._rows, strict=True)]
            found, best = _total(parts, self._part(task, texts)), self._best[texts]
            self._scores[texts, task] = found
            self._second[texts] = np.maximum(self._second[texts], np.minimum(found, best))
            self._best[texts] = np.maximum(found, best)

    def _part(self, task: int, texts: NDArray[np.intp]) -> Vector | None:
        return None if self._known is None else self._known.of(task, texts)

    def _reach(self, texts: NDArray[np.intp]) -> Vector:
        """What the score of another task must come to, so that it counts, for each of some texts."""
        best, second = self._best[texts], self._second[texts]
        tied = second - TIE * np.maximum(1.0, np.abs(second))
        return np.asarray(np.minimum(tied, best - self._slack) if self._slack else tied)


def _descending(wanted: NDArray[np.bool_], bounds: Matrix) -> list[int]:
    """The tasks that some text wants [n, T], those first whose highest bounds [n, T] are the highest."""
    tasks = np.flatnonzero(wanted.any(0))
    order: list[int] = tasks[np.argsort(-bounds[:, tasks].max(0), kind="stable")].tolist()
    return order


def _total(parts: Sequence[NDArray[np.float64]], known: NDArray[np.float64] | None) -> NDArray[np.float64]:
    total = parts[0]
    for part in [*parts[1:], *([] if known is None else [known])]:
        total = total + part
    return total
