"""The settings of a training as a form, made of the fields of `TrainConfig` and of the chosen methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, dataclass, is_dataclass
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from lorabank.core.config import TrainConfig
from lorabank.core.errors import LorabankError
from lorabank.core.methods import settings
from lorabank.core.settings import choices, examine, sections, setting_fields
from lorabank.core.shelf import Shelf
from lorabank.core.shelves import (
    EVERY_VARIANT,
    FORMS,
    OPTIMIZERS,
    PENALTIES,
    SAVINGS,
    SCORINGS,
    STARTS,
    STRATEGIES,
)
from lorabank.page.errors import sentence

LEFT_OUT = ("data", "report_to")
"""Settings without a field: the rows are chosen before, and trackers are the operator's."""

_OWN = "set:"
"""Before METHOD.KEY in the name of a field of a method's own setting."""
_SENT = "sent"
"""A field of every form that was filled in: a box that is not ticked is not sent, and means no."""

Kind = Literal["box", "number", "text", "choice", "lines"]


class Control(NamedTuple):
    """One field of the form.

    Attributes:
        name: The name of its value.
        label: The option of the command line, or METHOD.KEY.
        help: What the setting does.
        kind: How it is entered; ``"lines"`` is a value a line.
        value: What stands in it; of a box ``"on"`` or nothing.
        usual: What is taken where nothing stands in it, in words.
        choices: Of a choice, with ``""`` for the default that none of them is.
        attributes: Bounds and step of a number, by the names that HTML has for them.
        wrong: Whether its value does not fit.
    """

    name: str
    label: str
    help: str
    kind: Kind
    value: str
    usual: str = ""
    choices: tuple[str, ...] = ()
    attributes: Mapping[str, str] = {}
    wrong: bool = False


@dataclass(frozen=True)
class Filled:
    """A form that was filled in, as far as it could be read.

    Attributes:
        config: The settings; defaults in the place of values that do not fit.
        sections: Title to controls.
        problems: What does not fit.
    """

    config: TrainConfig
    sections: Mapping[str, Sequence[Control]]
    problems: tuple[str, ...] = ()


def filled(data: str, form: Mapping[str, str], *, rows: str | None = None) -> Filled:
    """The settings of a form that was sent, and the form as it is shown again.

    Args:
        data: The training rows.
        form: Its fields; without any the defaults are taken.
        rows: The form of the rows, where it is known: its own settings are asked for too.
    """
    sent = bool(form.get(_SENT))
    hints = get_type_hints(TrainConfig)
    fields = {one.name: one for one in setting_fields(TrainConfig) if one.name not in LEFT_OUT}
    values: dict[str, Any] = {}
    for name in fields:
        text = form.get(name, "")
        if hints[name] is bool:
            if sent:
                values[name] = text == "on"
        elif get_origin(hints[name]) is tuple:
            values[name] = tuple(line for line in text.splitlines() if line.strip())
        elif text.strip():
            values[name] = text.strip()
    own = {name.removeprefix(_OWN): text for name, text in form.items() if name.startswith(_OWN)}
    first = examine(TrainConfig, values | {"data": data})
    asked = _own_controls(first.config, own, rows)
    values["set"] += tuple(f"{one.label}={one.value}" for one in asked if one.value not in ("", one.usual))
    found = examine(TrainConfig, values | {"data": data})
    shown: dict[str, Sequence[Control]] = {
        title: [
            _control(fields[name], hints[name], form.get(name), sent=sent, wrong=name in found.wrong)
            for name in names
            if name in fields
        ]
        for title, names in sections(TrainConfig, LEFT_OUT).items()
    }
    if asked:
        shown["Settings of the chosen methods"] = asked
    return Filled(found.config, shown, (*found.problems, *_refused(found.config, found.problems)))


def files_of(config: TrainConfig) -> list[str]:
    """The files that settings of the chosen methods' own name; none where these settings do not fit."""
    from lorabank.training.methods import chosen_methods

    try:
        chosen = chosen_methods(config)
    except LorabankError:  # a problem of the form
        return []
    every = (chosen.strategy, chosen.variant, chosen.start, chosen.optimizer, chosen.penalty, *chosen.savings)
    own = [(one, field) for one in every if is_dataclass(one) for field in setting_fields(one)]
    return [value for one, field in own if field.metadata["file"] and (value := getattr(one, field.name)) is not None]


def _control(field: Field[Any], hint: Any, given: str | None, *, sent: bool, wrong: bool) -> Control:
    dashed, default = field.name.replace("_", "-"), field.default
    several = get_origin(hint) is tuple
    label, help = f"--{dashed.removesuffix('s') if several else dashed}", field.metadata["help"]
    if hint is bool:
        on = given == "on" if sent else bool(default)
        return Control(field.name, label, help, "box", "on" if on else "", wrong=wrong)
    usual = "" if default is None or several else str(default)
    if several:
        return Control(field.name, label, help, "lines", given or "", wrong=wrong)
    words = choices(field) or (list(get_args(hint)) if get_origin(hint) is Literal else None)
    if words is not None:
        listed = tuple(dict.fromkeys([*([] if default in words else [""]), *words]))
        return Control(field.name, label, help, "choice", given or usual, usual, listed, wrong=wrong)
    bounds = _attributes(field.metadata["bounds"], hint)
    kind: Kind = "number" if bounds is not None else "text"
    return Control(
        field.name, label, help, kind, given if given is not None else usual, usual, (), bounds or {}, wrong
    )


def _attributes(bounds: Mapping[str, Any], hint: Any) -> dict[str, str] | None:
    """What HTML is told of a number's bounds; None for what is not a number. A bound that is left out is not said."""
    kinds = {hint, *get_args(hint)}
    if not kinds & {int, float}:
        return None
    edges = {"min": bounds.get("ge"), "max": bounds.get("le")}
    found = {
        name: f"{edge:g}" if isinstance(edge, float) else str(edge) for name, edge in edges.items() if edge is not None
    }
    return found | {"step": "1" if int in kinds else "any"}


def _own_controls(config: TrainConfig, given: Mapping[str, str], rows: str | None) -> list[Control]:
    """A control for each setting of the chosen methods' own."""
    chosen: list[tuple[Shelf, str]] = [
        (STRATEGIES, config.strategy),
        (EVERY_VARIANT.of(config.variant), config.variant),
    ]
    chosen += [(STARTS, config.start), *((SAVINGS, one) for one in config.savings), (OPTIMIZERS, config.optimizer)]
    penalty = config.penalty or STRATEGIES.load(config.strategy).penalty
    if penalty is not None and penalty in PENALTIES:
        chosen.append((PENALTIES, penalty))
    if rows is not None and rows in FORMS:
        chosen.append((FORMS, rows))
    chosen += [(SCORINGS, config.scoring)] if config.scoring in SCORINGS else []
    found: dict[str, Control] = {}
    for shelf, name in chosen:
        for one in settings(shelf.load(name)):
            key, usual = f"{name}.{one.name}", "" if one.default in (None, ()) else str(one.default)
            help = f"{one.help} ({', '.join([one.type, *one.limits])})"
            found[key] = Control(f"{_OWN}{key}", key, help, "text", given.get(key, usual), usual)
    return list(found.values())


def _refused(config: TrainConfig, problems: Sequence[str]) -> list[str]:
    """Why the chosen methods do not go together; it is asked where each setting fits by itself."""
    from lorabank.training.methods import check_here

    if problems:
        return []
    try:
        check_here(config)
    except LorabankError as error:
        return [sentence(error)]
    return []
