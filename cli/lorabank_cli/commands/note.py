"""``lorabank note``."""

from __future__ import annotations

import click

from lorabank.core.escaping import safe
from lorabank_cli.completion import complete_names
from lorabank_cli.verb import Run, verb


@verb("note", examples=('note spam "mails of 2025, without newsletters"', 'note spam ""'))
@click.argument("name", shell_complete=complete_names, help="A task or a composition.")
@click.argument("text", help="The note; an empty one removes the note.")
def note(run: Run, name: str, text: str) -> None:
    """Attach a note to a task or composition.

    It takes the place of the note that is there. 'lorabank show' and 'lorabank log' show it.
    """
    from lorabank import api

    api.set_note(run.bank, name, text)
    kept = text.strip() or None
    said = f"{safe(name)}: {safe(kept)}" if kept else f"{safe(name)} has no note"
    run.output.data({"name": name, "note": kept}, said)
