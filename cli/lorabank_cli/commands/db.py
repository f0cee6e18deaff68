"""``lorabank db``."""

from __future__ import annotations

from typing import Any

import click

from lorabank_cli.main import Lazy

COMMANDS = {"upgrade": ("db_upgrade:upgrade", "Bring the database to this version of lorabank.")}


@click.group("db", cls=Lazy, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
def db(**_: Any) -> None:
    """Look after the bank's database."""
