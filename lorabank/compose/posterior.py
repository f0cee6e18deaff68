"""How probable each task is for a text: the scores of a router, as log-odds that are right as often as they say.

A router's scores are the better the surer they are, but they are too sure. They are divided by a temperature, found
when a composition is made: it minimises the mean negative log-likelihood of the tasks' kept rows, each task counting
the same (Guo et al., On Calibration of Modern Neural Networks, 2017). A router that was made of the kept rows would
be sure of them, so these are scored by one from whose statistics they were taken out again; what routing keeps are
sums over rows, so this is exact. Where all of them are told apart the loss falls as long as the temperature does, and
the router would be sure of every other text too: then none is fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from lorabank.compose.base import Member, longest
from lorabank.compose.known_tasks import KnownTask, known_tasks, query_of, raw_texts
from lorabank.compose.routers.base import RouterMethod
from lorabank.compose.routers.ranking import softmax
from lorabank.core.shelves import ROUTERS, USUAL_ROUTER
from lorabank.models.mixing.runtime import Runtime

Matrix = NDArray[np.float64]

_MOST_ROWS = 512
"""Of all kept rows, the maximum on which a temperature is fitted."""

_FOLDS = 4
"""Parts in which a task's rows are taken out where most of what is known of it are its kept rows."""

_BOUNDS = (0.1, 100.0)
"""Between which a temperature is looked for."""

_FLOOR = 1e-12


def task_posterior(members: Sequence[Member], runtime: Runtime, texts: Sequence[str]) -> Matrix:
    """The calibrated probability of each member's task for each text, float64 [n, K].

    Args:
        members: K tasks.
        runtime: Gives features; what is found out about the members is kept for as long as it.
        texts: n texts as they are in the rows, without a prompt template.

    Raises:
        NotFoundError: A member keeps neither routing statistics nor samples.
    """
    return _of(members, runtime).of_texts(texts)


def kept_posterior(members: Sequence[Member], runtime: Runtime) -> Matrix:
    """The same for the members' kept rows, one member after the other, by a router that does not know them.

    Returns:
        float64 [rows, K].

    Raises:
        NotFoundError: A member keeps neither routing statistics nor samples.
    """
    return _of(members, runtime).of_kept


class TaskPosterior:
    """The default router over some members, with its temperature.

    Args:
        members: K tasks.
        runtime: Gives features.
    """

    def __init__(self, members: Sequence[Member], runtime: Runtime) -> None:
        method: Any = ROUTERS.load(USUAL_ROUTER)()
        self._tasks, made = known_tasks([member.with_samples() for member in members], method, 0, lambda: runtime)
        self._runtime = runtime
        found: dict[str, Any] = {"from_samples": made} if made else {}
        self.found = found | calibrate(method.fitted(found), self._tasks, lambda: runtime)
        self._method = method.fitted(self.found)

    @cached_property
    def _router(self) -> Any:
        return self._method.router([task.read() for task in self._tasks])

    def of_texts(self, texts: Sequence[str]) -> Matrix:
        """[n, K]."""
        length = longest([task.member for task in self._tasks])
        posterior: Matrix = self._router.rank(query_of(self._runtime, texts, length)).posterior
        return posterior

    @cached_property
    def of_kept(self) -> Matrix:
        """[rows, K]."""
        chosen = [np.arange(len(task.member.texts)) for task in self._tasks]
        return softmax(_left_out(self._method, self._tasks, self._runtime, chosen) / self._method.temperature)


_MADE: WeakKeyDictionary[Runtime, tuple[list[str], TaskPosterior]] = WeakKeyDictionary()


def _of(members: Sequence[Member], runtime: Runtime) -> TaskPosterior:
    """Made once for a runtime and the members that were asked for last: texts come in many batches."""
    wanted = [f"{member.lasting} {member.adapter}" for member in members]
    made = _MADE.get(runtime)
    if made is None or made[0] != wanted:
        made = _MADE[runtime] = wanted, TaskPosterior(members, runtime)
    return made[1]


def calibrate(method: RouterMethod, tasks: Sequence[KnownTask], runtime: Callable[[], Runtime]) -> dict[str, Any]:
    """A temperature for a router's scores, and how right they are with it.

    Args:
        method: Its router has ``scores``, and the statistics that it reads have ``without``.
        tasks: What is known of K members.
        runtime: Gives features; not asked for where no rows are kept.

    Returns:
        ``temperature``, the router's usual one where all kept rows are routed right; on the kept rows, each task
        counting the same: ``routed``, the share that is routed right, and ``calibration_error``, how far the mean
        probability of the chosen task is from it; and ``rows``. Empty where a single task is known, or no
        rows are kept.
    """
    from scipy.optimize import minimize_scalar

    most = max(1, _MOST_ROWS // len(tasks))
    chosen = [_spread(len(task.member.texts), most) for task in tasks]
    own = np.repeat(np.arange(len(tasks)), [len(rows) for rows in chosen])
    if len(tasks) == 1 or not len(own):
        return {}
    scores = _left_out(method, tasks, runtime(), chosen)
    weights = 1 / np.bincount(own, minlength=len(tasks))[own]
    weights /= weights.sum()

    def loss(log_temperature: float) -> float:
        of_own = softmax(scores / np.exp(log_temperature))[np.arange(len(own)), own]
        return float(-weights @ np.log(np.maximum(of_own, _FLOOR)))

    right = scores.argmax(1) == own
    temperature = method.usual_temperature
    if not right.all():
        best = minimize_scalar(loss, bounds=tuple(np.log(_BOUNDS)), method="bounded", options={"xatol": 1e-4})
        temperature = float(np.exp(best.x))
    routed = float(weights @ right)
    confidence = float(weights @ softmax(scores / temperature).max(1))
    return {
        "temperature": temperature,
        "routed": routed,
        "calibration_error": abs(confidence - routed),
        "rows": len(own),
    }


def _spread(rows: int, most: int) -> NDArray[np.intp]:
    """At most so many numbers of rows, evenly over all."""
    return np.unique(np.linspace(0, rows - 1, min(rows, most)).astype(np.intp))


def _left_out(
    method: RouterMethod, tasks: Sequence[KnownTask], runtime: Runtime, chosen: Sequence[NDArray[np.intp]]
) -> Matrix:
    """Scores of kept rows, [rows, K], by routers without them; ``chosen`` are the numbers of each member's rows."""
    statistics = [task.read() for task in tasks]
    few = any(2 * len(rows) > one.n for one, rows in zip(statistics, chosen, strict=True))
    folds = _FOLDS if few else 1
    length = longest([task.member for task in tasks])
    ends = np.cumsum([len(rows) for rows in chosen]).tolist()
    scores = np.empty((ends[-1], len(tasks)))
    for fold in range(folds):
        left = list(statistics)
        for k, (task, rows) in enumerate(zip(tasks, chosen, strict=True)):
            gone = _texts(task, rows[fold::folds])
            if 0 < len(gone) < statistics[k].n:
                left[k] = statistics[k].without(query_of(runtime, gone, task.member.form.max_length))
        router: Any = method.router(left)
        places = [range(end - len(rows), end)[fold::folds] for end, rows in zip(ends, chosen, strict=True)]
        texts = [text for task, rows in zip(tasks, chosen, strict=True) for text in _texts(task, rows[fold::folds])]
        if texts:
            scores[np.concatenate(places).astype(int)] = router.scores(query_of(runtime, texts, length))
    return scores


def _texts(task: KnownTask, rows: NDArray[np.intp]) -> list[str]:
    texts = raw_texts(task.member)
    return [texts[row] for row in rows]
