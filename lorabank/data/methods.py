"""The methods that read a task's rows and ask for their answers, each with its own settings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorabank.core.methods import has_setting, with_settings
from lorabank.core.shelves import FORMATS, FORMS, ROWS, SCORINGS, TRAINING, Shelf
from lorabank.core.task_kinds import HEAD

if TYPE_CHECKING:
    from lorabank.core.config import TrainConfig
    from lorabank.data.forms.base import Form


def chosen_form(config: TrainConfig, form: str, scoring: str) -> Form:
    """The form of a task's rows with its settings; those of its scoring are checked too.

    Args:
        config: ``set`` is read.
        form: A name on the shelf of forms.
        scoring: ``HEAD``, or a name on the shelf of scorings.

    Raises:
        ConfigError: ``--set`` does not fit the methods; names all that is wrong.
    """
    chosen = [(FORMS, form)] if scoring == HEAD else [(FORMS, form), (SCORINGS, scoring)]
    found: Form = with_settings(chosen, config.set, among=(FORMS, SCORINGS), besides=(FORMATS, *TRAINING))[0]
    return found


def without_format(given: Sequence[str]) -> tuple[str, ...]:
    """Those of ``--set`` that still mean something where the rows lie in a file of another format.

    Args:
        given: ``KEY=VALUE`` or ``METHOD.KEY=VALUE``.
    """
    return _without((FORMATS,), (FORMS, SCORINGS, *TRAINING), given)


def of_training(given: Sequence[str]) -> tuple[str, ...]:
    """Those of ``--set`` that do not only say what the rows are and how they are asked."""
    return _without(ROWS, TRAINING, given)


def _without(shelves: Sequence[Shelf], others: Sequence[Shelf], given: Sequence[str]) -> tuple[str, ...]:
    """Those that are settings of the other shelves too, or of none."""
    kept = []
    for text in given:
        owner, _, own = text.partition("=")[0].strip().rpartition(".")
        if has_setting(others, owner, own) or not has_setting(shelves, owner, own):
            kept.append(text)
    return tuple(kept)
