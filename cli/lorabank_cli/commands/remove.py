"""``lorabank remove``."""

from __future__ import annotations

import click

from lorabank.core.commands import Command
from lorabank.core.escaping import safe
from lorabank_cli.completion import complete_names
from lorabank_cli.verb import Run, verb


@verb(
    "remove",
    dry_run=True,
    confirm=True,
    examples=("remove routed", "remove spam --cascade --dry-run", "remove spam --cascade --yes"),
)
@click.argument("name", shell_complete=complete_names, help="A task or a composition.")
@click.option("--cascade", is_flag=True, help="Remove the compositions that need the task as well.")
def remove(run: Run, name: str, cascade: bool) -> None:
    """Remove a task or composition.

    It is marked as removed and no longer answers; its files stay until 'lorabank gc', and as long as a later adapter
    was trained on top of them.
    """
    from lorabank import api

    names = api.remove(run.bank, name, cascade=cascade, dry_run=True)
    if run.dry_run:
        run.output.data({"dry_run": True, "removed": names}, f"would remove {safe(', '.join(names))}")
        return
    run.confirm(f"Remove {safe(', '.join(names))} from {safe(run.bank)}?")
    removed = api.remove(run.bank, name, cascade=cascade)
    text = f"removed {safe(', '.join(removed))}\n{run.output.next(Command('gc'))}"
    run.output.data({"dry_run": False, "removed": removed}, text)
