"""What may reach a terminal: escaped text, aligned tables, colour where it is wanted."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

from lorabank.core.escaping import safe

_LONG = 64
"""Characters of one of several names in a line."""


def shown(text: str, *, color: bool) -> str:
    """Text as it may reach a stream: each line is safe, and with ``color`` the colours of ``click.style`` stay.

    Makers of text escape what they show where they put it together; what one of them forgot is caught here.
    """
    return "\n".join(_colored(line) if color else _line(line) for line in text.split("\n"))


def _line(line: str) -> str:
    return line if line.isprintable() else "\t".join(map(safe, line.split("\t")))


def _colored(line: str) -> str:
    import re

    parts = re.split(r"(\x1b\[[0-9;]{1,20}m)", line)  # every second one is a colour
    return "".join(part if index % 2 else _line(part) for index, part in enumerate(parts))


def wants_color(stream: IO[Any]) -> bool:
    """Whether colour may be written: a terminal that can, and no ``NO_COLOR`` (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def terminal_width() -> int | None:
    """Columns of the terminal on standard output, None when it is a file or a pipe."""
    if not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns


def width(text: str) -> int:
    """Terminal columns that ``text`` takes: 2 for wide characters, 0 for combining ones."""
    if text.isascii():
        return len(text)
    import unicodedata

    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def fit(text: str, columns: int) -> str:
    """``text`` cut or padded with spaces to exactly ``columns``; a cut ends in ``~``."""
    if width(text) > columns:
        while text and width(text) > columns - 1:
            text = text[:-1]
        text += "~"
    return text + " " * (columns - width(text))


def table(header: Sequence[str], rows: Sequence[Sequence[object]], *, limit: int | None = None) -> str:
    """Columns aligned under ``header``, numbers to the right.

    Args:
        header: Column titles.
        rows: Cells; None is shown empty.
        limit: Terminal width: the widest text columns are cut to fit, with a line that says how to see all.

    Returns:
        Lines without a trailing newline.
    """
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(width(line[i]) for line in [list(header), *cells]) for i in range(len(header))]
    wanted = sum(widths) + 2 * (len(widths) - 1)
    cut = limit is not None and wanted > limit
    if limit is not None:
        while sum(widths) + 2 * (len(widths) - 1) > limit and max(widths) > 8:
            widths[widths.index(max(widths))] -= 1
    right = [bool(rows) and all(isinstance(row[i], int | float | None) for row in rows) for i in range(len(header))]
    lines = []
    for line in [list(header), *cells]:
        parts = [_align(text, columns, flush) for text, columns, flush in zip(line, widths, right, strict=True)]
        lines.append("  ".join(parts).rstrip())
    if cut:
        lines.append("(truncated to the terminal's width; --json has everything)")
    return "\n".join(lines)


def _align(text: str, columns: int, right: bool) -> str:
    fitted = fit(text, columns)
    return fitted if not right else " " * (columns - width(fitted.rstrip())) + fitted.rstrip()


def _cell(value: object) -> str:
    if value is None:
        return ""
    return f"{value:.4f}" if isinstance(value, float) else safe(value)


def pairs(items: Sequence[tuple[str, object]], *, indent: str = "  ") -> str:
    """``name  value`` lines with the values aligned; None values are left out."""
    shown = [(safe(name), _cell(value)) for name, value in items if value is not None]
    columns = max((width(name) for name, _ in shown), default=0)
    return "\n".join(f"{indent}{fit(name, columns)}  {value}".rstrip() for name, value in shown)


def outline(document: Mapping[str, Any], *, indent: str = "  ") -> str:
    """A nested document for people: names and values, lists of objects as tables; nothing is left out but nulls."""
    simple: list[tuple[str, object]] = []
    blocks = []
    for name, value in document.items():
        if isinstance(value, Mapping) and value:
            blocks.append(f"{indent}{safe(name)}\n{outline(value, indent=indent + '  ')}")
        elif isinstance(value, list | tuple) and value and isinstance(value[0], Mapping):
            blocks.append(f"{indent}{safe(name)}\n{_objects(value, indent + '  ')}")
        elif isinstance(value, list | tuple):
            simple.append((str(name), ", ".join(map(str, value)) or None))
        elif isinstance(value, bool):
            simple.append((str(name), "yes" if value else "no"))
        elif isinstance(value, float):
            simple.append((str(name), f"{value:.6g}"))
        elif value not in ({}, ""):
            simple.append((str(name), value))
    return "\n".join(part for part in [pairs(simple, indent=indent), *blocks] if part)


def farthest(by_module: Mapping[str, float], most: int = 3) -> dict[str, float]:
    """One number of each module for people: the median, and the modules with the largest."""
    import statistics

    largest = sorted(by_module.items(), key=lambda item: -item[1])[:most]
    return {f"median of {len(by_module)} modules": statistics.median(by_module.values()), **dict(largest)}


def _objects(rows: Sequence[Mapping[str, Any]], indent: str) -> str:
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [
        [", ".join(map(str, v)) if isinstance(v := row.get(n), list | tuple) else v for n in names] for row in rows
    ]
    lines = table(names, cells)
    return "\n".join(indent + line for line in lines.splitlines())


def named(metric: str) -> str:
    """A metric's name for people: ``exact match``."""
    return metric.replace("_", " ")


def scored(score: Mapping[str, float]) -> str:
    """An accuracy with its interval: ``"0.9083 [0.8432, 0.9482] on 120 rows"``."""
    return f"{score['value']:.4f} [{score['low']:.4f}, {score['high']:.4f}] on {score['n']:.0f} rows"


def shortened(names: Sequence[str], most: int = 5) -> str:
    """``"7: a, b, c, d, e, …"``: the first of many names after their number, a few without it; long ones are cut."""
    first = ", ".join(name if len(name) <= _LONG else f"{name[:_LONG]}\u2026" for name in names[:most])
    return first if len(names) <= most else f"{len(names)}: {first}, \u2026"


def size(count: int) -> str:
    """Bytes for people: ``"3.1 MB"`` (1 MB = 10**6 bytes)."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{int(value)} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")
