"""Which of the kept rows a merger reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lorabank.compose.base import Member
from lorabank.compose.mergers.kept import KeptRows
from lorabank.core.observer import SilentObserver
from lorabank.models.answering.base import AnswerForm

TEXTS = tuple(f"text {i}" for i in range(40))
TARGETS = ("no",) * 30 + ("yes",) * 10  # a file that is sorted by its labels


def kept(seed: int, labels: tuple[str, ...] = ("no", "yes")) -> KeptRows:
    nothing: Any = None
    form = AnswerForm(labels, 16)
    member = Member("a", 1, "d", ("d",), 0, form, lambda: nothing, 1, texts=TEXTS, targets=TARGETS)
    return KeptRows({"a": member}, nothing, SilentObserver(), 4, seed)


def test_each_label_keeps_its_share() -> None:
    few = kept(0).sample(8).members["a"]
    assert sorted(few.targets) == ["no"] * 6 + ["yes"] * 2
    assert all(TARGETS[TEXTS.index(text)] == target for text, target in zip(few.texts, few.targets, strict=True))


def test_the_seed_decides_and_nothing_else() -> None:
    drawn = {seed: kept(seed).sample(8).members["a"].texts for seed in (0, 1)}
    assert drawn[0] != drawn[1]
    own = kept(0)
    member = own.members["a"]
    turned = replace(own, members={"a": replace(member, texts=TEXTS[::-1], targets=TARGETS[::-1]), "b": member})
    assert set(turned.sample(8).members["a"].texts) == set(drawn[0])


def test_no_more_rows_are_wanted_than_there_are() -> None:
    assert kept(0).sample(64).members["a"].texts == TEXTS


def test_free_answers_have_no_shares() -> None:
    few = kept(0, labels=()).sample(8).members["a"]
    assert len(few.texts) == 8
