"""``lorabank methods``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from lorabank.core.escaping import safe
from lorabank.core.shelves import SHELVES
from lorabank_cli.render.output import plain
from lorabank_cli.render.text import pairs, table, terminal_width
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.core.methods import Method, MethodSetting


@verb("methods", examples=("methods", "methods replay", "methods --json"))
@click.argument("name", required=False, help="A strategy, a variant, a penalty, a merger, ...")
def methods(run: Run, name: str | None) -> None:
    """List all methods.

    The list includes those of installed packages. Each has its family, where it was published, and its own settings
    for --set; methods that are known and not offered follow, with the reason. With a name, the command shows
    everything about the methods of that name.
    """
    from lorabank.core.methods import methods as known

    found = known(name)
    text = _table(found) if name is None else "\n\n".join(map(_whole, found))
    run.output.data(plain(found), text)


def _table(found: tuple[Method, ...]) -> str:
    rows = [
        (one.family, one.name, one.paper, ", ".join(s.name for s in one.settings) or None)
        for one in found
        if one.offered
    ]
    there = table(("family", "name", "paper", "settings"), rows, limit=terminal_width())
    refused = [f"{one.name} ({one.family}): {one.refused[0]}" for one in found if not one.offered]
    return "\n".join([there, "", "Not offered:", *refused])


def _whole(one: Method) -> str:
    facts = [("about", one.about or None), ("paper", one.paper), ("chosen by", one.chosen or None)]
    facts += [("refused", reason) for reason in one.refused]
    lines = [f"{safe(one.name)} ({one.family})", pairs(facts)]
    given = next(shelf.given for shelf in SHELVES if shelf.kind == one.family)
    for s in one.settings:
        written = given.format(name=one.name, key=s.name, value=s.default)
        lines.append(f"{safe(written)}\n  {safe(s.help)} ({_allowed(s)})")
    return "\n".join(line for line in lines if line)


def _allowed(setting: MethodSetting) -> str:
    return ", ".join([setting.type, *setting.limits])
