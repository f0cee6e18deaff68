"""How free text was answered, for people: each text metric, and rows with what was asked, wanted and got."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabank.core.escaping import safe
from lorabank_cli.render.text import named, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lorabank.evaluation.text_samples import TextScores

_MOST_TASKS = 3
"""Tasks whose samples are shown at once."""


def other_metrics(scores: TextScores | None, metric: str) -> list[tuple[str, object]]:
    """Names and values that stand beside the score by ``metric``."""
    return [(named(name), value) for name, value in scores.metrics.items() if name != metric] if scores else []


def answered(tasks: Mapping[str, TextScores]) -> list[str]:
    """Blocks, each behind a blank line: a table of every metric, and the samples of a few tasks."""
    if not tasks:
        return []
    names = list(next(iter(tasks.values())).metrics)
    rows = [[task, *(scores.metrics.get(name) for name in names)] for task, scores in tasks.items()]
    blocks = [table(("free text", *map(named, names)), rows)]
    if len(tasks) > _MOST_TASKS:
        blocks.append("--task NAME shows samples of a task's answers")
    else:
        blocks += [f"{safe(task)}\n{samples(scores)}" for task, scores in tasks.items()]
    return [f"\n{block}" for block in blocks]


def samples(scores: TextScores) -> str:
    """Each sample as three lines; a text of several lines continues below its beginning."""
    lines = []
    for sample in scores.samples:
        lines.append(f"evaluation row {sample.row}")
        lines += [
            f"  {name:<8}{_lines(text)}".rstrip()
            for name, text in (("asked", sample.asked), ("wanted", sample.wanted), ("got", sample.got))
        ]
    return "\n".join(lines)


def _lines(text: str) -> str:
    return f"\n{' ' * 10}".join(map(safe, text.split("\n")))
