"""What ``predict`` and ``generate`` have in common: texts in, answers into a file or as lines for another program."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from lorabank.core.escaping import safe
from lorabank.data.row_files import as_json, as_line
from lorabank_cli.options import Option
from lorabank_cli.render.streams import given_texts
from lorabank_cli.verb import Run

Form = Literal["jsonl", "csv", "tsv", "parquet"]

if TYPE_CHECKING:
    from lorabank.core.config import GenerateConfig, PredictConfig

LINES = tuple(form for form in get_args(Form) if form != "parquet")
"""Forms that are text."""


def answer_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """``--output``, ``--format`` and ``--overwrite``."""
    for option in (
        click.option("--overwrite", is_flag=True, help="Replace the file of --output."),
        click.option(
            "--format",
            "form",
            cls=Option,
            type=click.Choice(get_args(Form)),
            help="Form of --output, or of the lines on stdout.",
        ),
        click.option(
            "--output",
            metavar="FILE",
            help="Write rows with answers: .jsonl, .csv, .tsv or .parquet; all columns of --data are kept.",
        ),
    ):
        function = option(function)
    return function


def asked_texts(run: Run, words: Sequence[str]) -> tuple[str, ...]:
    """The texts of the command line.

    Raises:
        click.UsageError: There is none, and no file of them.
    """
    texts = given_texts(words)
    if not texts and not run.ctx.params["data"]:
        raise click.UsageError("Missing a TEXT, '-' or '--data'")
    return texts


def write_rows(
    run: Run,
    config: PredictConfig | GenerateConfig,
    texts: Sequence[str],
    *,
    output: str | None,
    form: Form | None,
    overwrite: bool,
    lines: str | None,
) -> bool:
    """Write rows with their answers where they are asked for; False where they are not.

    Args:
        run: The call.
        config: What answers.
        texts: Texts of the command line.
        output: ``--output``.
        form: ``--format``.
        overwrite: ``--overwrite``.
        lines: The form of lines for a reader that is not a terminal, None where there are none.
    """
    from lorabank import api

    if overwrite and output is None:
        raise click.UsageError("--overwrite is for the file of --output")
    if output is None and form is not None:
        if run.output.json:
            raise click.UsageError("--format and --json exclude each other; --json is one document")
        if form not in LINES:
            raise click.UsageError(f"--format {form} needs a file: --output FILE")
    if output is not None:
        with run.observer as observer:
            result = api.answer_file(
                run.bank, output, texts, config, format=form, overwrite=overwrite, observer=observer
            )
        without = f", {result.rows - result.answered} of them without an answer" * (result.rows > result.answered)
        run.output.data(result, f"wrote {result.rows} rows to {safe(result.path)}{without}")
        return True
    chosen = form or (None if run.output.json or sys.stdout.isatty() else lines)
    if chosen is None:
        return False
    with run.observer as observer:
        answered = api.answer_rows(run.bank, texts, config, observer=observer)
        first = True
        for part in answered.parts:
            run.output.data(None, _lines(chosen, answered.columns, part, head=first))
            first = False
    return True


def _lines(form: str, columns: Sequence[str], rows: Sequence[Sequence[object]], *, head: bool) -> str:
    if form == "jsonl":
        return "".join(as_json(columns, row, ascii_only=True) for row in rows).removesuffix("\n")
    delimiter = "\t" if form == "tsv" else ","
    shown = [columns, *rows] if head else rows
    return "".join(as_line(row, delimiter) for row in shown).removesuffix("\n")
