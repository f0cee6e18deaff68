"""``lorabank list``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from lorabank.core.commands import ADD_TASK, Command
from lorabank.core.escaping import safe
from lorabank.core.states import TUNER
from lorabank_cli.options import Option
from lorabank_cli.render.text import shortened, size, table, terminal_width
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.bank.snapshot import Snapshot
    from lorabank.core.records import CompositionRecord, EvaluationRecord, TaskRecord

ORDERS: dict[str, tuple[str, bool]] = {
    "position": ("position", False),
    "name": ("name", False),
    "score": ("score", True),
    "date": ("made", True),
    "size": ("bytes", True),
}
"""Word to the key of an entry, and whether the greatest comes first. An entry without the key comes last."""


@verb(
    "list",
    examples=(
        "list",
        "list --all",
        "list --tag production --sort score",
        "list --sort date --limit 10",
        "list --budget 1GiB",
        "list --json",
        "list --bank team/bank",
    ),
)
@click.option("--all", "everything", cls=Option, is_flag=True, help="Also show what was removed or superseded.")
@click.option("--tag", metavar="TAG", help="Show only what has this tag.")
@click.option(
    "--sort",
    type=click.Choice([*ORDERS]),
    default="position",
    show_default=True,
    help="Order; the best score, the newest and the largest come first.",
)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Show at most N tasks and N compositions.")
@click.option("--budget", metavar="SIZE", help="Maximum size of all adapters, for the room that is left.")
@click.option("--no-truncate", is_flag=True, help="Show every name and label, however long the lines get.")
def list_bank(
    run: Run,
    everything: bool,
    tag: str | None,
    sort: str,
    limit: int | None,
    budget: str | None,
    no_truncate: bool,
) -> None:
    """List tasks and compositions.

    The line 'room' says how many more tasks like the newest one fit: each takes as many input directions of every
    module as its rank, and of a --budget as many bytes as the newest adapter. Long lists of
    labels and members are shown as their number and the first ones; --json has everything.
    """
    # Not through lorabank.api: its settings would take a fifth of the time that this command may cost.
    from lorabank.bank.bank import Bank
    from lorabank.bank.room import in_words, room_left

    snapshot, scores = Bank.open(run.bank).learnt_scores()
    room = room_left(snapshot, None if budget is None else _bytes(budget))
    removed = snapshot.removed_tasks if everything else ()
    known = (*snapshot.tasks, *snapshot.damaged_tasks, *removed)
    tasks = [_task(snapshot, task, scores.get(task.position)) for task in known]
    made = [(one, "ready") for one in snapshot.compositions] + [
        (one, "damaged") for one in snapshot.damaged_compositions
    ]
    made += [(one, "removed") for one in snapshot.removed_compositions] if everything else []
    compositions = [_composition(number, one, state) for number, (one, state) in enumerate(made, start=1)]
    chosen, left = _chosen(tasks, tag, sort, limit)
    listed, unlisted = _chosen(compositions, tag, sort, limit)
    document = {
        "bank": run.bank,
        "id": snapshot.id,
        "format": snapshot.format,
        "base": snapshot.base,
        "tasks": chosen,
        "room": room,
        "compositions": [one["record"] for one in listed if one["state"] == "ready"],
        "damaged_compositions": [one["record"] for one in listed if one["state"] == "damaged"],
        "removed_compositions": [one["record"] for one in listed if one["state"] == "removed"],
    }
    lines = [f"bank at {safe(run.bank)}, base {safe(snapshot.base.name)}", ""]
    if not known:
        lines += ["no tasks yet", run.output.next(ADD_TASK)]
    else:
        lines += [
            *_tasks_text(chosen, left, no_truncate),
            *([f"room: {in_words(room)}"] if room else []),
            "",
            *_compositions_text(run, made, listed, unlisted, no_truncate),
        ]
    run.output.data(document, "\n".join(lines))


def _bytes(budget: str) -> int:
    from lorabank.core.machine.sizes import parse_bytes

    return parse_bytes(budget, option="--budget")


def _task(snapshot: Snapshot, task: TaskRecord, cell: EvaluationRecord | None) -> dict[str, Any]:
    adapter = snapshot.by_position.get(task.position)  # not by digest: an import may equal what was trained here
    train = snapshot.dataset(task.name, "train") if task.state == "ready" else None
    return {
        "position": task.position,
        "name": task.name,
        "labels": task.labels,
        "strategy": adapter.strategy if adapter else None,
        "r": adapter.r if adapter and TUNER not in adapter.metrics else None,
        "rows": train.rows if train else None,
        "score": cell.value if cell else None,
        "metric": cell.metric if cell else None,
        "made": task.created_at,
        "bytes": adapter.bytes if adapter else None,
        "version": len(snapshot.versions(task)),
        "state": snapshot.state_of(task),
        "removed_at": task.removed_at,
        "tags": task.tags,
        "note": task.note,
        "adapter": task.adapter,
    }


def _composition(number: int, record: CompositionRecord, state: str) -> dict[str, Any]:
    made = record.created_at
    return {
        "position": number,
        "name": record.name,
        "made": made,
        "tags": record.tags,
        "state": state,
        "record": record,
    }


def _chosen(
    entries: list[dict[str, Any]], tag: str | None, sort: str, limit: int | None
) -> tuple[list[dict[str, Any]], int]:
    """The entries that are shown, in their order, and how many are left out for the limit."""
    key, greatest_first = ORDERS[sort]
    wanted = sorted((e for e in entries if tag is None or tag in e["tags"]), key=lambda e: e["position"])
    there = sorted((e for e in wanted if e.get(key) is not None), key=lambda e: e[key], reverse=greatest_first)
    ordered = [*there, *(e for e in wanted if e.get(key) is None)]
    return ordered[:limit], len(ordered) - len(ordered[:limit])


def _tasks_text(tasks: list[dict[str, Any]], left: int, whole: bool) -> list[str]:
    names = ("#", "task", "labels", "strategy", "r", "rows", "score", "metric", "made", "size", "tags", "state")
    show = _joined(whole)
    rows = [
        [
            t["position"],
            t["name"] if t["version"] == 1 else f"{t['name']} (v{t['version']})",
            show(t["labels"]),
            *(t[c] for c in ("strategy", "r", "rows", "score", "metric")),
            t["made"][:10],
            None if t["bytes"] is None else size(t["bytes"]),
            show(t["tags"]) or None,
            _state(t["state"], t["removed_at"]),
        ]
        for t in tasks
    ]
    return _table(names, rows, left, whole) if rows else ["no task has this tag"]


def _compositions_text(
    run: Run, made: Sequence[Any], listed: list[dict[str, Any]], left: int, whole: bool
) -> list[str]:
    from lorabank.core.shelves import ROUTING

    if not made:
        return ["no compositions yet", run.output.next(Command("compose", "--mode", ROUTING))]
    show = _joined(whole)
    rows = [
        [
            one["name"],
            one["record"].mode,
            show(one["record"].members),
            one["made"][:10],
            show(one["tags"]) or None,
            _state(one["state"], one["record"].removed_at),
        ]
        for one in listed
    ]
    names = ("composition", "mode", "members", "made", "tags", "state")
    return _table(names, rows, left, whole) if rows else ["no composition has this tag"]


def _table(names: Sequence[str], rows: list[list[Any]], left: int, whole: bool) -> list[str]:
    """A table without columns that are empty in every row."""
    kept = [i for i, name in enumerate(names) if name != "tags" or any(row[i] for row in rows)]
    shown = table(
        [names[i] for i in kept], [[row[i] for i in kept] for row in rows], limit=None if whole else terminal_width()
    )
    return [shown, f"({left} more; without --limit all are shown)"] if left else [shown]


def _joined(whole: bool) -> Callable[[Sequence[str]], str]:
    return (lambda names: ", ".join(names)) if whole else shortened


def _state(state: str, removed_at: str | None) -> str:
    return f"{state} {removed_at[:10]}" if removed_at else state
