"""What learning did to the base's general skills: the perplexity of held-out text before and after."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from textwrap import wrap

import numpy as np
from numpy.typing import NDArray

from lorabank.bank.failures import reported
from lorabank.core.commands import Command
from lorabank.core.config import EvalConfig
from lorabank.core.errors import DataError, IncompatibleError, NotFoundError
from lorabank.core.limits import MAX_DECODED
from lorabank.core.observer import Observer
from lorabank.core.shelves import PERPLEXITY
from lorabank.core.task_kinds import task_kind
from lorabank.evaluation.paired import paired_test
from lorabank.evaluation.scoring import INVERSE_PERPLEXITY, Said, score_rows
from lorabank.models.bases.loading import resolve_device
from lorabank.models.mixing.runtime import Plan, Runtime
from lorabank.workflows.assemble import RuntimeSettings
from lorabank.workflows.open_bank import OpenBank
from lorabank.workflows.results import GeneralSkills
from lorabank.workflows.scored import Composed, make_subject, state_plan

_PIECE = 1000
"""Characters of a piece of text."""
_MOST = 4096
"""Tokens of a piece for a model that takes any number."""
_UNCHANGED = "nothing was computed"


def general_skills(
    opened: OpenBank, names: Sequence[str], file: str, config: EvalConfig, observer: Observer
) -> dict[str, GeneralSkills]:
    """The perplexity of a text without adapters, and with those that answer after the last task.

    Args:
        opened: The bank.
        names: ``"as-trained"`` (the state that the last training left) and compositions.
        file: A text in UTF-8; each paragraph is scored by itself, a long one in pieces.
        config: How it is scored.
        observer: Gets notices.

    Raises:
        IncompatibleError: The bank's base is a classifier, which has no perplexity.
        NotFoundError: There is no such file.
        DataError: It is not UTF-8, or no piece of it fits into the model.
    """
    snapshot = opened.refresh()
    if task_kind(snapshot.base.task_type).has_head:
        raise IncompatibleError(
            f"{snapshot.base.name} is an encoder with a head for each task: it has no perplexity of a text",
            hint="--text is for the bank of a language model",
            unchanged=_UNCHANGED,
        )
    texts = pieces(Path(file))
    settings, _ = plain_settings(opened, config)
    runtime = partial(opened.runtime, settings, observer.notice)
    before = _said(runtime(), texts, Plan(weights=np.zeros(len(runtime().stack.names), np.float32)), file)
    found = {}
    for name in names:
        plan = state_of(opened, name, runtime)(texts)
        found[name] = _compared(before, _said(runtime(), texts, plan, file), len(texts))
    return found


def plain_settings(opened: OpenBank, config: EvalConfig) -> tuple[RuntimeSettings, int]:
    """How a model answers that is asked about plain text, and how many tokens it takes."""
    limit = opened.base.load(device=resolve_device(config.device), dtype=config.dtype).max_length or _MOST
    plain = {"labels": (), "scoring": PERPLEXITY, "template": None, "settings": (), "max_length": limit}
    return RuntimeSettings(config.device, config.dtype, config.batch_size, asked=tuple(plain.items())), limit


def state_of(opened: OpenBank, name: str, runtime: Callable[[], Runtime]) -> Callable[[Sequence[str]], Plan]:
    """Gives the state in which a subject answers texts after the last task.

    Args:
        opened: The bank.
        name: ``"as-trained"`` (the state that the last training left) or a composition.
        runtime: The model.
    """
    bank, snapshot = opened.bank, opened.refresh()
    last = snapshot.tasks[-1]
    subject = make_subject(bank, snapshot, name, runtime, "task")
    if isinstance(subject, Composed):
        composer = subject.composer
        return lambda texts: composer.plan(last.position, texts)
    plan = state_plan(bank, snapshot.adapter_of(last.name), runtime())
    return lambda texts: plan


def pieces(path: Path) -> list[str]:
    """The paragraphs of a text, those of more than 1,000 characters cut at blanks.

    Raises:
        NotFoundError: There is no such file.
        DataError: It is empty, too large or not UTF-8.
    """
    if not path.is_file():
        raise NotFoundError(f"--text: no such file: {path}", unchanged=_UNCHANGED)
    if path.stat().st_size > MAX_DECODED:
        raise DataError(f"{path} is larger than {MAX_DECODED} bytes", unchanged=_UNCHANGED)
    with reported(path):
        data = path.read_bytes()
    try:
        lines = data.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start})", unchanged=_UNCHANGED) from error
    paragraphs = "\n".join(line.strip() for line in lines).split("\n\n")
    found = [piece for one in paragraphs for piece in wrap(" ".join(one.split()), _PIECE, break_on_hyphens=False)]
    if not found:
        raise DataError(f"{path} holds no text", unchanged=_UNCHANGED)
    return found


def _said(
    runtime: Runtime, texts: Sequence[str], plan: Plan, file: str
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    likelihoods, tokens = runtime.log_likelihoods([""] * len(texts), texts, plan, 0)
    if not tokens.any():
        raise DataError(
            f"no piece of {file} fits into the model", commands=[Command("eval", "--help")], unchanged=_UNCHANGED
        )
    return likelihoods, tokens


def _compared(
    before: tuple[NDArray[np.float64], NDArray[np.int64]],
    after: tuple[NDArray[np.float64], NDArray[np.int64]],
    count: int,
) -> GeneralSkills:
    tokens = before[1]
    fits = tokens > 0
    scores = [
        score_rows(INVERSE_PERPLEXITY, Said((), log_likelihoods=likelihoods[fits], tokens=tokens[fits]), ())
        for likelihoods in (before[0], after[0])
    ]
    return GeneralSkills(
        before=scores[0].detail[PERPLEXITY],
        after=scores[1].detail[PERPLEXITY],
        change=paired_test([scores[1].rows - scores[0].rows]),
        tokens=int(tokens.sum()),
        left_out=count - int(fits.sum()),
    )
