"""``lorabank doctor``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lorabank.core.commands import REPAIR, VERIFY
from lorabank.core.errors import DamagedError
from lorabank.core.escaping import safe
from lorabank_cli.options import Option
from lorabank_cli.render.findings import findings_text
from lorabank_cli.render.text import pairs
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.bank.upkeep.repair import RepairResult
    from lorabank.workflows.doctor import Checkup


@verb("doctor", examples=("doctor", "doctor --json", "doctor --repair", "doctor --repair --from ../copy-of-bank"))
@click.option("--repair", is_flag=True, help="Repair what can be repaired without data loss.")
@click.option(
    "--from", "source", cls=Option, metavar="DIR", help="With --repair: fetch good copies from a bank or an export."
)
def doctor(run: Run, repair: bool, source: str | None) -> None:
    """Check the machine and the bank.

    The facts belong in a bug report. --repair reads every file: it sweeps what dead processes left, moves damaged
    files to the bank's folder quarantine, fetches good copies by their digest, and sets tasks aside that lack a file,
    so that all others can be used. It deletes no stored file. If findings remain, the exit code is 8.
    """
    from lorabank import api

    if source is not None and not repair:
        raise click.UsageError("--from needs --repair")
    repaired = api.repair(run.bank, source=source) if repair else None
    found = api.doctor(run.bank, full=repair)
    document = {
        "facts": dict(found.facts),
        "warnings": found.warnings,
        "repaired": repaired,
        "findings": found.findings,
        "commands": found.commands,
    }
    run.output.data(document, _text(run, found, repaired))
    if found.findings:
        count = len(found.findings)
        raise DamagedError(
            f"{count} finding{'s' if count > 1 else ''} in {run.bank}",
            hint="add --from COPY where there is a copy of the bank",
            commands=[VERIFY] if repair else [REPAIR],
            unchanged="no stored file was deleted" if repair else "nothing was changed",
        )


def _text(run: Run, found: Checkup, repaired: RepairResult | None) -> str:
    blocks = [pairs(found.facts, indent="")]
    blocks += [f"warning: {safe(warning)}" for warning in found.warnings]
    if repaired is not None:
        done = [(name.replace("_", " "), paths) for name, paths in repaired._asdict().items() if paths]
        lines = [f"{name}\n" + "\n".join(f"  {safe(path)}" for path in paths) for name, paths in done]
        blocks.append("\n".join(lines) or "nothing needed repair")
    if found.findings:
        blocks.append(findings_text(run.output, found.findings))
    if found.commands:
        blocks.append(run.output.next(*found.commands))
    return "\n\n".join(blocks)
