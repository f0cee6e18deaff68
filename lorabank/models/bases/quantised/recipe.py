"""How a base is kept in few bits, as text: ``QUANTISER`` or ``QUANTISER+CORRECTION``, each with settings or without.

Settings stand behind a colon, ``NAME:KEY=VALUE,...``. A bank records all of them, so what lorabank records has a colon
always. Without one it is the method of a checkpoint that was quantised by others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from lorabank.core.errors import ConfigError
from lorabank.core.methods import SET_REFUSED, values_of, with_settings
from lorabank.core.shelf import Shelf
from lorabank.core.shelves import CORRECTIONS, QUANTISERS

if TYPE_CHECKING:
    from lorabank.models.bases.quantised.base import Quantiser
    from lorabank.models.bases.quantised.corrections.base import Correction

_SETTINGS, _BESIDE = ":", "+"


class Recipe(NamedTuple):
    """What makes a quantised base of a float one."""

    quantiser: Quantiser
    correction: Correction | None = None


def read_recipe(text: str) -> Recipe:
    """The recipe that a text names, with its settings.

    Raises:
        ConfigError: There is no such quantiser or correction, or a setting does not fit it.
    """
    return Recipe(*(method for _, method in _parts(text)))


def in_full(text: str) -> str:
    """The same text with the value of every setting."""
    return _BESIDE.join(f"{name}{_SETTINGS}{_written(method)}" for name, method in _parts(text))


def is_ours(quantisation: str | None) -> bool:
    """Whether a bank records that lorabank quantises its base."""
    return quantisation is not None and _SETTINGS in quantisation


def _parts(text: str) -> list[tuple[str, Any]]:
    names = [part.strip() for part in text.split(_BESIDE)]
    if len(names) > 2:
        raise ConfigError(
            f"--quantise {text[:80]}: expected QUANTISER or QUANTISER+CORRECTION",
            hint="choose one correction",
            unchanged="nothing was changed",
        )
    try:
        return [_method(shelf, part) for shelf, part in zip((QUANTISERS, CORRECTIONS), names, strict=False)]
    except ConfigError as error:
        raise error.saying(f"--quantise {text[:80]}: {error.message.removeprefix(SET_REFUSED)}") from error


def _method(shelf: Shelf, text: str) -> tuple[str, Any]:
    name, _, given = text.partition(_SETTINGS)
    shelf.check(name)
    try:
        (method,) = with_settings([(shelf, name)], [one for one in given.split(",") if one], among=(shelf,))
    except ConfigError as error:
        usual = shelf.load(name)()
        known = ", ".join(values_of(usual))
        error.hint = (
            f"{name} has the settings {known}; its defaults, written out, are {name}{_SETTINGS}{_written(usual)}"
            if known
            else f"{name} has no settings: leave out what follows the colon"
        )
        raise
    return name, method


def _written(method: Any) -> str:
    values = values_of(method).items()
    return ",".join(f"{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in values)
