"""``lorabank methods``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lorabank.core.escaping import safe
from lorabank_cli.render.output import plain
from lorabank_cli.render.text import pairs, table, terminal_width
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.core.methods import Method, MethodSetting

_BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


@verb("methods", examples=("methods", "methods replay", "methods --json"))
@click.argument("name", required=False, help="A strategy, a variant, a penalty, a merger, ...")
def methods(run: Run, name: str | None) -> None:
    """List all methods.

    Those of installed packages too, each with its family, where it was published, and its own settings for --set. With
    a name everything about the methods of that name.
    """
    from lorabank.core.methods import methods as known

    found = known(name)
    text = _table(found) if name is None else "\n\n".join(map(_whole, found))
    run.output.data(plain(found), text)


def _table(found: tuple[Method, ...]) -> str:
    rows = [(one.family, one.name, one.paper, ", ".join(s.name for s in one.settings) or None) for one in found]
    return table(("family", "name", "paper", "settings"), rows, limit=terminal_width())


def _whole(one: Method) -> str:
    facts = [("about", one.about or None), ("paper", one.paper), *(("refused", reason) for reason in one.refused)]
    lines = [f"{safe(one.name)} ({one.family})", pairs(facts)]
    lines += [f"--set {safe(s.name)}={safe(str(s.default))}\n  {safe(s.help)} ({_allowed(s)})" for s in one.settings]
    return "\n".join(line for line in lines if line)


def _allowed(setting: MethodSetting) -> str:
    bounds = [f"{_BOUNDS[name]} {bound:g}" for name, bound in setting.bounds.items()]
    return ", ".join([setting.type, *bounds])
