"""The methods that read a task's rows and ask for their answers, each with its own settings."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lorabank.core.methods import with_settings
from lorabank.core.shelves import FORMATS, FORMS, SCORINGS, TRAINING
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
