"""How texts were routed, for people: right and confused, how sure, what was set aside, what gave tasks away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorabank.core.escaping import safe
from lorabank_cli.render.text import fit, pairs, table, terminal_width

if TYPE_CHECKING:
    from lorabank.evaluation.routing.audit import Confused, RoutingAudit

_TEXT = 80
_PHRASE = 60


def routing(found: Mapping[str, Any]) -> str:
    """The ``routing`` of a report as JSON has it."""
    facts = [
        ("score with routed tasks", found.get("routed")),
        ("score with known tasks (oracle)", found.get("oracle")),
        ("texts routed to their task", found.get("accuracy")),
        ("mean probability of the routed task", found.get("confidence")),
        ("calibration error", found.get("calibration_error")),
    ]
    text = pairs([(name, value) for name, value in facts if value is not None])
    if found.get("confusion"):
        names = found["tasks"]
        shares = found.get("right") or [None] * len(names)
        rows = [[name, *row, share] for name, row, share in zip(names, found["confusion"], shares, strict=True)]
        text += "\n\n" + table(("task \\ routed to", *map(safe, names), "right"), rows, limit=terminal_width())
    if found.get("abstention"):
        text += "\n\n" + _abstention(found["abstention"], found["tasks"])
    return text


def _abstention(found: Mapping[str, Any], tasks: Sequence[str]) -> str:
    facts = [
        ("texts that are answered", found["coverage"]),
        ("of those, routed to their task", found["routed"]),
        ("of those, score over all rows", found["score"]),
    ]
    rows = list(zip(tasks, found["covered"], strict=True))
    head = f"texts whose task is less likely than {found['threshold']:g} set aside"
    return f"{head}\n{pairs(facts)}\n\n{table(('task', 'answered'), rows)}"


def audit(found: RoutingAudit) -> str:
    """What a router confuses, and what it goes by."""
    blocks = [f"routing audit: {found.right:.4f} of {found.rows} rows are routed to their own task"]
    if found.confused:
        rows = [row for pair in found.confused for row in _confused(pair)]
        head = ("task", "routed to", "rows", "share", "row", "probability", "text")
        blocks.append("confused most often, with examples\n" + table(head, rows, limit=terminal_width()))
    names = ", ".join(f"{safe(name)} in {rows}" for name, rows in found.names.items())
    blocks.append(
        "without names of tasks and data sets, and without phrases that rows of a task begin or end with\n"
        + pairs(
            [
                ("rows that hold such words", found.stripped),
                ("names found", names or "none"),
                ("share of rows that change their route", found.moved),
                ("routed to their task, before", found.right),
                ("routed to their task, after", found.right_stripped),
            ]
        )
    )
    each = [
        (one.task, one.right, one.right_stripped, one.stripped, one.moved, _phrase(one.phrases)) for one in found.tasks
    ]
    columns = ("task", "right", "right after", "rows stripped", "rows moved", "commonest phrase")
    blocks.append(table(columns, each, limit=terminal_width()))
    blocks += [f"warning: {safe(warning)}" for warning in found.warnings]
    return "\n\n".join(blocks)


def _confused(pair: Confused) -> list[tuple[object, ...]]:
    """A row for each example; the first one also says which tasks."""
    told: tuple[object, ...] = (pair.task, pair.routed, pair.rows, pair.share)
    rows: list[tuple[object, ...]] = []
    for one in pair.examples:
        rows.append((*told, one.row, one.probability, _line(one.text, _TEXT)))
        told = (None, None, None, None)
    return rows


def _phrase(phrases: Mapping[str, int]) -> str:
    if not phrases:
        return ""
    phrase, rows = next(iter(phrases.items()))
    return f"{_line(phrase, _PHRASE)} ({rows})"


def _line(text: str, columns: int) -> str:
    return fit(" ".join(text.split()), columns).rstrip()
