"""Successive halving: who is tried how long, against the numbers of its definition."""

from __future__ import annotations

import pytest

from lorabank.workflows.learning.halving import Pace, Schedule, fitted, round_sizes, successive_halving, total_effort


@pytest.mark.parametrize(
    ("candidates", "reduction", "sizes"),
    [(27, 3, [27, 9, 3]), (10, 3, [10, 4, 2]), (3, 3, [3]), (1, 2, [1]), (9, 2, [9, 5, 3, 2])],
)
def test_a_round_keeps_one_of_so_many(candidates: int, reduction: int, sizes: list[int]) -> None:
    assert round_sizes(candidates, reduction) == sizes


def test_each_round_trains_longer_and_the_last_one_whole() -> None:
    tried: dict[float, list[int]] = {}

    def run(one: int, effort: float) -> tuple[int, float]:
        tried.setdefault(effort, []).append(one)
        return one, effort

    found = successive_halving(range(10), 3, run, lambda result: (result[0],))
    assert tried == {1 / 9: [*range(10)], 1 / 3: [9, 8, 7, 6], 1.0: [9, 8]}
    assert found == [(9, 1.0), (8, 1.0), (7, 1 / 3), (6, 1 / 3), *((one, 1 / 9) for one in (5, 4, 3, 2, 1, 0))]
    assert total_effort([10, 4, 2], 3) == pytest.approx(10 / 9 + 4 / 3 + 2)


def test_a_candidate_that_fails_leaves_its_place_to_the_next() -> None:
    def run(one: int, effort: float) -> int | None:
        return None if one == 5 or (one == 4 and effort == 1) else one

    assert successive_halving(range(6), 2, run, lambda one: (one,)) == [3, 2, 1, 0]
    assert successive_halving(range(2), 2, lambda *_: None, lambda one: (one,)) == []


def test_all_rounds_take_what_their_trainings_take() -> None:
    """10 candidates for a ninth of 4.4 epochs of 20 steps, 4 for a third, 2 for all, half a second beside each."""
    pace, schedule = Pace(epoch=20, step=0.1, beside=0.5), Schedule(3, 4.4)
    assert pace.seconds([10, 4, 2], schedule) == pytest.approx(10 * 1.5 + 4 * 3.5 + 2 * 9.3)
    assert schedule.least(10) == pytest.approx(1 / 9)


@pytest.mark.parametrize("seconds", [20.0, 30.0, 1000.0])
def test_the_rounds_fill_the_time_and_no_more_than_all_epochs(seconds: float) -> None:
    pace = Pace(epoch=100, step=0.01, beside=0.5)
    found = fitted(10, 3, pace, seconds=seconds, most=8.0)
    took = pace.seconds(round_sizes(10, 3), found)
    assert found.reduction == 3
    if seconds == 1000:
        assert found.epochs == 8
    else:
        assert seconds <= took <= seconds + 16 * pace.step  # each training is rounded up to a step


def test_rounds_of_less_than_a_step_are_one_round() -> None:
    """8 steps in the last of three rounds would be less than one in the first."""
    pace = Pace(epoch=8, step=1.0, beside=1.0)
    enough, less = (fitted(10, 3, pace, seconds=seconds, most=4.0) for seconds in (16 + 9.1 * 4.45, 16 + 8.9 * 4.44))
    assert (enough.reduction, pace.steps(enough.epochs / 9)) == (3, 2)
    assert less.reduction == 10
    assert pace.seconds([10], less) == pytest.approx(60)  # 10 seconds beside, and 5 steps for each
    none = fitted(10, 3, pace, seconds=0.0, most=4.0)
    assert (none.reduction, pace.steps(none.epochs)) == (10, 1)
