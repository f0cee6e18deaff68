"""The demo's tables: the short one for newcomers, and the whole one as a page of its folder."""

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

CAPTION = "Accuracy on the held-out texts of each task, after the last task was learnt:"
"""Stands above the short table."""

EXPLANATION = (
    "forgotten: how far a task's accuracy fell below its best, averaged over the tasks before the last",
    "task id: whether the answerer was given the task that a text belongs to, or found it by itself (routed)",
)
"""What the short table's columns are, a line each."""

_WHOLE = (
    "learning accuracy: the mean score on each task right after it was learnt; backward transfer: what happened to it "
    "until the end; oracle: the accuracy if every text had been sent to its own task."
)


_WAYS = {
    ("seqlora", "as-trained"): "one adapter for all tasks (seqlora)",
    ("olora", "as-trained"): "an adapter for each task (olora)",
    ("olora", "manual"): "- all with equal weights (manual)",
    ("olora", "attention"): "- weighed by attention (attention)",
    ("olora", "routed"): "- chosen by the text (routed)",
}
"""What the ways to answer are called in the short table."""


def short(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Titles and rows of the short table: each way to answer, its score on each task, and what was forgotten."""
    tasks = list(rows[0]["scores"]) if rows else []
    titles = ["", "task id", *tasks, "average", "forgotten"]
    return titles, [
        [_way(row), row["task_id"], *row["scores"].values(), row["average_accuracy"], row["forgetting"]]
        for row in rows
    ]


def _way(row: Mapping[str, Any]) -> str:
    strategy, answers = row["strategy"], row["answers"]
    return _WAYS.get((strategy, answers), f"{strategy}, {answers}")


def lesson(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What the table shows, in a sentence for each comparison that its rows allow."""
    trained = {row["strategy"]: row for row in rows if row["oracle"] is None and row["answers"] == "as-trained"}
    lines = []
    if len(trained) > 1:
        lost = [f"{strategy} forgot {row['forgetting']:.3f}" for strategy, row in trained.items()]
        lines.append(f"{'; '.join(lost)} of accuracy on earlier tasks.")
    lines += [
        f"{row['answers']} finds the task of {row['routing_accuracy']:.0%} of the texts by itself and scores "
        f"{row['average_accuracy']:.3f}; with every text sent to its own task it would score {row['oracle']:.3f}."
        for row in rows
        if row["oracle"] is not None
    ]
    return lines


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Both tables as a page."""
    titles, cells = short(rows)
    whole = [[row[key] for _, key in COLUMNS] for row in rows]
    pages = [
        *("# lorabank demo", "", CAPTION, ""),
        *_table(titles, cells, words=2),
        "",
        *(f"- {line}." for line in EXPLANATION),
        *("", "## All metrics", ""),
        *_table([title for title, _ in COLUMNS], whole, words=3),
        *("", _WHOLE, ""),
    ]
    return "\n".join(pages)


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]], *, words: int) -> list[str]:
    rule = ["---" if place < words else "---:" for place in range(len(titles))]
    return [_line(titles), _line(rule), *(_line(map(_cell, row)) for row in rows)]


def _line(cells: Any) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
