"""``lorabank list``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorabank_cli.text import command, safe, table, terminal_width
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.bank.snapshot import Snapshot
    from lorabank.core.records import EvaluationRecord, TaskRecord


@verb("list", examples=("list", "list --json", "list --bank team/bank"))
def list_bank(run: Run) -> None:
    """List tasks and compositions."""
    # Not through lorabank.api: its settings would take a fifth of the time that this command may cost.
    from lorabank.bank.bank import Bank

    snapshot, evaluations = Bank.open(run.bank).contents()
    scores = _scores(snapshot, evaluations)
    known = sorted((*snapshot.tasks, *snapshot.damaged_tasks), key=lambda task: task.position)
    tasks = [_task(snapshot, task, scores.get(task.name)) for task in known]
    document = {
        "bank": run.bank,
        "id": snapshot.id,
        "format": snapshot.format,
        "base": snapshot.base,
        "tasks": tasks,
        "compositions": snapshot.compositions,
        "damaged_compositions": snapshot.damaged_compositions,
    }
    run.output.data(document, _text(run, snapshot, tasks))


def _scores(snapshot: Snapshot, evaluations: list[EvaluationRecord]) -> dict[str, EvaluationRecord]:
    """The cell of each task right after it was learnt, asked as itself, where it was measured."""
    position = {task.name: task.position for task in (*snapshot.tasks, *snapshot.damaged_tasks)}
    return {
        e.task: e
        for e in sorted(evaluations, key=lambda e: e.created_at)
        if (e.subject, e.stage, e.task_id) == ("as-trained", position.get(e.task), "given")
    }


def _task(snapshot: Snapshot, task: TaskRecord, cell: EvaluationRecord | None) -> dict[str, Any]:
    adapter = snapshot.by_position.get(task.position)  # not by digest: an import may equal what was trained here
    train = snapshot.dataset(task.name, "train")
    return {
        "position": task.position,
        "name": task.name,
        "labels": task.labels,
        "strategy": adapter.strategy if adapter else None,
        "r": adapter.r if adapter else None,
        "rows": train.rows if train else None,
        "score": cell.value if cell else None,
        "metric": cell.metric if cell else None,
        "state": "damaged" if task.state == "failed" else task.state,
        "adapter": task.adapter,
    }


def _text(run: Run, snapshot: Snapshot, tasks: list[dict[str, Any]]) -> str:
    limit = terminal_width()
    lines = [f"bank at {safe(run.bank)}, base {safe(snapshot.base.name)}", ""]
    if not tasks:
        lines += ["no tasks yet", f"next: {command('lorabank', 'add-task', 'NAME', '--data', 'FILE')}"]
        return "\n".join(lines)
    columns = ("position", "name", "labels", "strategy", "r", "rows", "score", "metric", "state")
    rows = [[", ".join(t[c]) if c == "labels" else t[c] for c in columns] for t in tasks]
    lines += [table(("#", "task", *columns[2:]), rows, limit=limit), ""]
    made = [(c, "ready") for c in snapshot.compositions] + [(c, "damaged") for c in snapshot.damaged_compositions]
    if made:
        rows = [[c.name, c.mode, ", ".join(c.members), c.created_at, state] for c, state in made]
        lines.append(table(("composition", "mode", "members", "made", "state"), rows, limit=limit))
    else:
        lines += ["no compositions yet", "next: lorabank compose --mode prototype"]
    return "\n".join(lines)
