"""The messages that docs/troubleshooting.md explains are messages of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/troubleshooting.md"
SOURCES = [path for folder in ("lorabank", "cli/lorabank_cli") for path in (ROOT / folder).rglob("*.py")]


def templates() -> Iterator[str]:
    """Every text of the sources, with ``...`` where it is filled in."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.value
            elif isinstance(node, ast.JoinedStr):
                yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)


def quoted() -> list[str]:
    """The messages in the first column of the page's tables."""
    rows = re.findall(r"^\| (`.+?) \|", PAGE.read_text(encoding="utf-8"), re.M)
    return [message for row in rows for message in re.findall(r"`([^`]+)`", row)]


def in_order(message: str) -> str:
    """A pattern for its fixed parts, in their order."""
    return ".*".join(re.escape(part) for part in re.split(r" ?\.\.\. ?", message) if part)


def test_each_message_is_one_of_the_code() -> None:
    known, messages = "\n".join(text.replace("\n", " ") for text in templates()), quoted()
    assert len(messages) > 80
    assert [message for message in messages if not re.search(in_order(message), known)] == []


def test_a_message_that_is_not_there_is_seen() -> None:
    assert not re.search(in_order("the bank ... was eaten by a ..."), "\n".join(templates()))
