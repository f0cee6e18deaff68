"""What is on the shelves: each method with its paper and its settings, as `lorabank methods` shows them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, is_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from lorabank.core.commands import Command
from lorabank.core.errors import ConfigError, joined
from lorabank.core.settings import ANY, choices, examine, nearest, setting_fields, setting_names, shown
from lorabank.core.shelf import Shelf
from lorabank.core.shelves import SHELVES

SET_REFUSED = "--set: "
"""With which the message begins where settings do not fit the chosen methods."""

WEIGHTS_REFUSED = "--weights: "
"""The same of the setting that has an option of its own."""


_SIGNS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@dataclass(frozen=True)
class MethodSetting:
    """One setting of a method.

    Attributes:
        name: What ``--set NAME=VALUE`` calls it.
        type: What a value is, in words: ``"float"``, ``"int or none"``, or the words it may be.
        default: Its value where none is given.
        help: What it does.
        bounds: ``ge``, ``gt``, ``le``, ``lt`` to the bound.
    """

    name: str
    type: str
    default: Any
    help: str
    bounds: dict[str, float]

    @property
    def limits(self) -> list[str]:
        """Its bounds for people: ``["> 0", "<= 1"]``."""
        return [f"{_SIGNS[name]} {bound:g}" for name, bound in self.bounds.items()]


@dataclass(frozen=True)
class Method:
    """One entry of a shelf.

    Attributes:
        family: The shelf: ``"strategy"``, ``"penalty"``, ...
        name: Its name there.
        about: The first sentence of its docstring; empty where it has none of its own.
        paper: Where it was published, None for what has no paper.
        settings: Its own settings.
        refused: What it cannot be used with, each in a sentence; of a method that is not offered, why.
        chosen: The command and the option that choose it; empty where nothing has to be chosen.
        offered: Whether it is on a shelf, and not only known by name.
    """

    family: str
    name: str
    about: str
    paper: str | None
    settings: tuple[MethodSetting, ...]
    refused: tuple[str, ...]
    chosen: str = ""
    offered: bool = True


def with_settings(
    chosen: Sequence[tuple[Shelf, str]],
    given: Sequence[str],
    *,
    among: Sequence[Shelf] | None = None,
    besides: Sequence[Shelf] = (),
) -> list[Any]:
    """The chosen methods, each with its settings: an entry of a shelf is a frozen dataclass of its own settings.

    Args:
        chosen: Shelves with a name on each.
        given: ``KEY=VALUE``, for each method that has the setting, or ``METHOD.KEY=VALUE``, for the method of this
            name where it is among the chosen; elsewhere it says nothing. A METHOD ``*`` is any of the chosen ones.
            A text is taken as it stands behind the sign, blanks included.
        among: The shelves on which a METHOD can be; default: all.
        besides: Shelves whose methods are chosen elsewhere: what is a setting of one of them is judged there.

    Returns:
        An instance of each, in order; a class without settings is called without arguments.

    Raises:
        ConfigError: Naming all that is wrong: what is not ``KEY=VALUE``, keys that no chosen method has, or not the
            METHOD that they name, values out of bounds, names that are on no shelf.
    """
    entries = [shelf.load(name) for shelf, name in chosen]
    found: list[dict[str, str]] = [{} for _ in chosen]
    problems = []
    for text in given:
        key, sign, value = text.partition("=")
        owner, _, own = key.strip().rpartition(".")
        if not sign or not own:
            problems.append(f"{shown(text)} is not KEY=VALUE")
            continue
        takers = [k for k, (_, name) in enumerate(chosen) if owner in ("", ANY, name) and own in _own(entries[k])]
        for k in takers:
            found[k][own] = value if _free_text(entries[k], own) else value.strip()
        if not takers and owner != ANY and not has_setting(besides, owner, own):
            problems += _not_taken(key.strip(), chosen, among or SHELVES)
    made = []
    for (shelf, name), entry, own_values in zip(chosen, entries, found, strict=True):
        if not is_dataclass(entry) or not own_values:  # checking nothing would cost more than all else here
            made.append(entry() if isinstance(entry, type) else entry)
            continue
        examined = examine(entry, own_values)
        problems += [f"{shelf.kind} {name}: {problem}" for problem in examined.problems]
        made.append(examined.config)
    if problems:
        names = dict.fromkeys(name for _, name in chosen)
        raise ConfigError(
            f"{SET_REFUSED}{joined(problems)}",
            commands=[Command("methods", name) for name in names] or [Command("methods")],
            unchanged="nothing was changed",
        )
    return made


def _not_taken(key: str, chosen: Sequence[tuple[Shelf, str]], shelves: Sequence[Shelf]) -> list[str]:
    """What is wrong with a ``KEY`` or ``METHOD.KEY`` that no chosen method takes; nothing where another one would."""
    owner, _, own = key.rpartition(".")
    meant = [(shelf, name) for shelf, name in chosen if owner in ("", name)]
    meant = meant or [(shelf, owner) for shelf in shelves if owner in shelf]
    if not meant and not owner:
        return [f"no chosen method has a setting {shown(own)}"]
    if not meant:
        elsewhere = any(owner in shelf for shelf in SHELVES)
        kinds = _listed(list(dict.fromkeys(shelf.kind for shelf in shelves)), "or") if elsewhere else "method"
        return [f"{shown(key)[1:-1]}: there is no {kinds} {shown(owner)}"]
    known = [one for shelf, name in meant for one in _own(shelf.load(name))]
    if own in known:
        return []
    whose = _listed([f"{shelf.kind} {name}" for shelf, name in meant], "and")
    problem = f"{whose}: there is no setting {shown(own)}"
    if having := [f"{shelf.kind} {name}" for shelf in shelves for name, entry in shelf.items() if own in _own(entry)]:
        return [f"{problem}, which is one of {_listed(having, 'and')}"]
    return [problem + nearest(own, known)]


def _listed(words: Sequence[str], last: str) -> str:
    *others, final = words
    return f"{', '.join(others)} {last} {final}" if others else final


def own_settings(shelf: Shelf, name: str, given: Sequence[str]) -> tuple[str, ...]:
    """Those of some ``KEY=VALUE`` that are settings of one method, under their own names; the rest is of others."""
    known, found = _own(shelf.load(name)), []
    for text in given:
        key, _, value = text.partition("=")
        owner, _, own = key.strip().rpartition(".")
        if owner in ("", ANY, name) and own in known:
            found.append(f"{own}={value}")
    return tuple(found)


def values_of(method: Any) -> dict[str, Any]:
    """The settings of a method, each with its value."""
    return {name: getattr(method, name) for name in _own(method)}


def changed_settings(shelf: Shelf, name: str, method: Any) -> tuple[str, ...]:
    """``KEY=VALUE`` of each setting that is not at its default.

    Args:
        shelf: A shelf.
        name: A name on it.
        method: The method of this name, with its settings.
    """
    entry = shelf.load(name)
    usual = {one.name: one.default for one in setting_fields(method)} if isinstance(entry, type) else values_of(entry)
    return tuple(f"{key}={value}" for key, value in values_of(method).items() if value != usual[key])


def has_setting(shelves: Sequence[Shelf], owner: str, own: str) -> bool:
    """Whether a method of some shelves has a setting: one called ``owner``, or any where that is empty or ``*``."""
    names = ((shelf, name) for shelf in shelves for name in shelf if owner in ("", ANY, name))
    return any(own in _own(shelf.load(name)) for shelf, name in names)


def _own(entry: Any) -> tuple[str, ...]:
    return setting_names(entry) if is_dataclass(entry) else ()


def _free_text(entry: Any, own: str) -> bool:
    """Whether a setting is a text that may begin or end with blanks, which mean something then."""
    field = next(one for one in setting_fields(entry) if one.name == own)
    hints = get_type_hints(entry if isinstance(entry, type) else type(entry))
    return hints[own] in (str, str | None) and field.metadata["among"] is None


def methods(name: str | None = None) -> tuple[Method, ...]:
    """Every entry of every shelf and then what is not offered, or the entries of one name (a penalty and a strategy).

    The entries are imported, and torch with them.

    Raises:
        ConfigError: No shelf has an entry of this name; says why it is not offered, or proposes the nearest name.
    """
    if name is not None and not any(name in shelf for shelf in SHELVES):
        known = list(dict.fromkeys(entry for shelf in SHELVES for entry in shelf))
        reason = next((found for shelf in SHELVES if (found := shelf.reason(name))), None)
        raise ConfigError(
            f"there is no method {name[:80]!r}" + (f": {reason}" if reason else nearest(name, known)),
            commands=[Command("methods")],
            unchanged="nothing was changed",
        )
    return tuple(_methods(name))


def _methods(name: str | None) -> Iterator[Method]:
    for shelf in SHELVES:
        for known in shelf:
            if name in (None, known):
                yield described(shelf, known)
    if name is None:
        for shelf in SHELVES:
            for known, reason in shelf.refused.items():
                yield Method(shelf.kind, known, "", None, (), (reason,), offered=False)


def described(shelf: Shelf, name: str) -> Method:
    """One entry of a shelf, which is imported."""
    entry = shelf.load(name)
    made = entry() if isinstance(entry, type) and is_dataclass(entry) else entry
    return Method(
        family=shelf.kind,
        name=name,
        about=_about(entry),
        paper=getattr(entry, "paper", None),
        settings=settings(entry),
        refused=tuple(getattr(made, "refused", ())),
        chosen=shelf.chosen.format(name=name),
    )


def _about(entry: Any) -> str:
    """What an entry says of itself, or the first paragraph of its docstring; an instance has none of its own."""
    if own := getattr(entry, "about", ""):
        return str(own)
    if not isinstance(entry, type) and not inspect.isfunction(entry):
        return ""
    return " ".join(inspect.cleandoc(entry.__doc__ or "").split("\n\n")[0].split())


def settings(entry: Any) -> tuple[MethodSetting, ...]:
    """The settings of an entry, or of a settings class; none of what is not a dataclass."""
    return tuple(_settings(entry)) if is_dataclass(entry) else ()


def _settings(entry: Any) -> Iterator[MethodSetting]:
    hints = get_type_hints(entry if isinstance(entry, type) else type(entry))
    for one in setting_fields(entry):
        words = choices(one)
        yield MethodSetting(
            name=one.name,
            type=" or ".join(words) if words else _words(hints[one.name]),
            default=one.default if isinstance(entry, type) else getattr(entry, one.name),
            help=one.metadata["help"],
            bounds=dict(one.metadata["bounds"]),
        )


def _words(hint: Any) -> str:
    """A type as users write it."""
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_words(one) for one in get_args(hint))
    return "none" if hint is type(None) else getattr(hint, "__name__", str(hint))
