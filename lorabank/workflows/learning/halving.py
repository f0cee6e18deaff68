"""Successive halving: many candidates are tried a little, and the best of them longer (arXiv 1502.07943)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

C = TypeVar("C")
T = TypeVar("T")


def round_sizes(candidates: int, reduction: int) -> list[int]:
    """How many candidates each round tries; the last one has at most ``reduction``.

    With n candidates the rounds have n, n / reduction, n / reduction^2, ..., rounded up.
    """
    sizes = [candidates]
    while sizes[-1] > reduction:
        sizes.append(-(-sizes[-1] // reduction))
    return sizes


def total_effort(sizes: Sequence[int], reduction: int) -> float:
    """What all rounds take, in units of one candidate of the last round.

    A candidate of the last round takes 1, one of the round before it 1 / reduction, and so on.
    """
    last = len(sizes) - 1
    return float(sum(size / reduction ** (last - number) for number, size in enumerate(sizes)))


class Schedule(NamedTuple):
    """How long candidates are tried.

    Attributes:
        reduction: One candidate of so many reaches the next round, and is tried so many times as long.
        epochs: Of the last round.
    """

    reduction: int
    epochs: float

    def least(self, candidates: int) -> float:
        """The effort of the first round, where that of the last one is 1."""
        return float(1 / self.reduction ** (len(round_sizes(candidates, self.reduction)) - 1))


class Pace(NamedTuple):
    """How long trainings take.

    Attributes:
        epoch: Steps of an epoch.
        step: Seconds of a step.
        beside: Seconds of a training beside its steps: loading, statistics, scores.
    """

    epoch: int
    step: float
    beside: float

    def steps(self, epochs: float) -> int:
        """Steps of so many epochs."""
        return math.ceil(self.epoch * epochs)

    def seconds(self, sizes: Sequence[int], schedule: Schedule) -> float:
        """What all rounds take."""
        efforts = (float(schedule.reduction) ** (number + 1 - len(sizes)) for number in range(len(sizes)))
        each = (self.beside + self.step * self.steps(schedule.epochs * effort) for effort in efforts)
        return sum(size * one for size, one in zip(sizes, each, strict=True))


def fitted(candidates: int, reduction: int, pace: Pace, *, seconds: float, most: float) -> Schedule:
    """The longest rounds that fit into a time; a candidate is trained for one step at least.

    Where the first round would have less than one step, its length would be that of the next one, so all candidates
    are tried in one round instead.

    Args:
        candidates: How many there are.
        reduction: One candidate of so many reaches the next round.
        pace: Of their trainings.
        seconds: The time.
        most: Epochs of the last round at most.
    """
    sizes = round_sizes(candidates, reduction)
    room = (seconds - pace.beside * sum(sizes)) / (pace.step * pace.epoch * total_effort(sizes, reduction))
    found = Schedule(reduction, min(most, max(room, 1 / pace.epoch)))
    if len(sizes) > 1 and pace.epoch * found.epochs * found.least(candidates) < 1:
        return fitted(candidates, candidates, pace, seconds=seconds, most=most)
    return found


def successive_halving(
    candidates: Sequence[C],
    reduction: int,
    run: Callable[[C, float], T | None],
    rank: Callable[[T], tuple[float, ...]],
) -> list[T]:
    """Try all candidates with a small effort, and again and again the best ones with ``reduction`` times as much.

    Args:
        candidates: What is tried, in any order.
        reduction: One candidate of so many reaches the next round.
        run: Candidate and effort (1 in the last round) to a result; None where the candidate fails.
        rank: Sorts results, the best one is the largest.

    Returns:
        The last result of every candidate that did not fail: those of the last round first, each round from the best.

    Source:
        Jamieson and Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization, AISTATS 2016
        (arXiv 1502.07943), with rounds that keep one of ``reduction`` candidates, as in Hyperband (arXiv 1603.06560).
    """
    sizes, left, behind = round_sizes(len(candidates), reduction), list(candidates), list[T]()
    for number, size in enumerate(sizes):
        effort = 1 / reduction ** (len(sizes) - 1 - number)
        tried = [(one, found) for one in left[:size] if (found := run(one, effort)) is not None]
        tried.sort(key=lambda pair: rank(pair[1]), reverse=True)
        reached = sizes[number + 1] if number + 1 < len(sizes) else 0
        left = [one for one, _ in tried[:reached]]
        behind = [found for _, found in tried[reached:]] + behind
    return behind
