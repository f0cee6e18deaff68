"""Options made from the fields of the config dataclasses, and the ones every command has.

A field's name with dashes is the option, its type, default, bounds and help are the option's: one source.
"""

from __future__ import annotations

import math
import os
import types
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

import click

from lorabank_cli.completion import complete_compositions, complete_tasks

if TYPE_CHECKING:
    from dataclasses import Field

    from lorabank.core.settings import Names

DEFAULT_BANK = "bank"

COMPLETIONS = {"task": complete_tasks, "composition": complete_compositions, "compositions": complete_compositions}
"""Fields whose values are names in the bank."""


class Option(click.Option):
    """An option with a section in ``--help``; a shared one may also stand before the command's name."""

    def __init__(self, *args: Any, section: str = "Options", shared: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.section = section
        self.shared = shared

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        """The value in the environment, of the option's own name first: `--saving` sets the parameter `savings`."""
        return os.environ.get(variable(ctx, spelt(self))) or super().resolve_envvar_value(ctx)


def spelt(param: click.Parameter) -> str:
    """What an option is called in messages, files and the environment: its long name without dashes in front."""
    return max(param.opts, key=len).lstrip("-")


def variable(ctx: click.Context, name: str) -> str:
    """The environment variable of an option of this command."""
    return f"{ctx.auto_envvar_prefix}_{name.replace('-', '_').upper()}"


class Finite(click.FloatRange):
    """A number within bounds; not NaN, not infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Convert and check."""
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is not a finite number", param, ctx)
        return number


class NameChoice(click.Choice[str]):
    """A name on a shelf; one that is known and not offered is answered with the reason.

    Args:
        names: The words that are taken.
        among: The shelf.
    """

    def __init__(self, names: Sequence[str], among: Names) -> None:
        super().__init__(names)
        self._among = among

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check."""
        if value not in self.choices and (reason := self._among.reason(str(value))):
            self.fail(f"{str(value)[:80]!r} is not offered: {reason}.", param, ctx)
        return super().convert(value, param, ctx)


def shared_options() -> list[Option]:
    """The options of every command, each also settable by ``LORABANK_<NAME>``."""

    def option(*names: str, name: str, **kwargs: Any) -> Option:
        return Option([*names, name], section="General", shared=True, envvar=f"LORABANK_{name.upper()}", **kwargs)

    return [
        option("--bank", "-b", name="bank", default=DEFAULT_BANK, show_default=True, metavar="DIR", help="The bank."),
        option("--config", name="config", metavar="FILE", help="TOML file with a table per command."),
        option("--json", name="json", is_flag=True, help="One JSON document on stdout."),
        option("--quiet", "-q", name="quiet", is_flag=True, help="No notices and no progress."),
        option("--verbose", "-v", name="verbose", is_flag=True, help="Show every setting and its source."),
        option("--debug", name="debug", is_flag=True, help="Show the traceback of an error."),
    ]


def change_options(*, dry_run: bool, confirm: bool) -> list[Option]:
    """``--dry-run`` and ``--yes`` for commands that change something."""
    options = []
    if dry_run:
        options.append(Option(["--dry-run"], is_flag=True, section="General", help="Show what would happen."))
    if confirm:
        options.append(Option(["--yes", "-y"], is_flag=True, section="General", help="Do not ask."))
    return options


def remarked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command ``--note`` and ``--tag``: parameters ``note`` and ``tags``."""
    note = click.option("--note", metavar="TEXT", help="Note for people: what it is about.")
    tag = click.option(
        "--tag", "tags", cls=Option, multiple=True, metavar="TAG", help="Tag to find it by; may be repeated."
    )
    return note(tag(function))


def config_options(config: type[Any], section: str, names: Sequence[str], *, required: frozenset[str]) -> list[Option]:
    """Options for fields of a config class.

    Args:
        config: A class of ``lorabank.core.config``.
        section: Heading in ``--help``.
        names: The fields.
        required: Fields that must be given.
    """
    import dataclasses

    hints = get_type_hints(config)
    known = {f.name: f for f in dataclasses.fields(config)}
    return [_config_option(known[name], hints[name], section, name in required) for name in names]


def spellings(config: type[Any]) -> dict[str, str]:
    """The option of each field of a config class, without dashes in front."""
    from lorabank.core.settings import setting_names

    hints = get_type_hints(config)
    return {name: _spelling(name, hints[name]) for name in setting_names(config)}


def _spelling(field: str, hint: Any) -> str:
    """In the singular where the option may be repeated."""
    dashed = field.replace("_", "-")
    return dashed.removesuffix("s") if _kind(hint)[1] else dashed


class Loose(click.ParamType[str]):
    """A value that is checked where its setting stands now."""

    name = "value"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """As it is written."""
        return str(value)


def old_options(config: type[Any], names: Collection[str] | None = None) -> list[Option]:
    """Options under the names that settings had, all or some of them; ``--help`` does not show them."""
    from lorabank.core.settings import old_names

    return [
        Option([f"--{name.replace('_', '-')}", name], type=Loose(), hidden=True, help=f"Old name of {new}.")
        for name, new in old_names(config).items()
        if names is None or name in names
    ]


def _config_option(field: Field[Any], hint: Any, section: str, required: bool) -> Option:
    kind, multiple = _kind(hint)
    word = _spelling(field.name, hint)
    shown = field.default if field.default not in (None, "", ()) and field.default is not False else None
    common: dict[str, Any] = {
        "section": section,
        "help": field.metadata["help"],
        "required": required,
        "show_default": shown is not None,
        "shell_complete": COMPLETIONS.get(field.name),
    }
    if not required:
        common["default"] = field.default
    if kind is bool:
        return Option([f"--{word}/--no-{word}", field.name], **common)
    metavar = {int: "N", float: "X"}.get(kind)
    common |= {"type": _click_type(field, kind), "multiple": multiple, "metavar": metavar}
    return Option([f"--{word}", field.name], **common)


def _kind(hint: Any) -> tuple[Any, bool]:
    """The type behind ``X | None`` and ``tuple[X, ...]``, and whether it was the latter."""
    if get_origin(hint) is tuple:
        return get_args(hint)[0], True
    if get_origin(hint) in (Union, types.UnionType):
        return next(a for a in get_args(hint) if a is not type(None)), False
    return hint, False


def _click_type(field: Field[Any], kind: Any) -> click.ParamType[Any]:
    from lorabank.core.settings import choices

    if (names := choices(field)) is not None:
        return NameChoice(names, field.metadata["among"])
    if get_origin(kind) is Literal:
        return click.Choice(get_args(kind))
    bounds = field.metadata["bounds"]
    edges: dict[str, Any] = {
        "min": bounds.get("ge", bounds.get("gt")),
        "max": bounds.get("le", bounds.get("lt")),
        "min_open": "gt" in bounds,
        "max_open": "lt" in bounds,
    }
    if kind is int:
        return click.IntRange(**edges)
    return Finite(**edges) if kind is float else click.STRING
