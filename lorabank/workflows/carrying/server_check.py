"""Whether a server takes an exported adapter: the command that serves it, or what to do instead."""

from __future__ import annotations

import shlex

from lorabank.core.commands import Command
from lorabank.core.errors import IncompatibleError
from lorabank.core.records import BaseModelRecord
from lorabank.core.shelves import SUMMING
from lorabank.exchange.servers import SERVERS, Served


def serve_command(server: str, served: Served, base: BaseModelRecord, *, alone: bool) -> str:
    """The shell command with which a server serves an adapter.

    Args:
        server: Its name.
        served: The folder.
        base: The bank's base.
        alone: Whether it is a task, of which a sum of one can be made.

    Raises:
        IncompatibleError: It would refuse the adapter, or compute something else.
    """
    verdict = SERVERS[server](served)
    if not verdict.problems:
        return shlex.join(verdict.command)
    name = served.name
    commands = [Command("export", name, "FOLDER", "--merged")] if base.quantisation is None else []
    if alone and not served.config["use_dora"]:
        commands += [
            Command("compose", "--mode", SUMMING, "--tasks", name, "--name", f"{name}-served"),
            Command("export", f"{name}-served", "FOLDER"),
        ]
    raise IncompatibleError(
        f"{server} would not serve {name!r}: {'; '.join(verdict.problems)}",
        hint="export a whole model, or a sum of this task alone; it has no head, its scaling is 1, max_rank caps it",
        commands=commands,
        unchanged="nothing was written",
    )
