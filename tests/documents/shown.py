"""What documents show: fenced blocks, and how their output is compared."""

from __future__ import annotations

import re
from pathlib import Path


def blocks(document: Path, *languages: str) -> list[tuple[str, str]]:
    """Language and text of the fenced blocks in these languages, in order."""
    found = re.findall(r"^```(\w+)\n(.*?)^```$", document.read_text(encoding="utf-8"), re.M | re.S)
    return [(language, text) for language, text in found if language in languages]


def stable(line: str) -> str:
    """A line without what differs from machine to machine and from day to day: fractions, digests, times, widths."""
    line = re.sub(r"\d{4}-\d\d-\d\d|\b[0-9a-f]{64}\b|\b\d+ s\b|-?\b\d+\.\d+", "#", line)
    return " ".join(line.split())
