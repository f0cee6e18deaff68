"""``lorabank report``."""

from __future__ import annotations

import click

from lorabank.core.escaping import safe
from lorabank_cli.verb import Run, verb


@verb("report", examples=("report", "report bank.html"))
@click.argument("target", default="report.html", help="File to write [default: report.html].")
def report(run: Run, target: str) -> None:
    """Write one HTML file about the bank.

    Tasks, adapters with their lineage, compositions and every matrix measured so far; it opens offline, without
    scripts.
    """
    from lorabank import api

    path = api.report(run.bank, target)
    run.output.data({"path": path}, f"wrote {safe(path)}")
