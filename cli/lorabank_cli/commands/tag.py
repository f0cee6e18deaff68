"""``lorabank tag``."""

from __future__ import annotations

import click

from lorabank.core.escaping import safe
from lorabank_cli.completion import complete_names
from lorabank_cli.options import Option
from lorabank_cli.verb import Run, verb


@verb("tag", examples=("tag spam mail production", "tag spam --remove production", "tag spam archived --remove mail"))
@click.argument("name", shell_complete=complete_names, help="A task or a composition.")
@click.argument("words", nargs=-1, metavar="[TAG]...", help="Tags to add; they are spelt like names.")
@click.option("--remove", "less", cls=Option, multiple=True, metavar="TAG", help="Remove this tag; may be repeated.")
def tag(run: Run, name: str, words: tuple[str, ...], less: tuple[str, ...]) -> None:
    """Tag a task or composition.

    'lorabank list --tag TAG' lists what has a tag.
    """
    from lorabank import api

    if not words and not less:
        raise click.UsageError("Missing a tag to add, or '--remove'")
    tags = api.change_tags(run.bank, name, add=words, remove=less)
    said = f"{safe(name)}: {safe(', '.join(tags))}" if tags else f"{safe(name)} has no tags"
    run.output.data({"name": name, "tags": tags}, said)
