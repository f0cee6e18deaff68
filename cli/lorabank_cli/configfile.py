"""``--config FILE``: a TOML file with a table per command, checked whole before anything runs."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import click

from lorabank.core.errors import ConfigError, NotFoundError, joined
from lorabank.core.files.toml_file import load_toml
from lorabank.core.settings import nearest
from lorabank.core.shelves import SHELVES
from lorabank_cli.options import Loose, spelt

Lookup = Callable[[str], click.Command | None]


def read_config(
    path: str, names: list[str], lookup: Lookup, shared: list[click.Parameter]
) -> dict[str, dict[str, Any]]:
    """Read a config file.

    Top-level keys (``bank``, ``quiet``, ...) hold for every command, a table ``[add-task]`` for one. Keys are the
    long option names; dashes and underscores are the same. A table ``[add-task.NAME]`` holds settings of the method
    NAME, as ``--set NAME.KEY=VALUE`` does, for where it is chosen.

    Args:
        path: The file.
        names: Every command's name.
        lookup: Command by name.
        shared: The options that every command has.

    Returns:
        Command name to parameter name to value, with the top-level keys under ``""``.

    Raises:
        NotFoundError: No such file.
        ConfigError: Not TOML, unknown tables or keys, values that do not fit; all of them at once.
    """
    problems: list[str] = []
    found: dict[str, dict[str, Any]] = {"": {}}
    general = {name: p for p in shared if (name := option_name(p))}
    missing = NotFoundError(
        f"no config file {path}", hint="give --config an existing TOML file", unchanged="nothing was changed"
    )
    for key, value in load_toml(path, missing=missing).items():
        if not isinstance(value, Mapping):
            _take(found[""], general, key, value, "", problems)
            continue
        target = lookup(key)
        if target is None or isinstance(target, click.Group):
            problems.append(f"unknown table [{key}]{nearest(key, names)}")
            continue
        known = {name: p for p in target.params if (name := option_name(p))}
        found[key] = {}
        assigned: list[str] = []
        for option, item in value.items():
            if isinstance(item, Mapping) and "set" in known:
                problems += _table_problems(key, option, item)
                assigned += [f"{option}.{name}={one}" for name, one in item.items()]
            else:
                _take(found[key], known, option, item, f"[{key}] ", problems)
        if assigned:  # behind the key `set`, wherever in the file that stands
            found[key]["set"] = [*found[key].get("set", []), *assigned]
    if problems:
        raise ConfigError(f"{path}: {joined(problems)}", unchanged="nothing was changed")
    return found


def _table_problems(command: str, name: str, table: Mapping[str, Any]) -> list[str]:
    """What keeps a table of a command's table from being the settings of a method."""
    here = f"[{command}.{_toml_key(name)}]"
    methods = list(dict.fromkeys(method for shelf in SHELVES for method in shelf))
    if name not in methods:
        meant = [key for key in table if key in methods] or difflib.get_close_matches(name, methods, n=1) or ["NAME"]
        place = f"[{command}.{_toml_key(meant[0])}]"
        return [f"{here}: there is no method {name!r}; the settings of a method stand in {place}"]
    return [
        f"{here} {key} is a table: a setting is a text, a number, true or false"
        for key, value in table.items()
        if isinstance(value, Mapping)
    ]


def _toml_key(name: str) -> str:
    return name if re.fullmatch(r"[A-Za-z0-9_-]+", name) else json.dumps(name)


def option_name(param: click.Parameter) -> str | None:
    """The name of an option in a config file, None for what a file cannot set."""
    if not isinstance(param, click.Option) or param.is_eager or param.name in {"yes", "dry_run"}:
        return None
    return spelt(param)


def _take(
    found: dict[str, Any],
    known: dict[str, click.Parameter],
    key: str,
    value: Any,
    where: str,
    problems: list[str],
) -> None:
    param = known.get(key.replace("_", "-"))
    if param is None:
        problems.append(f"unknown key {where}{key}{nearest(key.replace('_', '-'), list(known))}")
        return
    try:
        found[str(param.name)] = _checked(param, value)
    except click.BadParameter as error:
        problems.append(f"{where}{key} = {value!r}: {error.message}")


def _checked(param: click.Parameter, value: Any) -> Any:
    """The value converted by the option's own type, without click's leniency (``8.7`` is no integer)."""
    assert isinstance(param, click.Option)
    if param.multiple:
        if not isinstance(value, list):
            raise click.BadParameter("expected a list")
        return [_checked_item(param, item) for item in value]
    return _checked_item(param, value)


def _checked_item(param: click.Option, value: Any) -> Any:
    if param.is_flag or param.count:
        expected: tuple[type, ...] = (bool,) if param.is_flag else (int,)
    elif isinstance(param.type, Loose):
        expected = (int, float, str)
    elif isinstance(param.type, click.types.FloatParamType):
        expected = (int, float)
    else:
        expected = (int,) if isinstance(param.type, click.types.IntParamType) else (str,)
    if not isinstance(value, expected) or (isinstance(value, bool) and bool not in expected):
        names = {bool: "true or false", int: "an integer", float: "a number", str: "a string"}
        raise click.BadParameter(f"expected {names[expected[-1]]}")
    if isinstance(value, str) and "\x00" in value:
        raise click.BadParameter("a NUL character")
    return param.type.convert(value, param, None)
