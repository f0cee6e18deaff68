"""Names from the bank, for the shell's completion."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from lorabank.bank.snapshot import Snapshot


def complete_names(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Tasks and compositions."""
    return complete_tasks(ctx, param, incomplete) + complete_compositions(ctx, param, incomplete)


def complete_tasks(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Tasks."""
    snapshot = _snapshot(ctx)
    return _starting([task.name for task in snapshot.tasks], incomplete) if snapshot else []


def complete_compositions(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Compositions."""
    snapshot = _snapshot(ctx)
    return _starting([made.name for made in snapshot.compositions], incomplete) if snapshot else []


def _starting(names: list[str], incomplete: str) -> list[str]:
    """Names that go on from what was typed; one that a shell or a terminal could not take as it is was never given."""
    return [name for name in names if name.startswith(incomplete) and name.isascii() and name.isprintable()]


def _snapshot(ctx: click.Context) -> Snapshot | None:
    from lorabank import api
    from lorabank.core.errors import LorabankError
    from lorabank_cli.place import bank_of

    try:
        return api.overview(bank_of(ctx))
    except LorabankError:  # no bank here: nothing to offer, and a completion must not complain
        return None
