"""Answers to new texts: labels, generated text, and files of rows with both. These are functions of `lorabank.api`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, TypeVar, cast

from lorabank.core.arguments import checked
from lorabank.core.config import GenerateConfig, PredictConfig
from lorabank.core.observer import Observer, SilentObserver

if TYPE_CHECKING:
    from lorabank.workflows.asking.answer_rows import AnsweredRows
    from lorabank.workflows.results import AnswersFile, Prediction

_SILENT = SilentObserver()

P = ParamSpec("P")
R = TypeVar("R")


def _texts_in_settings(function: Callable[P, R]) -> Callable[P, R]:
    """Take ``function(path, PredictConfig(texts=...))`` too, with a warning: texts are an argument of their own."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        config = args[1] if len(args) == 2 else kwargs.get("config")
        texts = getattr(config, "given_texts", None)
        if texts is None or "texts" in kwargs:
            return function(*args, **kwargs)
        better = f"api.{function.__name__}(path, texts, config)"
        warnings.warn(f"texts are no setting of {type(config).__name__}: call {better}", DeprecationWarning, 2)
        moved: dict[str, Any] = {**kwargs, "texts": texts, "config": config}
        return cast("Callable[..., R]", function)(*args[:1], **moved)

    return call


@_texts_in_settings
@checked
def predict(
    path: str | Path,
    texts: Iterable[str] | None = None,
    config: PredictConfig = PredictConfig(),
    *,
    observer: Observer = _SILENT,
) -> tuple[Prediction, ...]:
    """Label texts with a composition, or with the state as trained for a task that is named.

    Args:
        path: The bank's folder.
        texts: The texts, in a list or anything else with strings one after the other; those of ``config.data``, a
            file, come behind them.
        config: Who answers.
        observer: Gets notices.

    Raises:
        ConfigError: There is no text, or nobody says who answers.
        NotFoundError: There is no bank, no such task or composition, or no file.
    """
    from lorabank.workflows.asking.predict import predict as run
    from lorabank.workflows.open_bank import OpenBank

    return run(OpenBank(path), texts or (), config, observer)


@_texts_in_settings
@checked
def generate(
    path: str | Path,
    texts: Iterable[str] | None = None,
    config: GenerateConfig = GenerateConfig(),
    *,
    observer: Observer = _SILENT,
) -> tuple[Prediction, ...]:
    """Let a language model answer prompts with a composition, or as trained for a task that is named.

    Args:
        path: The bank's folder.
        texts: The prompts, as those of `predict`.
        config: Who answers, and how.
        observer: Gets notices.

    Raises:
        ConfigError: There is no prompt, or nobody says who answers.
        IncompatibleError: The bank's base is a classifier.
        NotFoundError: There is no bank, no such task or composition, or no file.
    """
    from lorabank.workflows.asking.predict import generate as run
    from lorabank.workflows.open_bank import OpenBank

    return run(OpenBank(path), texts or (), config, observer)


@checked
def answer_rows(
    path: str | Path,
    texts: Iterable[str] | None = None,
    config: PredictConfig | GenerateConfig = PredictConfig(),
    *,
    observer: Observer = _SILENT,
) -> AnsweredRows:
    """Answer the rows of a file and keep all that they hold: what `answer_file` writes, a part at a time.

    Args:
        path: The bank's folder.
        texts: Texts, or `config.data` names a file of rows.
        config: Who labels them, or with `GenerateConfig` who generates.
        observer: Gets notices and progress.

    Returns:
        The columns, and an iterator over parts of the rows, which are computed while they are taken.
    """
    from lorabank.workflows.asking.answer_rows import answer_rows as run
    from lorabank.workflows.open_bank import OpenBank

    return run(OpenBank(path), texts or (), config, observer)


@checked
def answer_file(
    path: str | Path,
    target: str | Path,
    texts: Iterable[str] | None = None,
    config: PredictConfig | GenerateConfig = PredictConfig(),
    *,
    format: Literal["jsonl", "csv", "tsv", "parquet"] | None = None,
    overwrite: bool = False,
    observer: Observer = _SILENT,
) -> AnswersFile:
    """Write the rows of a file with their answers: all columns, a row number, the answer, its task and its margin.

    Args:
        path: The bank's folder.
        target: The file, which appears whole or not at all.
        texts: Texts, or `config.data` names a file of rows.
        config: Who labels them, or with `GenerateConfig` who generates; with ``skip_bad`` bad rows are kept without an
            answer, and a column says why.
        format: Default: by the ending of ``target``.
        overwrite: Replace a file that is there.
        observer: Gets notices and progress.

    Raises:
        ExistsError: There is such a file.
        ConfigError: There is no text, or nobody says who answers.
        DataError: Rows are bad and not to be skipped.
    """
    from lorabank.workflows.asking.answer_rows import answer_file as run
    from lorabank.workflows.open_bank import OpenBank

    target = Path(target)
    return run(OpenBank(path), target, texts or (), config, form=format, overwrite=overwrite, observer=observer)
