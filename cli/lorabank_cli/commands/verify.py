"""``lorabank verify``."""

from __future__ import annotations

import click

from lorabank.core.errors import DamagedError
from lorabank_cli.text import safe, table
from lorabank_cli.verb import Run, verb


@verb("verify", examples=("verify", "verify --full", "verify --full --json"))
@click.option("--full", is_flag=True, help="Read every file: digests, headers, finite values.")
def verify(run: Run, full: bool) -> None:
    """Check the bank's records and files.

    Without --full it compares records, existence and sizes. Nothing is changed. Findings exit with 8.
    """
    from lorabank import api

    findings = api.verify(run.bank, full=full)
    rows = [(f.kind, f.subject, f.message, f.hint) for f in findings]
    depth = "every file read" if full else "records, names and sizes; --full reads every file"
    text = table(("kind", "subject", "finding", "cure"), rows) if rows else f"{safe(run.bank)} is clean ({depth})"
    run.output.data({"clean": not findings, "full": full, "findings": findings}, text)
    if findings:
        raise DamagedError(f"{len(findings)} finding{'s' if len(findings) > 1 else ''} in {run.bank}")
