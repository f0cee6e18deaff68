"""``--dry-run``: each resolved setting with its source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lorabank_cli.output import plain
from lorabank_cli.text import pairs, safe, table, terminal_width
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
            ("setting", "value", "source"), [_row(s.name, s.value, s.source) for s in settings], limit=terminal_width()
        ),
    ]
    if plan:
        lines += [
            "",
            pairs([(name.replace("_", " "), _shown(value) or "none") for name, value in plan.items()], indent=""),
        ]
    lines += ["", "nothing was changed"]
    run.output.data(document, "\n".join(lines))


def _used(setting: Setting, value: Any) -> Setting:
    replaced = setting.value is not None and plain(setting.value) != plain(value)
    return setting._replace(value=value, source=f"{setting.source} {setting.value}" if replaced else setting.source)


def _row(name: str, value: Any, source: str) -> tuple[str, str, str]:
    return name.replace("_", "-"), _shown(value) or "-", source


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        items = ((name, _shown(item), isinstance(item, Mapping)) for name, item in value.items())
        return _cut([f"{name} ({item})" if nested else f"{name} {item}" for name, item, nested in items])
    if isinstance(value, list | tuple):
        return _cut([_shown(item) for item in value])
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else "" if value is None else str(value)


def _cut(parts: Sequence[str]) -> str:
    """The first parts, and how many more there are."""
    more = f" and {len(parts) - _SHOWN} more (--json)" if len(parts) > _SHOWN else ""
    between = "; " if any(", " in part for part in parts) else ", "
    return between.join(parts[:_SHOWN]) + more
