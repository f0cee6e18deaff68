"""``lorabank pull``."""

from __future__ import annotations

import click

from lorabank.core.commands import LIST, Command
from lorabank.core.escaping import safe
from lorabank_cli.render.text import pairs
from lorabank_cli.verb import Run, verb


@verb("pull", examples=("pull me/my-bank", "pull them/their-bank --revision v1 --bank ./theirs"))
@click.argument("repository", help="OWNER/NAME on the hub.")
@click.option("--revision", help="Commit, tag or branch; default: the newest.")
def pull(run: Run, repository: str, revision: str | None) -> None:
    """Fetch a bank from a repository on the hub.

    It goes into the folder of --bank, which must be empty or not exist. Every row and file is checked against its
    digest first; the folder appears whole or not at all. The base model is fetched when it is first needed.
    """
    from lorabank import api

    result = api.pull(run.bank, repository, revision=revision, observer=run.observer)
    facts = pairs(
        [
            ("tasks", ", ".join(result.tasks) or "none"),
            ("base model", result.base or None),
            ("commit", result.commit),
            ("older schema", result.older_schema),
        ]
    )
    follow = run.output.next(Command("db", "upgrade") if result.older_schema else LIST)
    run.output.data(result, f"fetched {safe(repository)} into {safe(result.path)}\n{facts}\n{follow}")
