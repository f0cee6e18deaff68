"""``lorabank fold``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lorabank.core.commands import Command
from lorabank.core.config import FoldConfig
from lorabank.core.escaping import safe
from lorabank_cli.completion import complete_names
from lorabank_cli.options import remarked
from lorabank_cli.render.output import plain
from lorabank_cli.render.text import farthest, outline, pairs, shortened, size
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.workflows.learning.folded import FoldPlan, FoldResult


@verb(
    "fold",
    configs={"Fold": FoldConfig},
    dry_run=True,
    examples=(
        "fold sentiment spam --into reviews",
        "fold sentiment spam --into reviews --dry-run",
        "fold sentiment spam products --into reviews --max-rank 8 --tolerance 0.01",
        "fold sentiment spam --into reviews --merger ties --over states",
    ),
)
@click.argument("tasks", nargs=-1, required=True, shell_complete=complete_names, help="The tasks.")
@click.option("--into", required=True, metavar="NAME", help="Name of the composition that the folded adapter becomes.")
@remarked
def fold(run: Run, tasks: tuple[str, ...], into: str, note: str | None, tags: tuple[str, ...]) -> None:
    """Replace the adapters of several tasks by one of bounded rank.

    Their adapters are merged and truncated, and each task is scored before and after. If any score falls by more than
    --tolerance, nothing is changed. Otherwise each task gets a new version, which answers with the folded adapter and
    its own head. 'lorabank undo' brings the old versions back, until 'lorabank gc' deletes their files. --dry-run
    merges and scores, and stores nothing.
    """
    from lorabank import api

    if run.dry_run:
        with run.observer as observer:
            plan = api.plan_fold(run.bank, tasks, into, run.config(FoldConfig), observer)
        run.output.data({"dry_run": True, **plain(plan)}, _planned(plan))
        return
    with run.observer as observer:
        result = api.fold(run.bank, tasks, into, run.config(FoldConfig), observer, note=note, tags=tags)
    run.output.data(result, _text(run, result))


def _planned(plan: FoldPlan) -> str:
    kept = [f"{name} (for {', '.join(later)})" for name, later in plan.kept.items()]
    facts = pairs(
        [
            ("rank", plan.rank),
            ("adapters", f"{size(plan.bytes_before)} before"),
            ("old adapters that would stay", shortened(kept) or None),
            ("compositions that would go", shortened(plan.superseded) or None),
        ]
    )
    told = {name: farthest(values) for name, values in plan.report.items()}
    parts = [
        f"would fold {safe(', '.join(plan.tasks))} into {safe(plan.into)}",
        outline({**told, "scores": plan.scores}),
        facts,
        *([f"it would be refused: {safe(plan.refused)}"] if plan.refused else []),
        "\nnothing was changed",
    ]
    return "\n".join(parts)


def _text(run: Run, result: FoldResult) -> str:
    names = [task.name for task in result.tasks]
    kept = [f"{name} (for {', '.join(later)})" for name, later in result.kept.items()]
    facts = pairs(
        [
            ("rank", result.rank),
            (
                "adapters",
                f"{size(result.bytes_before)} before, {size(result.bytes_after)} once the old ones are deleted",
            ),
            ("old adapters that stay", shortened(kept) or None),
        ]
    )
    told = {name: farthest(values) for name, values in result.report.items()}
    gone = result.superseded
    again = [run.output.next(*gone.values(), title=f"to make {safe(', '.join(gone))} again")] if gone else []
    return "\n".join(
        [
            f"folded {safe(', '.join(names))} into {safe(result.composition.name)} in {safe(run.bank)}",
            outline({**told, "scores": result.scores}),
            facts,
            *again,
            run.output.next(Command("undo"), title="to go back to before"),
            run.output.next(Command("gc"), title="to delete the old adapters"),
        ]
    )
