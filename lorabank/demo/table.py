"""The demo's table: its columns, and as a page of its folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

COLUMNS = (
    ("trained by", "strategy"),
    ("answered by", "answers"),
    ("task id", "task_id"),
    ("average accuracy", "average_accuracy"),
    ("learning accuracy", "learning_accuracy"),
    ("backward transfer", "backward_transfer"),
    ("forgetting", "forgetting"),
    ("oracle", "oracle"),
    ("routed right", "routing_accuracy"),
)
"""Title and key of a row."""

EXPLANATION = "task id routed: nobody said which task a text belongs to; oracle: the same with perfect routing"


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as a page."""
    lines = ["# lorabank demo", "", _line(title for title, _ in COLUMNS)]
    lines.append(_line("---" if place < 3 else "---:" for place in range(len(COLUMNS))))
    lines += [_line(_cell(row[key]) for _, key in COLUMNS) for row in rows]
    return "\n".join([*lines, "", f"{EXPLANATION}.", ""])


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
