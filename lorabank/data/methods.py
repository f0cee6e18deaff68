"""The methods that read a task's rows and ask for their answers, each with its own settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lorabank.core.config import TrainConfig
from lorabank.core.methods import has_setting, own_settings, with_settings
from lorabank.core.settings import modern
from lorabank.core.shelf import Shelf
from lorabank.core.shelves import FORMATS, FORMS, OPTIMIZERS, ROWS, SCORINGS, TRAINING
from lorabank.core.task_kinds import HEAD

if TYPE_CHECKING:
    from lorabank.data.forms.base import Form


CHAT = "chat_template"
"""Where an adapter's record says whether its prompts stand in the base's chat template: ``auto``, else ``none``.

A setting had this name before it was one of the forms; a record without it is of bare prompts.
"""


def in_chat_template(config: Mapping[str, Any]) -> bool:
    """Whether a task's prompts stand in the base's chat template.

    Args:
        config: `AdapterRecord.config`, of any version.
    """
    form = config.get("format", "")
    return config.get(CHAT, "none") != "none" or (form in FORMS and FORMS.load(form).conversations)


def chosen_form(config: TrainConfig, form: str, scoring: str) -> tuple[Form, Any]:
    """The form of a task's rows and their scoring (`lorabank.models.answering.scorings.base`), with their settings.

    Args:
        config: ``set`` is read.
        form: A name on the shelf of forms.
        scoring: ``HEAD``, or a name on the shelf of scorings.

    Returns:
        Both; the scoring is None for ``HEAD``.

    Raises:
        ConfigError: ``--set`` does not fit the methods; names all that is wrong.
    """
    chosen = [(FORMS, form)] if scoring == HEAD else [(FORMS, form), (SCORINGS, scoring)]
    found = with_settings(chosen, config.set, among=(FORMS, SCORINGS), besides=(FORMATS, *TRAINING))
    return found[0], found[1] if len(found) > 1 else None


def recorded_scoring(config: Mapping[str, Any]) -> Any:
    """The scoring of a language model's task, with its settings, as the record of the task's adapter has them.

    Args:
        config: `AdapterRecord.config`, of any version.

    Raises:
        ConfigError: No installed package has the scoring, or its settings are not what it takes.
    """
    name = config["scoring"]
    settings = {key: value for key, value in config.items() if key != CHAT}
    given = own_settings(SCORINGS, name, modern(TrainConfig, settings)[0].get("set", ()))
    return with_settings([(SCORINGS, name)], given)[0]


def without_format(given: Sequence[str]) -> tuple[str, ...]:
    """Those of ``--set`` that still mean something where the rows lie in a file of another format.

    Args:
        given: ``KEY=VALUE`` or ``METHOD.KEY=VALUE``.
    """
    return _without((FORMATS,), (FORMS, SCORINGS, *TRAINING), given)


def of_training(given: Sequence[str]) -> tuple[str, ...]:
    """Those of ``--set`` that do not only say what the rows are and how they are asked."""
    return _without(ROWS, TRAINING, given)


def of_optimizers(text: str) -> bool:
    """Whether one of ``--set`` is a setting of an optimizer."""
    owner, _, own = text.partition("=")[0].strip().rpartition(".")
    return has_setting([OPTIMIZERS], owner, own)


def _without(shelves: Sequence[Shelf], others: Sequence[Shelf], given: Sequence[str]) -> tuple[str, ...]:
    """Those that are settings of the other shelves too, or of none."""
    kept = []
    for text in given:
        owner, _, own = text.partition("=")[0].strip().rpartition(".")
        if has_setting(others, owner, own) or not has_setting(shelves, owner, own):
            kept.append(text)
    return tuple(kept)
