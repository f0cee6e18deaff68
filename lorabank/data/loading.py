"""From a file to the rows of a task: form, labels, template, and the two splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError, DataError, IncompatibleError
from lorabank.core.shelves import FORMS, GENERATING, SCORINGS, TRAINING
from lorabank.core.task_kinds import HEAD, generating
from lorabank.core.templates import ChatPrompt, fill_text, slot_in
from lorabank.data.bad_rows import UNCHANGED, LeftOut, of_rows
from lorabank.data.checks import Repetitions, find_repetitions, label_counts, warnings
from lorabank.data.formats.readers import AS_IT_IS, Reading
from lorabank.data.formats.unsupported import check_kind_of_answers, check_kind_of_columns
from lorabank.data.forms.base import Form, RenderChat, labelled_form, load_form, read_cells
from lorabank.data.forms.chat import Rendered
from lorabank.data.forms.detection import (
    check_columns,
    check_plain_text,
    choose_form,
    fitting_forms,
    with_known_columns,
)
from lorabank.data.forms.labels import check_labels, label_list, replace_labels
from lorabank.data.forms.look_alikes import LookAlikes, look_alikes
from lorabank.data.methods import chosen_form
from lorabank.data.rows import Rows
from lorabank.data.sheets import Sheet, open_sheet
from lorabank.data.splits import check_overlap, hold_out, split_rows


@dataclass(frozen=True)
class TaskData:
    """The two splits of a task; no text or prompt stands in both.

    Attributes:
        labels: Every label of the training rows, in alphabetical order; in numerical order if all are integers; label
            words in the order of their labels. Empty where answers are generated or a perplexity is measured.
        train: Training rows.
        eval: Evaluation rows; each label is one of ``labels``.
        held: Training rows that are held out and measured between steps, to stop early and keep the best step; None
            where the settings ask for none. They are not among ``train``.
        dropped: Repetitions of an evaluation row that a split of our own left out (they would count twice).
        form: A key of ``lorabank.core.shelves.FORMS``.
        prompt_template: In text to text, makes the prompt of a labelled text; its labels are filled in. A `ChatPrompt`
            where texts are put into the base's chat template. None where texts are whole prompts, and for a
            classifier.
        scoring: ``HEAD`` of a classifier, else a name on the shelf of scorings.
        chat: Whether the model reads the prompts in the base's chat template: by ``prompt_template``, or because they
            are conversations, which the texts hold as the chat template writes them.
        repetitions: Rows of the files that repeat or contradict others.
        notes: How the files were read, where that is not plain.
        left_out: Of each file with bad rows, what ``skip_bad`` left out.
    """

    labels: tuple[str, ...]
    train: Rows
    eval: Rows
    held: Rows | None = None
    dropped: int = 0
    form: str = ""
    prompt_template: str | None = None
    scoring: str = HEAD
    chat: bool = False
    repetitions: Repetitions = field(default_factory=Repetitions)
    notes: tuple[str, ...] = ()
    left_out: tuple[LeftOut, ...] = ()

    @property
    def told(self) -> tuple[str, ...]:
        """What its user should know about the files and the labels."""
        return (*self.notes, *map(str, self.left_out), *map(str, self.look_alikes), *self.warnings)

    @property
    def label_counts(self) -> dict[str, dict[str, int]]:
        """Rows of each label by split, the most frequent first; empty where there are no labels."""
        return label_counts(self.labels, self.train, self.eval)

    @property
    def warnings(self) -> tuple[str, ...]:
        """What is likely a mistake in the rows."""
        return warnings(self.label_counts, self.repetitions)

    @property
    def look_alikes(self) -> tuple[LookAlikes, ...]:
        """Labels that a reader would take for one, with their rows in both splits."""
        return look_alikes(Counter((*self.train.labels, *self.eval.labels))) if self.labels else ()


@of_rows
def read_rows(path: str | Path, *, text_column: str, label_column: str | None, reading: Reading = AS_IT_IS) -> Rows:
    """Read texts, and labels if asked, from a table file or a data set of the hub.

    Labels are kept as strings without surrounding blanks: integers in decimal, booleans as ``true`` and ``false``.
    A whole number stored as a float (pandas makes ``1`` into ``1.0`` where a cell was missing) is the integer; any
    other float is refused. A CSV cell is a string and stays as it is written.

    Args:
        path: The file.
        text_column: Column of the texts.
        label_column: Column of the labels, or None for texts alone.
        reading: What the user says about reading the file.

    Returns:
        At least one row.

    Raises:
        NotFoundError: There is no such file.
        DataError: The file is empty or broken, a column is missing, or a cell is wrong; names line and column.
    """
    from lorabank.data.forms.plain import CLASSIFICATION, UNLABELLED

    sheet = open_sheet(path, (), reading)
    sheet = sheet.adopting((text_column,) if label_column is None else (text_column, label_column))
    if label_column is None:
        return replace(read_cells(sheet, UNLABELLED, (text_column,), _no_chat), labels=())
    return read_cells(sheet, CLASSIFICATION, (text_column, label_column), _no_chat)


@of_rows
def detect_form(config: TrainConfig, *, decides: bool = False) -> str:
    """The form of the training rows, inferred from the columns of ``data`` or given as ``format``; no row is read.

    Args:
        config: ``data``, ``format``, ``map``, ``text_column`` and ``label_column`` are read.
        decides: Whether the form alone decides which base model a bank gets. Columns that may be labelled texts as
            well as plain text are then refused.

    Returns:
        A key of ``lorabank.core.shelves.FORMS``.

    Raises:
        NotFoundError: The file is missing.
        ConfigError: No file is named, or a renaming is wrong.
        DataError: No form has these columns, or several have.
    """
    sheet = _open(config.data, config)
    form = choose_form(sheet, config)
    if decides and form == "text":
        check_plain_text(sheet, config)
    return form


@of_rows
def load_task_data(
    config: TrainConfig,
    *,
    labelled: bool = True,
    render_chat: RenderChat | None = None,
    turn: Callable[[], ChatPrompt] | None = None,
) -> TaskData:
    """Read a task's training and evaluation rows.

    Without ``eval_data`` a part of the training file is set aside: ``eval_fraction`` of each label's distinct texts
    (rounded, at least one where the label has two), chosen by ``seed``; of free completions ``eval_fraction`` of the
    distinct prompts. Rows with equal texts or prompts go to the same side.

    Args:
        config: The fields that say which data, and what is made of them.
        labelled: Whether the base's task type takes labelled texts alone: it is a classifier's.
        render_chat: Messages to the string that the model reads before it answers; None where the base model has no
            chat template.
        turn: Gives the base's chat template around a user's turn; None where it has none.

    Returns:
        The splits, each in the order of its file.

    Raises:
        NotFoundError: A file is missing.
        ConfigError: A setting does not go with the form, a template has no ``{text}``, or label words are wrong.
        IncompatibleError: The rows are conversations, and the base model has no chat template.
        DataError: A row is wrong, there are fewer than two labels or too few texts, or the evaluation file has a
            label or a text that it must not have; names file, line and column.
    """
    sheet = _open(config.data, config)
    form = _form_for(sheet, config, labelled)
    scoring = _scoring(config, form, labelled)
    kind = _check_settings(config, form, scoring)
    free = not kind.labelled and not SCORINGS.load(scoring).labelled
    render = Rendered(render_chat or _no_chat)
    rows = read_cells(sheet, kind, kind.in_sheet(config), render, free=free)
    if "completion" in kind.columns and "label" in sheet.columns:
        check_kind_of_answers(sheet.source, "label", [cells[0] for cells in sheet.read(("label",)).rows])
    files = [rows]
    labels = () if free else label_list(rows, **_label_hint(kind))
    evaluation = None
    if config.eval_data is not None:
        other = _open_evaluation(config, form)
        evaluation = read_cells(other, kind, kind.in_sheet(config), render, free=free)
        files.append(evaluation)
    asked = turn if kind.turns else None
    if asked and render.rendered:  # some prompts are conversations: all of them become one
        rows = render.every(rows)
        evaluation = evaluation and render.every(evaluation)
    if evaluation is not None:
        if not free:
            check_labels(evaluation, labels)
        check_overlap(rows, evaluation)
    if (words := kind.words(labels)) is not None:
        labels = tuple(words.values())
        rows = replace_labels(rows, words)
        evaluation = None if evaluation is None else replace_labels(evaluation, words)
    repetitions = find_repetitions((rows, evaluation) if evaluation else (rows,))
    dropped = 0
    if evaluation is None:
        rows, evaluation, dropped = split_rows(rows, config.eval_fraction, config.seed)
    held = None
    if config.eval_every is not None or config.early_stopping is not None:
        rows, held = hold_out(rows, config.held_fraction, config.seed)
    template = None
    if kind.labelled and not labelled:
        _check_slots(labels)
        template = kind.template(labels)
    elif asked and not render.rendered:
        template = asked()
    return TaskData(
        labels=labels if labelled or SCORINGS.load(scoring).labelled else (),
        train=rows,
        eval=evaluation,
        held=held,
        dropped=dropped,
        form=form,
        prompt_template=template,
        scoring=scoring,
        chat=kind.conversations or asked is not None,
        repetitions=repetitions,
        notes=tuple(note for read in files for note in read.notes),
        left_out=tuple(read.left_out for read in files if read.left_out),
    )


def example_row(data: TaskData) -> tuple[str, str]:
    """The first training row as the model meets it: prompt and completion, or text and label of a classifier."""
    text, label = data.train.texts[0], data.train.labels[0]
    return (fill_text(data.prompt_template, text) if data.prompt_template else text), label


def _open(source: str, config: TrainConfig) -> Sheet:
    if not source:
        raise ConfigError("no training data is given", hint="add --data FILE", unchanged=UNCHANGED)
    return open_rows(source, config)


def open_rows(source: str, config: TrainConfig) -> Sheet:
    """A file as the settings read it.

    Raises:
        NotFoundError, ConfigError, DataError: As `open_sheet`.
    """
    reading = Reading.of(config, (FORMS, SCORINGS, *TRAINING), others=(config.data, config.eval_data))
    return with_known_columns(open_sheet(source, config.map, reading), config)


def _open_evaluation(config: TrainConfig, form: str) -> Sheet:
    sheet = _open(config.eval_data or "", config)
    if not load_form(form).labelled:  # whose readers say the same
        check_columns(sheet, config, form)
    return sheet


def _form_for(sheet: Sheet, config: TrainConfig, labelled: bool) -> str:
    """The form that is read; a classifier takes labelled texts, and what they lack is said by their reader."""
    if not labelled:
        return choose_form(sheet, config)
    if config.format == "auto":
        fitting = fitting_forms(sheet, config)
        own = [name for name in fitting if load_form(name).labelled]
        others = [name for name in fitting if load_form(name).answered and name not in own]
        if not others and not own:
            check_kind_of_columns(sheet.source, sheet.columns)
        form = (own or others or [labelled_form()])[0]
    else:
        form = config.format
    if not load_form(form).labelled:
        raise DataError(
            f"{sheet.source!r} has the form {form}, and a classifier learns only labelled texts",
            unchanged=UNCHANGED,
            hint=f"text to text is learnt in a bank of its own, made with --task-type {generating().name}",
        )
    return form


def _scoring(config: TrainConfig, form: str, labelled: bool) -> str:
    if labelled:
        return HEAD
    kind = load_form(form)
    if config.scoring == "auto":
        return kind.scoring
    if not kind.answered and not SCORINGS.load(config.scoring).measures:
        raise ConfigError(
            f"plain text has no answers, so --scoring {config.scoring} has nothing to compare",
            unchanged=UNCHANGED,
            hint=f"--scoring {kind.scoring}",
        )
    return config.scoring


def _check_settings(config: TrainConfig, form: str, scoring: str) -> Form:
    """Refuse settings that would do nothing, and a template that cannot work; gives the form with its settings."""
    kind, _ = chosen_form(config, form, scoring)
    kind.check(text_to_text=scoring != HEAD)
    if scoring == HEAD and config.scoring != "auto":
        raise ConfigError(
            "--scoring is for text to text, and this bank is for classification",
            unchanged=UNCHANGED,
            hint="leave out --scoring",
        )
    return kind


def _check_slots(labels: Sequence[str]) -> None:
    """Refuse a label that would be taken for a slot of the prompt template in which it stands."""
    for label in labels:
        if (slot := slot_in(label)) is not None:
            raise DataError(
                f"the label {label!r} spells a slot of the prompt template, {slot!r}",
                unchanged=UNCHANGED,
                hint="give it another word: --set label_words=LABEL=WORD,...",
            )


def _label_hint(form: Form) -> dict[str, str]:
    return {} if form.labelled else {"hint": f"completions that are not labels: --scoring {GENERATING}"}


def _no_chat(_: Sequence[Mapping[str, str]]) -> NoReturn:
    raise IncompatibleError(
        "the rows are conversations, and the base model has no chat template to write them with",
        unchanged=UNCHANGED,
        hint="bring prompt and completion columns, or use an instruct model: --base",
    )
