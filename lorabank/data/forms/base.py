"""The forms in which people bring rows: which columns each has, and how a row becomes a prompt and a completion.

A form is one object, on the shelf ``FORMS``. Every form ends in the same two strings for each row (`Rows`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from lorabank.core.config import TrainConfig
from lorabank.core.shelves import FORMS, GENERATING
from lorabank.core.templates import DEFAULT_TEMPLATE, fill_labels
from lorabank.data.formats.base import bad_row
from lorabank.data.formats.cells import BadCell
from lorabank.data.formats.unsupported import check_kind_of_labels
from lorabank.data.rows import Rows
from lorabank.data.sheets import Sheet

RenderChat = Callable[[Sequence[Mapping[str, str]]], str]
"""Messages (``role``, ``content``) to the string that a model reads before it answers."""


@dataclass(frozen=True)
class Form:
    """One form of rows.

    A form with settings of its own is a subclass, whose further fields are made by `lorabank.core.settings.setting`
    and which overrides `row`.

    Attributes:
        columns: The columns that make it this form. ``text`` and ``label`` stand for ``--text-column`` and
            ``--label-column``.
        convert: What `row` does.
        optional: Columns that are read where they are there.
        scoring: The scoring of its rows where none is chosen.
        labelled: Whether its rows are texts with labels, which classifiers learn.
        answered: Whether a row has an answer beside its text.
        conversations: Whether its rows are conversations.
    """

    columns: tuple[str, ...]
    convert: Callable[[Mapping[str, object], RenderChat], tuple[str, str]] | None = None
    optional: tuple[str, ...] = ()
    scoring: str = GENERATING
    labelled: bool = False
    answered: bool = True
    conversations: bool = False

    def row(self, cells: Mapping[str, object], render_chat: RenderChat) -> tuple[str, str]:
        """The prompt and the completion of a row; of a labelled text, the text and the label.

        Args:
            cells: The cells by column.
            render_chat: Renders a conversation.

        Raises:
            BadCell: A cell is wrong; one without a ``column`` is about the first.
        """
        assert self.convert is not None
        return self.convert(cells, render_chat)

    @property
    def turns(self) -> bool:
        """Whether its prompts are texts, and to a model with a chat template a user's turn."""
        return False

    def check(self, *, text_to_text: bool) -> None:
        """Refuse settings that mean nothing, as those of prompts do to a classifier.

        Raises:
            ConfigError: In those words.
        """

    def words(self, labels: Sequence[str]) -> Mapping[str, str] | None:
        """The word in the place of each label; None where they stay what they are.

        Raises:
            ConfigError: The words do not fit the labels.
        """
        return None

    def template(self, labels: Sequence[str]) -> str:
        """Text to text: the prompt of a labelled text, with ``{text}`` and its labels filled in."""
        return fill_labels(DEFAULT_TEMPLATE, labels)

    def in_sheet(self, config: TrainConfig) -> tuple[str, ...]:
        """``columns`` under the names that the settings give them."""
        chosen = {"text": config.text_column, "label": config.label_column}
        return tuple(chosen.get(column, column) for column in self.columns)


def load_form(name: str) -> Form:
    """The form of this name.

    Raises:
        ConfigError: There is no such form; the nearest one is proposed.
    """
    form: Form = FORMS.load(name)
    return form


def labelled_form() -> str:
    """The first form of labelled texts on the shelf, as which a classifier's rows are read."""
    return next(name for name in FORMS if load_form(name).labelled)


def read_cells(
    sheet: Sheet, form: Form, columns: Sequence[str], render_chat: RenderChat, *, free: bool = False
) -> Rows:
    """Read all rows of a sheet in one form.

    Args:
        sheet: The opened file.
        form: The form.
        columns: What its columns are called in the sheet.
        render_chat: Renders conversations.
        free: Whether the completions are not labels.

    Raises:
        DataError: A column is missing, or cells are wrong and not to be left out; names lines and columns.
    """
    table = sheet.read(columns, form.optional)
    # Names as the form knows them: those of the file, then of the sheet, then of the form.
    if "label" in form.columns:
        index = form.columns.index("label")
        check_kind_of_labels(sheet.source, table.columns[index], [cells[index] for cells in table.rows])
    own = (*form.columns, *sheet.renamed(table.columns)[len(columns) :])
    prompts, completions, lines = [], [], []
    for line, cells in zip(table.lines, table.rows, strict=True):
        try:
            prompt, completion = form.row(dict(zip(own, cells, strict=True)), render_chat)
        except BadCell as error:
            column = table.columns[own.index(error.column or own[0])]
            place = f", {error.place}" if error.place else ""
            where = f"{table.unit} {line}, column {column!r}{place}"
            table.refuse(line, bad_row(sheet.source, where, error.problem, hint=error.hint))
            continue
        lines.append(line)
        prompts.append(prompt)
        completions.append(completion)
    left_out = table.bad.settle(sheet.source, len(lines), skip=sheet.skip_bad)
    return Rows(
        texts=tuple(prompts),
        labels=tuple(completions),
        source=sheet.source,
        columns=table.columns[: len(columns)],
        lines=tuple(lines),
        unit=table.unit,
        free=free,
        left_out=left_out,
        bad_lines=tuple(line for line, _ in table.bad.rows),
        notes=sheet.notes,
    )
