"""``lorabank doctor``."""

from __future__ import annotations

from lorabank_cli.text import pairs
from lorabank_cli.verb import Run, verb


@verb("doctor", examples=("doctor", "doctor --json"))
def doctor(run: Run) -> None:
    """Show versions, devices and the bank's state.

    These facts belong into a bug report.
    """
    from lorabank import api

    facts = api.doctor(run.bank)
    run.output.data(dict(facts), pairs(facts, indent=""))
