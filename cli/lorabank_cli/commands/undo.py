"""``lorabank undo``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabank.core.escaping import safe
from lorabank_cli.render.text import pairs, shortened
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.bank.upkeep.undo import UndoResult


@verb("undo", dry_run=True, confirm=True, examples=("undo --dry-run", "undo", "undo --yes"))
def undo(run: Run) -> None:
    """Undo the last change.

    What was added is removed, what was removed or replaced can be used again, a name, a note and tags become what they
    were. Another undo goes one change further back. What 'lorabank gc' deleted cannot come back.
    """
    from lorabank import api

    planned = api.undo(run.bank, dry_run=True)
    event = planned.event
    what = f"{event.kind} {event.name} of {event.created_at[:16].replace('T', ' ')} (change {event.id})"
    if run.dry_run:
        run.output.data(_document(planned, dry_run=True), f"would undo {safe(what)}\n{_effects(planned)}")
        return
    run.output.notice(f"to undo in {run.bank}: {what}")
    run.confirm(f"Undo {what}?")
    done = api.undo(run.bank)
    run.output.data(_document(done, dry_run=False), f"undid {safe(what)}\n{_effects(done)}")


def _effects(result: UndoResult) -> str:
    items: list[tuple[str, object]] = [
        ("back", shortened(result.back) or None),
        ("gone", shortened(result.gone) or None),
    ]
    items += [
        (name, f"{result.before[name] or '-'} -> {value or '-'}")
        for name, value in result.after.items()
        if name != "first_name"
    ]
    return pairs(items)


def _document(result: UndoResult, *, dry_run: bool) -> dict[str, object]:
    return {"dry_run": dry_run, **result._asdict()}
