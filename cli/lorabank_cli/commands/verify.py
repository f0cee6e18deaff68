"""``lorabank verify``."""

from __future__ import annotations

import click

from lorabank.core.commands import REPAIR
from lorabank.core.errors import DamagedError
from lorabank.core.escaping import safe
from lorabank_cli.render.findings import findings_text
from lorabank_cli.verb import Run, verb


class Part(click.ParamType[tuple[int, int]]):
    """``n/t``, the n-th of t parts."""

    name = "n/t"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int]:
        """Split and check."""
        import re

        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", str(value))
        if found is None or not 1 <= int(found[1]) <= int(found[2]):
            self.fail(f"{str(value)[:40]!r} is not n/t with n from 1 to t, for example 1/5", param, ctx)
        return int(found[1]), int(found[2])


@verb("verify", examples=("verify", "verify --full", "verify --subset 1/5", "verify --full --json"))
@click.option(
    "--full", is_flag=True, help="Read every file: digests, headers, finite values; and the base model's weights."
)
@click.option(
    "--subset", type=Part(), metavar="N/T", help="Read the files of the n-th of t parts: all parts are --full."
)
def verify(run: Run, full: bool, subset: tuple[int, int] | None) -> None:
    """Check the bank's records and files.

    Without --full, it compares records, existence and sizes. Nothing is changed. If anything is found, the exit code
    is 8.
    """
    from lorabank import api

    if full and subset:
        raise click.UsageError("--full and --subset exclude each other")
    findings = api.verify(run.bank, full=full, part=subset)
    clean = f"{safe(run.bank)} is clean ({_depth(full, subset)})"
    text = findings_text(run.output, findings) if findings else clean
    part = "/".join(map(str, subset)) if subset else None
    run.output.data({"clean": not findings, "full": full, "subset": part, "findings": findings}, text)
    if findings:
        count = f"{len(findings)} finding{'s' if len(findings) > 1 else ''}"
        raise DamagedError(f"{count} in {run.bank}", commands=[REPAIR], unchanged="nothing was changed")


def _depth(full: bool, subset: tuple[int, int] | None) -> str:
    if subset:
        return f"part {subset[0]} of {subset[1]} read; all parts together are --full"
    return "every file read" if full else "records, names and sizes; --full reads every file"
