"""``lorabank log``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lorabank.core.commands import Command
from lorabank.core.escaping import safe
from lorabank_cli.render.text import shortened, table, terminal_width
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.bank.history import Entry


@verb("log", examples=("log", "log --limit 5", "log --json"))
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Show only the newest N changes.")
def log(run: Run, limit: int | None) -> None:
    """Show what was changed and when.

    The newest change comes first, with the version of lorabank that made it. 'lorabank undo' takes back the one
    that is marked as next.
    """
    from lorabank import api

    entries = api.history(run.bank)
    shown = entries[:limit]
    rows = [[e.number, e.at[:16].replace("T", " "), e.kind, e.name or None, told(e), _state(e)] for e in shown]
    header = ("#", "when (UTC)", "change", "name", "what", "undo")
    lines = [f"history of {safe(run.bank)}, newest first", table(header, rows, limit=terminal_width())]
    if len(entries) > len(shown):
        lines += [f"({len(entries) - len(shown)} older)", run.output.next(Command("log"), title="all")]
    run.output.data({"bank": run.bank, "changes": shown}, "\n".join(lines))


def told(entry: Entry) -> str:
    """What a change did beside what its kind and name say."""
    parts = [
        f"{key}: {old or '-'} -> {entry.after[key] or '-'}"
        for key, old in entry.before.items()
        if key in entry.after and key != "first_name"
    ]
    own = {entry.name} if entry.undoes is None else set()
    for word, names in (("now called" if entry.undoes is None else "back", entry.added), ("gone", entry.removed)):
        if others := [name for name in names if name not in own]:
            parts.append(f"{word}: {shortened(others)}")
    return "; ".join(part if len(part) <= 100 else f"{part[:99]}\u2026" for part in parts)


def _state(entry: Entry) -> str | None:
    if entry.undone_by is not None:
        return f"undone by {entry.undone_by}"
    if entry.undoes is not None:
        return f"undoes {entry.undoes}"
    return "next" if entry.next else None
