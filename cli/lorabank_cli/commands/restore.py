"""``lorabank restore``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lorabank.core.commands import REPAIR, Command
from lorabank.core.escaping import safe
from lorabank_cli.render.output import plain
from lorabank_cli.render.text import pairs
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.bank.upkeep.restore import RestoreResult


@verb(
    "restore",
    dry_run=True,
    confirm=True,
    examples=(
        "restore 20300102T030405000000-0003.db --dry-run",
        "restore /mnt/other-disk/bank --yes",
        "restore bank/backups/20300102T030405000000-0003.db --incomplete --yes",
    ),
)
@click.argument("backup", help="A file in the bank's folder backups (or its name), or a copy of the whole bank.")
@click.option(
    "--incomplete", is_flag=True, help="Restore even if files that it names are gone; run doctor --repair next."
)
def restore(run: Run, backup: str, incomplete: bool) -> None:
    """Restore a backup.

    It is checked before anything is changed, and the database that is there is kept aside. A copy of the
    whole bank also brings back the files that are missing or damaged in the bank; the bank itself may then be gone.
    """
    from lorabank import api

    if run.dry_run or not run.ctx.params["yes"]:
        planned = api.restore(run.bank, backup, incomplete=incomplete, dry_run=True)
        if run.dry_run:
            text = f"would restore {safe(planned.backup)}\n{_facts(planned)}".rstrip()
            run.output.data({"dry_run": True, **plain(planned)}, text)
            return
        run.confirm(f"Restore {safe(planned.backup)}? {len(planned.back)} tasks come back, {len(planned.gone)} go.")
    done = api.restore(run.bank, backup, incomplete=incomplete)
    follow = [Command("db", "upgrade")] if done.older_schema else []
    follow += [REPAIR] if done.missing else []
    parts = [f"restored {safe(done.backup)}", _facts(done), run.output.next(*follow) if follow else ""]
    run.output.data({"dry_run": False, **plain(done)}, "\n".join(part for part in parts if part))


def _facts(result: RestoreResult) -> str:
    return pairs(
        [
            ("tasks that come back", ", ".join(result.back) or "none"),
            ("tasks that go", ", ".join(result.gone) or "none"),
            ("files that are gone", len(result.missing) or None),
            *(("mended", line) for line in result.mended),
            ("kept aside", result.kept),
            ("older schema", result.older_schema),
        ]
    )
