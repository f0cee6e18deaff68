"""``lorabank gc``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lorabank.core.escaping import safe
from lorabank_cli.options import Finite
from lorabank_cli.render.text import shortened, size
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.bank.catalog.events import EventRecord


@verb("gc", dry_run=True, confirm=True, examples=("gc --dry-run", "gc --yes", "gc --grace-hours 0 --yes"))
@click.option(
    "--grace-hours", type=Finite(min=0), default=24.0, show_default=True, help="Keep files younger than this."
)
def gc(run: Run, grace_hours: float) -> None:
    """Delete files that nothing refers to.

    They are listed first. Files of removed tasks go when no live record needs them; then 'lorabank undo' cannot bring
    those tasks back, and the command says so.
    """
    from lorabank import api

    found = api.gc(run.bank, dry_run=True, grace_hours=grace_hours)
    listing = "".join(f"  {safe(path)}\n" for path in found.paths)
    lost = [_lost(event) for event in found.lost]
    if run.dry_run or not found.paths:
        ending = f"undo will no longer be able to revert: {safe(shortened(lost))}" if lost else ""
        text = f"would delete {_amount(len(found.paths), found.bytes)}\n{listing}{ending}".rstrip()
        document = {"dry_run": run.dry_run, "paths": found.paths, "bytes": found.bytes, "lost": lost}
        run.output.data(document, text if found.paths else "nothing to delete")
        return
    run.output.notice(f"to delete in {run.bank}: {_amount(len(found.paths), found.bytes)}")
    for path in found.paths:
        run.output.notice(f"  {path}")
    if lost:
        run.output.notice(f"undo will no longer be able to revert: {shortened(lost)}")
    run.confirm("Delete these files?")
    done = api.gc(run.bank, dry_run=False, grace_hours=grace_hours)
    document = {"dry_run": False, "paths": done.paths, "bytes": done.bytes, "lost": [_lost(e) for e in done.lost]}
    run.output.data(document, f"deleted {_amount(len(done.paths), done.bytes)}")


def _lost(event: EventRecord) -> str:
    """A change, as ``log`` has it."""
    return f"{event.kind} {event.name} (change {event.id})"


def _amount(count: int, total: int) -> str:
    return f"{count} path{'' if count == 1 else 's'}, {size(total)}"
