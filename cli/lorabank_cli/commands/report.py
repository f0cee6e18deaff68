"""``lorabank report``."""

from __future__ import annotations

import click

from lorabank.core.escaping import safe
from lorabank_cli.options import Option
from lorabank_cli.verb import Run, verb


@verb(
    "report",
    examples=(
        "report",
        "report bank.html",
        "report compared.html bank team/bank",
        "report sequence.html runs/letters",
    ),
)
@click.argument("target", default="report.html", help="File to write [default: report.html].")
@click.argument("folders", nargs=-1, help="Banks or folders of sequences to compare, in the place of the bank.")
@click.option(
    "--table",
    "tables",
    cls=Option,
    metavar="FILE",
    multiple=True,
    help="Also write the table of results: .csv or .tex (booktabs).",
)
def report(run: Run, target: str, folders: tuple[str, ...], tables: tuple[str, ...]) -> None:
    """Write one HTML file about the bank, or about several.

    It shows tasks, adapters with their lineage, compositions and every matrix measured so far. With folders, it
    compares banks, or the strategies of a sequence over its orders and seeds. It opens offline, without scripts.
    """
    from lorabank import api
    from lorabank.core.errors import ConfigError

    if folders and (named := run.flags(["bank"])):
        raise ConfigError(
            f"the report compares the folders that are given and does not use {named[0]}",
            hint=f"leave {named[0]} out, and give its folder as one of FOLDERS",
            unchanged="nothing was written",
        )
    first, *others = folders or (run.bank,)
    path = api.report(first, target, beside=others, tables=tables)
    written = "\n".join(f"wrote {safe(one)}" for one in (path, *tables))
    run.output.data({"path": path, **({"tables": tables} if tables else {})}, written)
