"""Answers beside the rows that were asked, a part at a time: to a caller, or into a file that appears whole."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lorabank.core.config import GenerateConfig, PredictConfig
from lorabank.core.errors import ConfigError
from lorabank.core.observer import Observer
from lorabank.data.asked import AskedRows, given_rows, read_asked
from lorabank.data.formats.readers import Reading
from lorabank.data.row_files import form_of, row_writer
from lorabank.exchange.safe_folders import check_new_file, new_file
from lorabank.workflows.asking.predict import Answerer, answerer, checked_texts
from lorabank.workflows.asking.questions import BadText
from lorabank.workflows.open_bank import OpenBank
from lorabank.workflows.results import AnswersFile, Prediction

PART = 4096
"""Rows that are answered and written at a time."""

Row = tuple[object, ...]


@dataclass(frozen=True)
class AnsweredRows:
    """Rows with what they hold and their answers.

    Attributes:
        columns: The columns of the file in their order, then those of the answers.
        parts: The rows, computed while they are taken, a part at a time.
        asked: What was asked.
    """

    columns: tuple[str, ...]
    parts: Iterator[list[Row]]
    asked: AskedRows


def answer_rows(
    opened: OpenBank, texts: Iterable[str], config: PredictConfig | GenerateConfig, observer: Observer
) -> AnsweredRows:
    """Read everything that is asked, and begin to answer.

    Raises:
        ConfigError: There is no text, or there are texts beside a file; as `predict`.
        DataError: As `read_asked`.
    """
    asked = _asked(checked_texts(texts), config)
    for line in (*asked.notes, *([str(asked.bad)] if asked.bad else [])):
        observer.notice(line)
    opened.refresh()
    ask = answerer(opened, config, observer)
    names = ["row", *_kinds(config), *(["problem"] if config.skip_bad else [])]
    columns = [*asked.columns]
    for name in names:
        while name in columns:
            name = f"lorabank_{name}"
        columns.append(name)
    return AnsweredRows(tuple(columns), _parts(asked, ask, config, observer), asked)


def answer_file(
    opened: OpenBank,
    target: Path,
    texts: Iterable[str],
    config: PredictConfig | GenerateConfig,
    *,
    form: str | None,
    overwrite: bool,
    observer: Observer,
) -> AnswersFile:
    """Write what `answer_rows` gives; the file appears whole or not at all.

    Raises:
        ExistsError: The file is there and ``overwrite`` is off.
        ConfigError: Its name ends in no known form, it lies in the bank or is the file that is read.
    """
    chosen = form_of(target, form)
    check_new_file(target, opened.bank.path, overwrite=overwrite, read=config.data)
    answered = answer_rows(opened, texts, config, observer)
    asked = answered.asked
    empty: Row = (None,) * len(asked.columns)
    cells = [row or empty for row in asked.cells]
    like: dict[str, Sequence[object]] = {name: [row[i] for row in cells] for i, name in enumerate(asked.columns)}
    own = {"row": (1,), "probability": (0.5,), "margin": (0.5,)}
    for name in answered.columns[len(asked.columns) :]:
        like[name] = own.get(name.rpartition("lorabank_")[2], ("",))
    answers, task = 0, len(asked.columns) + 1 + _kinds(config).index("task")
    with new_file(target) as file, row_writer(chosen, file, answered.columns, like) as write:
        for part in answered.parts:
            write(part)
            answers += sum(row[task] is not None for row in part)
    return AnswersFile(str(target), chosen, len(asked.texts), answers, asked.notes, asked.bad)


def _kinds(config: PredictConfig | GenerateConfig) -> tuple[str, ...]:
    if isinstance(config, GenerateConfig):
        return ("answer", "task", "margin")
    return ("predicted_label", "probability", "task", "margin")


def answer_cells(answer: Prediction | None, config: PredictConfig | GenerateConfig) -> Row:
    """The columns of an answer, empty where there is none."""
    if answer is None:
        return (None,) * len(_kinds(config))
    margin = getattr(answer, "margin", None)
    if isinstance(config, GenerateConfig):
        return (answer.label, answer.task, margin)
    return (answer.label, answer.probability, answer.task, margin)


def _asked(texts: Sequence[str], config: PredictConfig | GenerateConfig) -> AskedRows:
    if config.data and texts:
        raise ConfigError(
            "answers beside the rows of --data cannot hold other texts",
            hint="give the texts in a call of their own",
            unchanged="nothing was written",
        )
    if config.data:
        return read_asked(config.data, config.text_column, Reading.of(config))
    if not texts:
        raise ConfigError(
            "there is no text to answer", hint="name a file of them: --data FILE", unchanged="nothing was changed"
        )
    return given_rows(texts)


def _answers(
    asked: AskedRows, rows: Iterable[int], ask: Answerer, problems: dict[int, str], *, skip_bad: bool
) -> dict[int, Prediction]:
    """The answers to some rows; ``problems`` gets what is wrong with texts that cannot be asked.

    Raises:
        DataError: There is such a text, and it is not to be skipped.
    """
    good = [(row, text) for row in rows if (text := asked.texts[row]) is not None]
    while good:
        try:
            numbers, texts = [row for row, _ in good], [text for _, text in good]
            return dict(zip(numbers, ask(texts, numbers), strict=True))
        except BadText as error:
            row, _ = good.pop(error.place - 1)
            if not skip_bad:
                raise error.saying(f"row {row + 1}: {error.problem}") from error
            problems[row] = error.problem
    return {}


def _parts(
    asked: AskedRows, ask: Answerer, config: PredictConfig | GenerateConfig, observer: Observer
) -> Iterator[list[Row]]:
    empty: Row = (None,) * len(asked.columns)
    observer.start("answering", len(asked.texts))
    try:
        for start in range(0, len(asked.texts), PART):
            rows = range(start, min(start + PART, len(asked.texts)))
            problems = {row: problem for row in rows if (problem := asked.problems[row]) is not None}
            answers = _answers(asked, rows, ask, problems, skip_bad=config.skip_bad)
            yield [
                (
                    *(asked.cells[row] or empty),
                    row + 1,
                    *answer_cells(answers.get(row), config),
                    *((problems.get(row),) if config.skip_bad else ()),
                )
                for row in rows
            ]
            observer.advance(rows.stop, {})
    finally:
        observer.finish()
