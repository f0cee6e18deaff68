"""Which form a file's rows have, inferred from its columns."""

from __future__ import annotations

from collections.abc import Sequence

from lorabank.core.config import TrainConfig
from lorabank.core.errors import DataError
from lorabank.core.shelves import FORMS
from lorabank.data.bad_rows import UNCHANGED
from lorabank.data.formats.base import listed_columns, missing_column
from lorabank.data.formats.unsupported import check_kind_of_columns
from lorabank.data.forms.base import labelled_form, load_form
from lorabank.data.sheets import Sheet


def with_known_columns(sheet: Sheet, config: TrainConfig) -> Sheet:
    """The sheet, with columns such as ``Text`` and `` label`` under the names that forms know.

    Where a form fits already, nothing is renamed: no column that is there is covered by another one.
    """
    names = _candidates(config) if config.format == "auto" else (config.format,)
    forms = {name: load_form(name) for name in names}
    columns = set(sheet.columns)
    if any(columns.issuperset(form.in_sheet(config)) for form in forms.values() if form.answered):
        return sheet
    return sheet.adopting(column for form in forms.values() for column in (*form.in_sheet(config), *form.optional))


def fitting_forms(sheet: Sheet, config: TrainConfig) -> tuple[str, ...]:
    """The forms whose columns a sheet has; naming a text or label column rules out those without a text column."""
    columns = set(sheet.columns)
    return tuple(name for name in _candidates(config) if columns.issuperset(load_form(name).in_sheet(config)))


def choose_form(sheet: Sheet, config: TrainConfig) -> str:
    """The form of a sheet's rows, from its columns alone.

    Labelled texts come before all others, plain text behind them: a text column beside those of another form is taken
    for something derived from them.

    Args:
        sheet: The opened file.
        config: ``format``, ``text_column`` and ``label_column`` are read; a ``format`` other than ``"auto"`` is the
            answer if its columns are there.

    Raises:
        DataError: No form has these columns, or several have; where one is only misspelt, it is named.
    """
    if config.format != "auto":
        check_columns(sheet, config, config.format)
        return config.format
    if not sheet.columns:
        raise DataError(f"{sheet.source!r} has no rows with named columns", unchanged=UNCHANGED)
    fitting = fitting_forms(sheet, config)
    if labelled := [name for name in fitting if load_form(name).labelled]:
        return labelled[0]
    plain = [name for name in fitting if not load_form(name).answered]
    special = [name for name in fitting if name not in plain]
    if len(special) > 1:
        raise DataError(
            f"{sheet.source!r}: its columns fit several forms: {', '.join(special)}",
            unchanged=UNCHANGED,
            hint=f"--format {special[0]}, or another of them",
        )
    if special:
        return special[0]
    check_kind_of_columns(sheet.source, sheet.columns)
    _check_spelling(sheet, config, plain_fits=bool(plain))
    if plain and config.label_column == TrainConfig.label_column:
        return plain[0]
    if config.text_column != TrainConfig.text_column or config.label_column != TrainConfig.label_column:
        check_columns(sheet, config, labelled_form())
    needed = "; ".join(f"{name}: {', '.join(load_form(name).in_sheet(config))}" for name in _candidates(config))
    raise DataError(
        f"{sheet.source!r}: its columns {listed_columns(sheet.columns)} fit no form of rows",
        unchanged=UNCHANGED,
        hint=f"rename columns with --map old=new, or name them with --text-column and --label-column ({needed})",
    )


def check_plain_text(sheet: Sheet, config: TrainConfig) -> None:
    """Refuse to take a text column beside columns that no form knows for plain text, unless that is said.

    For where much hangs on it: such a file is as likely one of labelled texts whose labels are called otherwise.

    Raises:
        DataError: Naming the columns.
    """
    others = [column for column in sheet.columns if column != config.text_column]
    if config.format == "auto" and others:
        raise DataError(
            f"{sheet.source!r} has no column 'label': its texts are plain, or labelled by one of "
            f"{listed_columns(others)}",
            unchanged=UNCHANGED,
            hint="labelled: --label-column COLUMN; plain text, for a language model: --format text",
        )


def _candidates(config: TrainConfig) -> tuple[str, ...]:
    named = (config.text_column, config.label_column) != (TrainConfig.text_column, TrainConfig.label_column)
    return tuple(name for name in FORMS if not named or "text" in load_form(name).columns)


def check_columns(sheet: Sheet, config: TrainConfig, form: str) -> None:
    """Refuse a sheet that lacks a column of the form.

    Raises:
        DataError: Naming the column, those there are and the nearest.
    """
    kind = load_form(form)
    for column in kind.in_sheet(config):
        if column not in sheet.columns:
            hint = None if "text" in kind.columns else f"--map COLUMN={column}, or another --format"
            raise missing_column(sheet.source, column, sheet.columns, hint=hint)


def _check_spelling(sheet: Sheet, config: TrainConfig, *, plain_fits: bool) -> None:
    """Refuse columns that would be a form but for a misspelt name (``lable``, ``Completion``).

    Without this a misspelt label column would quietly make plain text of labelled texts.
    """
    for name in _candidates(config):
        if plain_fits and not load_form(name).answered:
            continue
        absent = [column for column in load_form(name).in_sheet(config) if column not in sheet.columns]
        meant = {column: _misspelt(column, sheet.columns) for column in absent}
        if absent and all(meant.values()):
            hint = "--map " + " --map ".join(f"{there}={column}" for column, there in meant.items())
            other = ", or --format text" if plain_fits else ""
            raise missing_column(sheet.source, absent[0], sheet.columns, hint=hint + other)


def _misspelt(column: str, present: Sequence[str]) -> str | None:
    """The column that may be meant by this name, capitals and small letters being the same."""
    from difflib import get_close_matches

    folded = {name.casefold().strip(): name for name in reversed(present)}
    close = get_close_matches(column.casefold(), list(folded), n=1, cutoff=0.8)
    return folded[close[0]] if close else None
