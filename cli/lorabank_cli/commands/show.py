"""``lorabank show``."""

from __future__ import annotations

import click

from lorabank_cli.completion import complete_names
from lorabank_cli.output import plain
from lorabank_cli.text import command, outline, pairs, safe
from lorabank_cli.verb import Run, verb


@verb("show", examples=("show sentiment", "show routed --json"))
@click.argument("name", shell_complete=complete_names, help="A task or a composition.")
def show(run: Run, name: str) -> None:
    """Show everything recorded about a task or composition."""
    from lorabank import api

    document = api.show(run.bank, name)
    chosen = ("--composition", name) if "composition" in document else ("--task", name)
    ready: list[tuple[str, object]] = [("predict", command("lorabank", "predict", *chosen, "TEXT"))]
    if chosen[0] == "--task":
        ready.append(("export", command("lorabank", "export", name, "FOLDER")))
    text = f"{safe(name)} in {safe(run.bank)}\n{outline(plain(document))}\n\nready to type\n{pairs(ready)}"
    run.output.data(document, text)
