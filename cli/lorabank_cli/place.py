"""Which bank a call is about."""

from __future__ import annotations

import os
from pathlib import Path

import click
from click.core import ParameterSource

from lorabank.core.commands import Command
from lorabank.core.errors import ConfigError
from lorabank_cli.render.output import Output


def bank_of(ctx: click.Context) -> Path:
    """The bank's folder.

    The current folder decides nothing that the user did not type: a ``./bank`` that nobody named is taken when it is
    the user's own (or root's, who could be anybody). In a folder that others fill it would be theirs.

    Raises:
        ConfigError: It belongs to another user.
    """
    path = Path(ctx.params.get("bank") or "bank")
    if ctx.get_parameter_source("bank") in (None, ParameterSource.DEFAULT):
        for part in (path, path / "bank.json", path / "bank.db"):
            owner = _owner(part)
            if owner not in (None, os.geteuid(), 0):
                raise ConfigError(
                    f"{part} belongs to another user ({owner}), and --bank does not name it",
                    hint="name it if you trust it",
                    commands=[Command("--bank", str(path), *ctx.ensure_object(Output).words)],
                    unchanged="nothing was changed",
                )
    return path


def _owner(path: Path) -> int | None:
    try:
        return path.stat().st_uid
    except OSError:  # what cannot be looked at is refused where it is opened
        return None
