"""How the rows of each label were answered, for people: macro-F1, figures of each label, confusions and mistakes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabank.core.escaping import safe
from lorabank_cli.render.text import fit, pairs, table, terminal_width, width

if TYPE_CHECKING:
    from collections.abc import Sequence

    from lorabank.evaluation.confusion import LabelScore, LabelScores

_WORST = 3
_MOST_LABELS = 20
"""Rows of the table, and labels of a confusion matrix that is shown."""
_COLUMNS = 100
"""Width of a matrix where there is no terminal."""
_TEXT = 80
_HEAD = 12


def summary(scores: LabelScores | None) -> list[tuple[str, object]]:
    """Names and values that stand beside an accuracy."""
    if scores is None:
        return []
    worst = ", ".join(f"{one.label} {one.f1:.4f}" for one in _worst(scores)[:_WORST])
    return [("macro-F1", f"{scores.macro_f1:.4f} (lowest F1: {worst})"), ("warning", scores.chance_note)]


def details(scores: LabelScores) -> str:
    """Everything of one task: a table of its labels, the confusion matrix and the worst mistakes."""
    blocks = [pairs(summary(scores)), _table(scores), *_matrix(scores)]
    if scores.mistakes:
        rows = [(one.row, one.wanted, one.answered, one.probability, _line(one.text or "")) for one in scores.mistakes]
        head = ("row", "wanted", "answered", "probability", "text")
        blocks.append("worst mistakes: wrong answers with the highest probability; rows of the evaluation data\n")
        blocks[-1] += table(head, rows, limit=terminal_width())
    return "\n\n".join(blocks)


def confusion(scores: LabelScores, most: int) -> str | None:
    """The confusion matrix, None where it has more labels than ``most``, or more columns than the terminal."""
    names = scores.names
    if len(names) > most or scores.unlisted:
        return None
    counts = {(wanted, answered): rows for wanted, answered, rows in scores.confusion}
    rows = [(one.label, *(counts.get((one.label, name), 0) for name in names)) for one in scores.labels]
    drawn = table(("wanted \\ answered", *(_head(name) for name in names)), rows)
    return drawn if width(drawn.splitlines()[0]) <= (terminal_width() or _COLUMNS) else None


def _table(scores: LabelScores) -> str:
    shown = scores.labels if len(scores.labels) <= _MOST_LABELS else _worst(scores)[:_MOST_LABELS]
    rows = [(one.label, one.precision, one.recall, one.f1, one.rows) for one in shown]
    text = table(("label", "precision", "recall", "F1", "rows"), rows, limit=terminal_width())
    left = len(scores.labels) - len(shown)
    return text + (f"\n({left} labels with a higher F1 are in --json)" if left else "")


def _matrix(scores: LabelScores) -> list[str]:
    drawn = confusion(scores, _MOST_LABELS)
    if drawn:
        return [drawn]
    commonest = sorted((one for one in scores.confusion if one[0] != one[1]), key=lambda one: -one[2])[:10]
    return [table(("wanted", "answered", "rows"), commonest, limit=terminal_width())] if commonest else []


def _head(label: str) -> str:
    """A label above a column of numbers."""
    name = safe(label)
    return name if width(name) <= _HEAD else fit(name, _HEAD)


def _worst(scores: LabelScores) -> Sequence[LabelScore]:
    return sorted(scores.labels, key=lambda one: one.f1)


def _line(text: str) -> str:
    """A text on one line, cut."""
    flat = " ".join(text.split())
    return flat if len(flat) <= _TEXT else f"{flat[: _TEXT - 1]}…"
