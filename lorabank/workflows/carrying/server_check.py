"""Whether a server takes an exported adapter: the command that serves it, or what to do instead."""

from __future__ import annotations

from collections.abc import Sequence

from lorabank.core.commands import Command, shell_line
from lorabank.core.errors import IncompatibleError
from lorabank.core.records import BaseModelRecord, TaskRecord
from lorabank.core.shelves import SUMMING
from lorabank.core.task_kinds import task_kind
from lorabank.exchange.servers import SERVERS, Served
from lorabank.workflows.carrying.refusals import MOST_PROPOSED


def serve_command(
    server: str, served: Served, base: BaseModelRecord, members: Sequence[str], task: TaskRecord | None
) -> str:
    """The shell command with which a server serves an adapter.

    Args:
        server: Its name.
        served: The folder.
        base: The bank's base.
        members: The tasks that are in it.
        task: The task that it is, of which a sum of one can be made; None for a sum.

    Raises:
        IncompatibleError: It would refuse the adapter, or compute something else.
    """
    verdict = SERVERS[server](served)
    if not verdict.problems:
        return shell_line(*verdict.command)
    name, headed = served.name, task_kind(base.task_type).has_head
    hints, commands = [], []
    if base.quantisation is None:
        whole = members[:MOST_PROPOSED] if headed and task is None else (name,)  # a sum of classifiers has no head
        hints.append("export a whole model" if len(whole) == 1 else "export its tasks as whole models")
        commands += [Command("export", one, f"./{one}-model", "--merged") for one in whole]
    if task and not headed and served.sums_to_factors:
        hints.append("a sum of this task alone, whose scaling is 1 and whose rank max_rank caps")
        commands += [
            Command("compose", "--mode", SUMMING, "--tasks", name, "--name", f"{name}-served"),
            Command("export", f"{name}-served", f"./{name}-adapter"),
        ]
    raise IncompatibleError(
        f"{server} would not serve {name!r}: {'; '.join(verdict.problems)}",
        hint=", or ".join([*hints, "let this server answer"]),
        commands=[*commands, Command("serve")],
        unchanged="nothing was written",
    )
