"""``lorabank rename``."""

from __future__ import annotations

import click

from lorabank.core.escaping import safe
from lorabank_cli.completion import complete_names
from lorabank_cli.verb import Run, verb


@verb("rename", examples=("rename spam junk-mail", "rename routed router --json"))
@click.argument("old", shell_complete=complete_names, help="A task or a composition.")
@click.argument("new", help="Its new name.")
def rename(run: Run, old: str, new: str) -> None:
    """Rename a task or composition.

    Compositions keep their members and every score stays what it is; 'lorabank log' keeps the old name.
    """
    from lorabank import api

    api.rename(run.bank, old, new)
    run.output.data({"old": old, "new": new}, f"renamed {safe(old)} to {safe(new)} in {safe(run.bank)}")
