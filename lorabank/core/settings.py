"""Settings as the fields of a frozen dataclass: each has a type, a default, a help text and bounds.

A method's settings stand beside its mathematics, as a dataclass whose fields are made by `setting`; the settings of a
use case stand in `lorabank.core.config`. The command line, TOML files and Python give loose values; `validate` turns
them into the dataclass (pydantic, imported only when a command runs) and reports unknown keys, types, bounds and
numbers that are not finite, all at once. Importing this module loads only the standard library.

A setting may have had another name. A class made by `renamed` takes it, with a notice that says what to write;
`modern` gives its values their present names. A setting that became one of a method's own goes into ``set``: as
``METHOD.KEY=VALUE``, as ``*.KEY=VALUE`` for whichever chosen method has it, or as ``KEY=VALUE``, which a chosen method
must have.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import Field, field, fields, replace
from functools import wraps
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, get_args, get_type_hints, overload

from lorabank.core.commands import shell_line
from lorabank.core.errors import ConfigError, joined

T = TypeVar("T")


class Names(Protocol):
    """The names that a setting may have: a `lorabank.core.shelves.Shelf`."""

    def __contains__(self, name: object, /) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...

    def unknown(self, name: str) -> str:
        """What to say of a name that is not among them."""
        ...

    def reason(self, name: str) -> str | None:
        """Why what such a name means is not offered; None where nothing is known of it."""
        ...


def setting(
    default: Any,
    help: str,
    *,
    among: Names | None = None,
    besides: tuple[str, ...] = (),
    filled: bool = False,
    file: bool = False,
    **bounds: Any,
) -> Any:
    """A dataclass field that is a setting.

    Args:
        default: Its value where none is given.
        help: One sentence for the command line and the documentation.
        among: The shelf on which a text must be a name.
        besides: Words that are allowed beside the names; the default always is.
        filled: Whether a text, or each of several, must have a character.
        file: Whether a text is the path of a file that is read: the page reads those of its operator alone.
        bounds: Of a number: ``ge``, ``gt``, ``le``, ``lt``.
    """
    metadata = {"help": help, "among": among, "besides": besides, "filled": filled, "file": file, "bounds": bounds}
    return field(default=default, metadata=metadata)


def choices(field: Field[Any]) -> list[str] | None:
    """The words that a setting may be, those beside the shelf first; None where it is not a name on a shelf."""
    among = field.metadata["among"]
    return None if among is None else [*field.metadata["besides"], *among]


def setting_fields(holder: Any) -> tuple[Field[Any], ...]:
    """The settings of a dataclass, or of an instance of one, in order; its other fields are its author's."""
    return tuple(one for one in fields(holder) if "help" in one.metadata)


def setting_names(holder: Any) -> tuple[str, ...]:
    """Their names."""
    return tuple(one.name for one in setting_fields(holder))


def sections(holder: Any, left_out: Collection[str] = ()) -> dict[str, tuple[str, ...]]:
    """Title to the settings of each section into which a class divides them, in order.

    Args:
        holder: A settings class whose ``section_at`` has the title of a section by the setting that it begins with.
        left_out: Settings that are not asked for.
    """
    found: dict[str, tuple[str, ...]] = {}
    title = ""
    for name in setting_names(holder):
        title = holder.section_at.get(name, title)
        if name not in left_out:
            found[title] = (*found.get(title, ()), name)
    return found


def nearest(word: str, known: list[str]) -> str:
    """``". Did you mean 'x'?"`` for the closest known word, to stand behind a message, or an empty string."""
    close = difflib.get_close_matches(word, known, n=1)
    return f". Did you mean {close[0]!r}?" if close else ""


def validate(config: type[T], values: Mapping[str, Any], *, where: str = "settings") -> T:
    """Build a config from loose values.

    Args:
        config: A frozen dataclass whose fields are made by `setting`.
        values: Field name to value; strings are converted to the field's type.
        where: Named in the error message, for example the config file.

    Returns:
        The checked config.

    Raises:
        ConfigError: Naming every unknown key (with the nearest known one) and every value that is out of bounds,
            infinite or not a number.
    """
    examined = examine(config, values)
    if examined.problems:
        raise ConfigError(f"{where}: {joined(examined.problems)}", unchanged="nothing was changed")
    return examined.config


class Examined(NamedTuple, Generic[T]):
    """Loose values as a config, and what is wrong with them.

    Attributes:
        config: The values that fit, and defaults in the place of those that do not.
        wrong: The fields whose value does not fit.
        problems: One for each unknown key and each value that does not fit.
    """

    config: T
    wrong: frozenset[str]
    problems: tuple[str, ...]


@overload
def examine(config: type[T], values: Mapping[str, Any]) -> Examined[T]: ...


@overload
def examine(config: Any, values: Mapping[str, Any]) -> Examined[Any]: ...


