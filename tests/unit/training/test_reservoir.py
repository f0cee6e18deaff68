"""The replay reservoir: uniform, the lowest of the union, and never rewritten."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from lorabank.core.errors import ConfigError
from lorabank.data.rows import Rows, shuffled_key
from lorabank.training.reservoir import KeptRows, keep_rows, replay_rows

SIZES = {"a": 2, "b": 3, "c": 1}


def rows_of(task: str, n: int) -> Rows:
    return Rows(
        texts=tuple(f"{task}{i}" for i in range(n)),
        labels=tuple(str(i % 2) for i in range(n)),
        source=task,
        columns=("text", "label"),
        lines=tuple(range(1, n + 1)),
    )


def kept(sizes: dict[str, int], budget: int, seed: int) -> list[KeptRows]:
    return [keep_rows(rows_of(task, n), budget, task=task, seed=seed) for task, n in sizes.items()]


def texts(sample: list[Rows]) -> set[str]:
    return {text for rows in sample for text in rows.texts}


@pytest.mark.parametrize("budget", [1, 2, 4])
def test_every_set_of_rows_is_as_likely_as_any_other(budget: int) -> None:
    draws = 6000
    counts = Counter(frozenset(texts(replay_rows(kept(SIZES, budget, seed), budget))) for seed in range(draws))
    every = [f"{task}{i}" for task, n in SIZES.items() for i in range(n)]
    subsets = [frozenset(subset) for subset in itertools.combinations(every, budget)]
    assert set(counts) == set(subsets)
    expected = draws / len(subsets)
    chi2 = sum((counts[subset] - expected) ** 2 / expected for subset in subsets)
    freedom = len(subsets) - 1
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("budget", [0, 1, 5, 20, 60])
def test_it_is_the_lowest_of_the_union(budget: int) -> None:
    sizes = {"a": 13, "b": 30, "c": 9}
    union = {
        f"{task}{i}": shuffled_key(f"{i}\n{task}", 7) for task, n in sizes.items() for i in range(n)
    }  # of all rows, not of those kept
    expected = set(sorted(union, key=lambda row: union[row])[:budget])
    sample = replay_rows(kept(sizes, budget, 7), budget)
    assert texts(sample) == expected
    assert sum(map(len, sample)) == min(budget, 52)
    for task, rows in zip(sizes, sample, strict=True):
        for text, label in zip(rows.texts, rows.labels, strict=True):
            assert (text[0], label) == (task, str(int(text[1:]) % 2))


def test_a_row_that_is_out_never_comes_back() -> None:
    sizes = {f"{task}": 10 for task in "abcdefgh"}
    stored = kept(sizes, 12, 3)
    before = texts(replay_rows(stored[:1], 12))
    for t in range(2, len(stored) + 1):
        now = texts(replay_rows(stored[:t], 12))
        assert len(now) == 12
        assert {text for text in now if text[0] < "abcdefgh"[t - 1]} <= before
        before = now


def test_what_a_task_keeps_does_not_depend_on_the_others() -> None:
    alone = keep_rows(rows_of("b", 3), 2, task="b", seed=5)
    assert alone == kept(SIZES, 2, 5)[1]
    assert len(alone.rows) == 2
    assert alone.seen == 3


def test_equal_texts_are_rows_of_their_own() -> None:
    same = Rows(("x",) * 4, ("l",) * 4, "f", ("text", "label"), (1, 2, 3, 4))
    counts: Counter[int] = Counter()
    for seed in range(3000):
        sample = replay_rows(
            [keep_rows(same, 1, task="a", seed=seed), keep_rows(same.take([0]), 1, task="b", seed=seed)], 1
        )
        counts[len(sample[0])] += 1
    assert counts[1] / 3000 == pytest.approx(4 / 5, abs=0.03)


def test_a_smaller_reservoir_of_the_same_rows_is_part_of_the_larger() -> None:
    stored = kept({"a": 13, "b": 30}, 10, 1)
    assert texts(replay_rows(stored, 4)) < texts(replay_rows(stored, 10))
    assert texts(replay_rows(stored, 4)) == texts(replay_rows(kept({"a": 13, "b": 30}, 4, 1), 4))


def test_more_than_was_kept_is_refused() -> None:
    stored = kept({"a": 3, "b": 30}, 5, 1)
    with pytest.raises(ConfigError, match=r"task 'b' kept only 5 of its 30 rows") as caught:
        replay_rows(stored, 6)
    assert caught.value.hint == "ask for at most 5 rows of replay"


def test_a_task_s_share_may_be_bounded() -> None:
    """Then the reservoir is the lowest of so many rows of each task, and fewer need to be kept."""
    sizes, bound = {"a": 13, "b": 30, "c": 2}, [4, 4, 4]
    stored, whole = kept(sizes, 4, 1), kept(sizes, 60, 1)
    assert [len(rows) for rows in replay_rows(stored, 10, bound)] == [4, 4, 2]
    lowest = sorted(
        (shuffled_key(f"{line - 1}\n{one.task}", 1), text)
        for one in whole
        for text, line in zip(one.rows.texts[:4], one.rows.lines[:4], strict=True)
    )
    assert texts(replay_rows(stored, 6, bound)) == {text for _, text in lowest[:6]}
