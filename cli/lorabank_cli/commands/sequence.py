"""``lorabank sequence``."""

from __future__ import annotations

from typing import Any

import click

from lorabank_cli.main import Lazy

COMMANDS = {"run": ("sequence_run:run_sequence", "Run the experiment of a TOML file, or go on with it.")}


@click.group("sequence", cls=Lazy, table=COMMANDS, context_settings={"help_option_names": ["-h", "--help"]})
def sequence(**_: Any) -> None:
    """Compare strategies over orders and seeds."""