def examine(config: Any, values: Mapping[str, Any]) -> Examined[Any]:
    """Build a config from loose values, as `validate` does, and tell all that is wrong in the place of an error.

    ``config`` may be an instance too: its values are the defaults, and what is not a setting of it stays.
    """
    from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model
    from pydantic.fields import FieldInfo

    kind: Any = config if isinstance(config, type) else type(config)
    values = modern(kind, values)[0]
    known = {one.name: one for one in setting_fields(config)}
    problems = [f"unknown key {key!r}{nearest(key, list(known))}" for key in values if key not in known]
    hints = {name: hint for name, hint in get_type_hints(kind).items() if name in known}
    defaults = {name: one.default if config is kind else getattr(config, name) for name, one in known.items()}
    definitions: dict[str, Any] = {
        name: (hints[name], FieldInfo(default=defaults[name], **_bounds(one, hints[name])))
        for name, one in known.items()
    }
    model = create_model(kind.__name__, __config__=ConfigDict(extra="ignore", allow_inf_nan=False), **definitions)
    wrong = {name for name, hint in hints.items() if _truth_for_number(values.get(name), hint)}
    problems += [f"{name} = {shown(values[name])}: true and false are not numbers" for name in known if name in wrong]
    for name, one in known.items():
        if name in values and (problem := _unfit_text(one, values[name])) is not None:
            problems.append(problem)
            wrong.add(name)
    adapter = TypeAdapter(model)
    try:
        checked = adapter.validate_python({key: value for key, value in values.items() if key not in wrong})
    except ValidationError as error:
        unfit = error.errors()
        problems += [f"{'.'.join(map(str, e['loc']))} = {shown(e['input'])}: {e['msg'].lower()}" for e in unfit]
        wrong |= {str(e["loc"][0]) for e in unfit}
        checked = adapter.validate_python({key: value for key, value in values.items() if key not in wrong})
    found = {name: getattr(checked, name) for name in known}
    built = kind(**found) if config is kind else replace(config, **found)
    return Examined(built, frozenset(wrong), tuple(problems))


def _unfit_text(field: Field[Any], value: Any) -> str | None:
    """What is wrong with a text, or one of several, that must be a name on a shelf or must not be empty."""
    among, free = field.metadata["among"], (field.default, *field.metadata["besides"])
    names = value if isinstance(value, list | tuple) else (value,)
    if field.metadata["filled"] and "" in names:
        return f"{field.name} = '': the text is empty"
    if among is None:
        return None
    wrong = [one for one in names if isinstance(one, str) and one not in free and one not in among]
    return str(among.unknown(wrong[0])) if wrong else None


def _truth_for_number(value: Any, hint: Any) -> bool:
    """Whether ``True`` or ``False`` stands where a number is wanted: Python takes them for 1 and 0."""
    kinds = set(_kinds(hint))
    held = value if isinstance(value, list | tuple) else (value,)
    return bool(kinds & {int, float}) and bool not in kinds and any(isinstance(one, bool) for one in held)


def _kinds(hint: Any) -> Iterator[Any]:
    """The types that a hint is made of."""
    yield hint
    for inner in get_args(hint):
        yield from _kinds(inner)


def _bounds(field: Field[Any], hint: Any) -> dict[str, Any]:
    """Bounds of a field; a count without an upper one has that of the libraries below, which count in 32 bits."""
    bounds: Mapping[str, Any] = field.metadata["bounds"]
    count = hint in (int, int | None) and not bounds.keys() & {"le", "lt"}
    return {**bounds, **({"lt": 2**31} if count else {})}


def shown(value: Any) -> str:
    """A value as a message shows it: Python's spelling, no more than 80 characters."""
    try:
        return repr(value)[:80]
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of too many digits"


# ----------------------------------------------------------------------------------------------------- old names

ANY = "*"
"""The METHOD of a setting that is of whichever chosen method has it."""

_SET = "set"
"""In place of METHOD: the setting is given as ``--set KEY=VALUE`` gives it."""


def renamed(defaults: Mapping[str, Any] | None = None, /, **names: str) -> Callable[[type[T]], type[T]]:
    """Let a dataclass of keyword-only settings take old names, with a `DeprecationWarning`.

    Args:
        defaults: Old name to the default that it had. This value says nothing: records of older versions hold it
            whatever the method was.
        names: Old name to the setting that stands in its place, to ``METHOD.KEY``, or to ``set.KEY`` where a chosen
            method must have it.
    """

    def wrap(kind: type[T]) -> type[T]:
        made: Callable[..., None] = kind.__init__

        @wraps(made)
        def take(self: T, *args: Any, **given: Any) -> None:
            values, notices = modern(kind, given)
            for notice in notices:
                warnings.warn(notice, DeprecationWarning, stacklevel=2)
            made(self, *args, **values)

        setattr(kind, "__init__", take)  # noqa: B010  (mypy knows no assignment to it)
        setattr(kind, "old_names", names)  # noqa: B010
        setattr(kind, "old_defaults", defaults or {})  # noqa: B010
        return kind

    return wrap


def old_names(kind: Any) -> dict[str, str]:
    """Old name to what stands in its place, of a settings class."""
    names: dict[str, str] = getattr(kind, "old_names", {})
    return names


def modern(kind: Any, values: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Loose values under their present names, and for each old name among them what to write.

    None under an old name says nothing, and neither does the default that it had.

    Raises:
        ConfigError: A setting is given under its old name and its new one.
    """
    names, defaults = old_names(kind), getattr(kind, "old_defaults", {})
    found = {name: value for name, value in values.items() if name not in names}
    listed = found.get("set", ())
    listed = tuple(listed) if isinstance(listed, list | tuple) else (listed,)
    keys = {str(one).partition("=")[0].strip() for one in listed}
    notices = []
    for name, new in names.items():
        value = values.get(name)
        if value is None or (name in defaults and str(value) == str(defaults[name])):
            continue
        owner, _, key = new.rpartition(".")
        if owner:
            assigned = f"{key if owner == _SET else new}={value}"
            written = f"--set {shell_line(assigned)}"
            twice = any(one in (key, new) or (owner in (_SET, ANY) and one.endswith(f".{key}")) for one in keys)
            found["set"] = listed = (*listed, assigned)
        else:
            written, twice = f"--{new.replace('_', '-')} {value}", found.get(new) is not None
            found[new] = value
        if twice:
            raise ConfigError(
                f"{name} is given under its new name too: {written} says the same",
                hint=f"leave {name} out",
                unchanged="nothing was changed",
            )
        notices.append(f"--{name.replace('_', '-')} is an old name: write {written}")
    return found, tuple(notices)
