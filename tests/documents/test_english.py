"""What users read (messages, help, docstrings, pages) is free of the worst patterns that CONTRIBUTING.md names."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").rglob("*.md"))]
SOURCES = [path for folder in ("lorabank", "cli/lorabank_cli") for path in sorted((ROOT / folder).rglob("*.py"))]

PATTERNS = {
    "is no X: write 'is not a X'": r"(?<!there )(?<!There )\b(?:is|are|was|were) no (?!more\b|other\b|\w+er\b)\w+",
    "goes on: write 'continues' or 'resumes'": r"\b(?:go|goes|went|gone|going) on (?:training|with|by|from|where)\b"
    r"|\((?:goes|going) on\)|\bthat goes on\b",
    "told by: write 'inferred from' or 'given'": r"\btold (?:by|from)\b|\bis told which\b|\bthat is told\b",
    "nobody: name what it is": r"\b[Nn]obody (?:says|said|knows|asked|needs)\b|\b[Tt]ells nobody\b",
    "most N: write 'maximum'": r"(?:^|[:.] |[Tt]he )(?:[Mm]ost|[Ll]east) (?:tokens|rows|memory|bytes|characters)\b",
    "on and on": r"\bon and on\b",
}


def read_by_users(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string of a file but the docstrings of private names."""
    tree = ast.parse(source)
    private = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name.startswith("_"):
            private |= {id(one.value) for one in node.body[:1] if isinstance(one, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in private:
            yield node.lineno, " ".join(node.value.split())


def matches(text: str) -> list[str]:
    """The advice for each pattern in a text, with what was found."""
    return [f"{advice}: {match[0]!r}" for advice, pattern in PATTERNS.items() for match in re.finditer(pattern, text)]


def found(source: str) -> list[str]:
    return [f"{line}: {one}" for line, text in read_by_users(source) for one in matches(text)]


def test_what_the_program_says_is_free_of_the_worst_patterns() -> None:
    bad = [f"{path.relative_to(ROOT)}:{one}" for path in SOURCES for one in found(path.read_text(encoding="utf-8"))]
    assert len(SOURCES) > 150
    assert bad == []


def test_the_pages_are_free_of_the_worst_patterns() -> None:
    texts = {path: " ".join(path.read_text(encoding="utf-8").split()) for path in PAGES}
    assert len(texts) > 60
    assert [f"{path.relative_to(ROOT)}: {one}" for path, text in texts.items() for one in matches(text)] == []


def ends_in_full_stop(source: str) -> list[int]:
    """The lines of errors whose message, hint or ``unchanged`` ends in a full stop: each is one line, not prose."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Error"):
            said = [*node.args[:1], *(one.value for one in node.keywords if one.arg in ("hint", "unchanged"))]
            texts = [ast.unparse(one).rstrip("\"'") for one in said]
            lines += [node.lineno for text in texts if text.endswith(".") and not text.endswith("...")]
    return lines


def test_no_error_ends_in_a_full_stop() -> None:
    bad = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        for line in ends_in_full_stop(path.read_text(encoding="utf-8"))
    ]
    assert bad == []
    assert ends_in_full_stop("raise ConfigError(f'no task {name!r}.', hint='look...')") == [1]


@pytest.mark.parametrize(
    "text",
    [
        "'5x' is no size",
        "it goes on where it was interrupted",
        "told by its columns",
        "nobody says which task answers",
        "Most tokens of a generated answer.",
        "trained on and on",
    ],
)
def test_a_pattern_is_seen(text: str) -> None:
    assert len(found(f"raise ConfigError({text!r})")) == 1


@pytest.mark.parametrize(
    "text", ["there is no such file", "is no longer there", "at most 5 rows", "whoever goes on holiday, nobody else"]
)
def test_good_english_is_not(text: str) -> None:
    assert found(f"raise ConfigError({text!r})") == []


def test_the_style_page_has_twenty_pairs() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = page.partition("| instead of | write |\n| --- | --- |\n")[2].partition("\n\n")[0]
    assert len(table.splitlines()) >= 20
