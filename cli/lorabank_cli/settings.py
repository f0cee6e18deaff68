"""``--dry-run``: each resolved setting with its source."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from lorabank.core.escaping import safe
from lorabank_cli.render.output import plain
from lorabank_cli.render.text import pairs, table, terminal_width
from lorabank_cli.verb import Run, Setting

_SHOWN = 20
"""Parts of a value that are shown; all are in ``--json``."""


def show_settings(
    run: Run, headline: str, *, plan: Mapping[str, Any] | None = None, resolved: Mapping[str, Any] | None = None
) -> None:
    """Write what a command would do.

    Args:
        run: The call.
        headline: What would happen, in a few words.
        plan: Facts about the work, shown below the settings.
        resolved: Settings as the work would use them; what was asked for stands beside the source where it differs.
    """
    plan, resolved = plan or {}, resolved or {}
    settings = [_used(s, resolved.get(s.name, s.value)) for s in run.settings()]
    document = {
        "dry_run": True,
        "settings": {s.name: {"value": s.value, "source": s.source} for s in settings},
        **plan,
    }
    lines = [
        safe(headline),
        "",
        table(
            ("setting", "value", "source"),
            [(s.option, _shown(s.value) or "-", s.source) for s in settings],
            limit=terminal_width(),
        ),
    ]
    if plan:
        lines += ["", pairs([row for name, value in plan.items() for row in _fact(name, value)], indent="")]
    lines += ["", "nothing was changed"]
    run.output.data(document, "\n".join(lines))


def _used(setting: Setting, value: Any) -> Setting:
    replaced = setting.value is not None and plain(setting.value) != plain(value)
    return setting._replace(value=value, source=f"{setting.source} {setting.value}" if replaced else setting.source)


def _fact(name: str, value: Any) -> list[tuple[str, str]]:
    """The rows of a fact: the second and further lines of its value stand below the first. Empty ones have none."""
    titles = itertools.chain([name.replace("_", " ")], itertools.repeat(""))
    return list(zip(titles, _lines(value), strict=False))


def _lines(value: Any) -> list[str]:
    """A value in lines: one for each sentence or group of facts, and one for all short words together."""
    if isinstance(value, Mapping):
        if not any(isinstance(item, Mapping | list | tuple) for item in value.values()):
            return [_shown(value)] if value else []
        parts = [[f"{_shown(key)}: {_shown(item)}"] for key, item in value.items()]
    elif isinstance(value, list | tuple) and any(" " in str(item) for item in value):
        parts = [_group(item) if isinstance(item, Mapping) else [_shown(item)] for item in value]
    else:
        return [text] if (text := _shown(value)) else []
    more = [f"and {len(parts) - _SHOWN} more (--json)"] if len(parts) > _SHOWN else []
    return [line for part in parts[:_SHOWN] for line in part] + more


def _group(facts: Mapping[str, Any]) -> list[str]:
    """One of several objects: its plain facts in a line, and below it each entry of its lists."""
    plain_ones = {name: item for name, item in facts.items() if not isinstance(item, list | tuple)}
    entries = [entry for item in facts.values() if isinstance(item, list | tuple) for entry in item]
    return [_shown(plain_ones), *(f"  {_shown(entry)}" for entry in entries)]


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return _cut([f"{str(name).replace('_', ' ')} {_shown(item)}" for name, item in value.items()])
    if isinstance(value, list | tuple):
        return _cut([_shown(item) for item in value])
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)


def _cut(parts: Sequence[str]) -> str:
    """The first parts, and how many more there are."""
    more = f" and {len(parts) - _SHOWN} more (--json)" if len(parts) > _SHOWN else ""
    return ", ".join(parts[:_SHOWN]) + more
