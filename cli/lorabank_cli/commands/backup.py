"""``lorabank backup``."""

from __future__ import annotations

import click

from lorabank.core.commands import Command
from lorabank.core.escaping import safe
from lorabank_cli.render.text import pairs
from lorabank_cli.verb import Run, verb


@verb("backup", examples=("backup", "backup /mnt/other-disk/bank"))
@click.argument("target", required=False, help="Folder of a copy of the whole bank; made, or brought up to date.")
def backup(run: Run, target: str | None) -> None:
    """Copy the database, or the whole bank.

    Without TARGET the database is copied into the bank's folder backups and checked; the newest three copies stay.
    With TARGET the whole bank is copied: the copy is itself a bank. A later call copies what is new, reads what is
    there, and mends what is damaged in it.
    """
    from lorabank import api

    result = api.backup(run.bank, target)
    facts = pairs(
        [
            ("tasks", result.tasks),
            ("copied", None if target is None else f"{result.files} new adapters and blobs"),
            *(("mended", line) for line in result.mended),
        ]
    )
    back = run.output.next(Command("restore", result.path), title="to restore it")
    run.output.data(result, f"wrote {safe(result.path)}\n{facts}\n{back}")
