"""What was answered in place of what: the scores of each label, the confusions and the worst mistakes of one cell.

A cell keeps them in its detail, bounded whatever the number of labels and rows: figures of the labels with the most
wrong rows, the commonest confusions, and of the worst mistakes the rows' numbers. Texts stay in the evaluation rows.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from lorabank.core.limits import MAX_LABEL_LENGTH
from lorabank.core.records import EvaluationRecord

KEY = "labels"
"""Where a cell's detail holds it."""

MOST_LABELS = 256
MOST_CONFUSIONS = 1024
MOST_MISTAKES = 10
MOST_CHARACTERS = 300
"""Of a mistake's text."""


@dataclass(frozen=True)
class LabelScore:
    """One label.

    Attributes:
        precision: Share of the rows answered with it that have it; None where no row was.
        recall: Share of its rows that were answered with it.
        f1: Harmonic mean of both.
        rows: Evaluation rows that have it.
        answered: Rows that were answered with it.
    """

    label: str
    precision: float | None
    recall: float
    f1: float
    rows: int
    answered: int


@dataclass(frozen=True)
class Mistake:
    """A row that was answered wrongly.

    Attributes:
        row: Its number among the evaluation rows, from 1.
        probability: The wrong label's among the labels of the task that answered; None of a generated text.
        text: The row's text, cut; None where it was not asked for.
    """

    row: int
    wanted: str
    answered: str
    probability: float | None
    text: str | None = None


@dataclass(frozen=True)
class LabelScores:
    """How the rows of a task with labels were answered.

    Attributes:
        macro_f1: Mean F1 of the labels that the evaluation rows have.
        chance: Share of the most frequent label: what answering with it alone would score.
        uniform: 1 / labels of the task: what guessing would score.
        against_chance: Where the accuracy lies: ``"above"`` with its whole interval, or ``"unclear"``, ``"at"``,
            ``"below"``.
        labels: The labels of the rows in the task's order; of very many those with the most wrong rows.
        confusion: ``(wanted, answered, rows)`` in that order, the right ones included.
        unlisted: Wrong rows that do not stand in ``confusion``.
        mistakes: The wrong answers with the highest probability, highest first.
    """

    macro_f1: float
    chance: float
    uniform: float
    against_chance: Literal["above", "unclear", "at", "below"]
    labels: tuple[LabelScore, ...]
    confusion: tuple[tuple[str, str, int], ...]
    unlisted: int
    mistakes: tuple[Mistake, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """Every label of ``confusion``: those of the rows, then those that only stand among the answers."""
        wanted = [one.label for one in self.labels]
        return tuple(dict.fromkeys([*wanted, *(answered for _, answered, _ in self.confusion)]))

    @property
    def chance_note(self) -> str | None:
        """In words where the accuracy is not above chance; else None."""
        if self.against_chance == "above":
            return None
        how = "not clearly above" if self.against_chance == "unclear" else self.against_chance
        return f"{how} chance: always answering the most frequent label gives {self.chance:.4f}"


def label_detail(
    gold: Sequence[str], answers: Sequence[str], probabilities: Sequence[float] | None = None
) -> dict[str, Any]:
    """What a cell keeps of its answers, as plain values.

    Args:
        gold: n labels.
        answers: n labels; of a routed subject also those of other tasks.
        probabilities: Of each answer; NaN or None where there is none.
    """
    pairs = Counter(zip(gold, answers, strict=True))
    wanted, answered = Counter(gold), Counter(answers)
    wrong: Counter[str] = Counter()
    for (want, got), rows in pairs.items():
        if want != got:
            wrong[want] += rows
            wrong[got] += rows
    names = sorted(sorted(wanted | answered), key=lambda label: (label not in wanted, -wrong[label]))[:MOST_LABELS]
    index = {label: place for place, label in enumerate(names)}
    confusions = [
        (index[want], index[got], rows)
        for (want, got), rows in pairs.items()
        if want != got and want in index and got in index
    ]
    confusions = sorted(sorted(confusions), key=lambda one: -one[2])[:MOST_CONFUSIONS]
    f1 = [2 * pairs[label, label] / (rows + answered[label]) for label, rows in sorted(wanted.items())]
    return {
        "macro_f1": math.fsum(f1) / len(f1),
        "most": max(wanted.values()),
        "names": [label[:MAX_LABEL_LENGTH] for label in names],
        "counts": [[wanted[label], answered[label], pairs[label, label]] for label in names],
        "wrong": [list(one) for one in confusions],
        "unlisted": sum(wrong.values()) // 2 - sum(rows for _, _, rows in confusions),
        "worst": _worst(gold, answers, probabilities),
    }


def _worst(gold: Sequence[str], answers: Sequence[str], probabilities: Sequence[float] | None) -> list[list[Any]]:
    """``[row, wanted, answered, probability]`` of the surest wrong answers."""
    sure = [-1.0 if one is None or math.isnan(one) else float(one) for one in probabilities or [math.nan] * len(gold)]
    wrong = [row for row, (want, got) in enumerate(zip(gold, answers, strict=True)) if want != got]
    return [
        [row + 1, gold[row], answers[row][:MAX_LABEL_LENGTH], None if sure[row] < 0 else sure[row]]
        for row in sorted(wrong, key=lambda row: (-sure[row], row))[:MOST_MISTAKES]
    ]


def label_scores(record: EvaluationRecord, labels: Sequence[str]) -> LabelScores | None:
    """The scores that a cell keeps; None of a cell without labels, or stored before they were kept.

    Args:
        record: The cell.
        labels: The task's labels in their order.
    """
    kept = record.detail.get(KEY)
    if not isinstance(kept, Mapping) or not record.n:
        return None
    names, place = kept["names"], {label: place for place, label in enumerate(labels)}
    order = sorted(range(len(names)), key=lambda k: (place.get(names[k], len(place)), names[k]))
    rank = {k: number for number, k in enumerate(order)}
    right = [(k, k, counts[2]) for k, counts in enumerate(kept["counts"]) if counts[2]]
    pairs = sorted([*right, *map(tuple, kept["wrong"])], key=lambda one: (rank[one[0]], rank[one[1]]))
    chance = kept["most"] / record.n
    return LabelScores(
        macro_f1=kept["macro_f1"],
        chance=chance,
        uniform=1 / max(len(labels), 1),
        against_chance=_against(record, chance),
        labels=tuple(_label_score(names[k], *kept["counts"][k]) for k in order if kept["counts"][k][0]),
        confusion=tuple((names[want], names[got], rows) for want, got, rows in pairs),
        unlisted=kept["unlisted"],
        mistakes=tuple(Mistake(*one) for one in kept["worst"]),
    )


def with_texts(scores: LabelScores, texts: Sequence[str]) -> LabelScores:
    """The same with the texts of the mistakes, from the evaluation rows."""
    mistakes = tuple(
        replace(one, text=_cut(texts[one.row - 1])) if one.row <= len(texts) else one for one in scores.mistakes
    )
    return replace(scores, mistakes=mistakes)


def _label_score(label: str, rows: int, answered: int, right: int) -> LabelScore:
    precision = right / answered if answered else None
    return LabelScore(label, precision, right / rows, 2 * right / (rows + answered), rows, answered)


def _against(record: EvaluationRecord, chance: float) -> Literal["above", "unclear", "at", "below"]:
    if record.high < chance:
        return "below"
    if record.value <= chance:
        return "at"
    return "above" if record.low > chance else "unclear"


def _cut(text: str) -> str:
    return text if len(text) <= MOST_CHARACTERS else text[: MOST_CHARACTERS - 1] + "…"
