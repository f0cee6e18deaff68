"""Every error about a damaged file names it, says what stayed unchanged, and says what to do next."""

from __future__ import annotations

import gzip
import json
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from lorabank.bank.bank import Bank

Damage = Callable[[Path], object]


def _cut(path: Path) -> None:
    content = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(content[: len(content) // 2])


def _zeros(path: Path) -> None:
    size = path.stat().st_size
    path.chmod(0o600)
    path.write_bytes(bytes(size))


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path) -> None:
    shutil.move(path, path.parent / "moved")
    path.symlink_to(path.parent / "moved")


DAMAGES: tuple[Damage, ...] = (Path.unlink, _cut, _zeros, _folder, _link)
ON_A_BANK = (
    ("list",),
    ("log",),
    ("show", "spam"),
    ("compare", "spam", "sentiment"),
    ("verify",),
    ("verify", "--full"),
    ("doctor",),
    ("gc",),
    ("backup", "copy"),
    ("note", "spam", "a note"),
    ("rename", "spam", "ham"),
    ("undo", "--yes"),
    ("db", "upgrade"),
)
"""Commands that read a bank and need no base model."""


def lacking(err: str, *, place: Sequence[str]) -> str | None:
    """What an error on stderr lacks of the three parts; ``place``: one of these is named in its first line."""
    lines = err[err.index("error: ") :].splitlines()
    if "internal error" in lines[0]:
        return "it is a bug"
    if not any(one in lines[0] for one in place):
        return "it does not name the thing"
    if len(lines) < 2 or not lines[1].startswith("  ") or lines[1].strip().startswith(("hint:", "lorabank ")):
        return "it does not say what stayed unchanged"
    if len(lines) < 3 or not lines[2].strip().removeprefix("hint:").strip():
        return None if any(line.startswith("    lorabank ") for line in lines[2:]) else "it proposes nothing"
    return None


def refused(run: Any, words: Sequence[str], place: Sequence[str], what: str) -> list[str]:
    """What is wrong with the error of a command; nothing where there is none."""
    shown = run(*words)
    if shown.code == 0:
        return []
    found = lacking(shown.err, place=place)
    return [f"{' '.join(words)}, {what}: {found}: {shown.err}"] if found else []


def test_the_three_parts_are_looked_for() -> None:
    whole = "error: row 3: no label\n  nothing was changed\n  hint: add one\n"
    assert lacking(whole, place=["row 3"]) is None
    assert lacking("error: row 3\n  nothing was changed\n  hint:\n    lorabank list\n", place=["row 3"]) is None
    assert lacking(whole, place=["row 4"]) == "it does not name the thing"
    assert lacking("error: row 3\n  hint: add one\n", place=["row"]) == "it does not say what stayed unchanged"
    assert lacking("error: row 3\n  nothing was changed\n", place=["row"]) == "it proposes nothing"


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda one: one.__name__.strip("_"))
def test_of_a_bank(run: Any, bank: Bank, damage: Damage) -> None:
    stored = [*(bank.path / "blobs").rglob("*"), *(bank.path / "adapters").rglob("*")]
    files = [bank.path / "bank.json", bank.path / "bank.db", *sorted(path for path in stored if path.is_file())]
    kept = Path(shutil.copytree(bank.path, bank.path.with_name("kept")))
    wrong: list[str] = []
    for file in files:
        name = file.relative_to(bank.path)
        for words in ON_A_BANK:
            damage(file)
            wrong += refused(run, words, ["bank", file.name[:12]], f"{name} {damage}")
            shutil.rmtree(bank.path)
            shutil.copytree(kept, bank.path)
            shutil.rmtree("copy", ignore_errors=True)
    assert wrong == []
    damage(files[1])
    refusals = sum(run(*words).code == 8 for words in ON_A_BANK)
    assert refusals > len(ON_A_BANK) // 2  # the commands do read the file


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE tasks SET name = 'other' WHERE position = 1",
        "UPDATE tasks SET labels = '[' WHERE position = 1",
        "UPDATE adapters SET digest = 'x' WHERE id = 1",
        "UPDATE adapters SET config = '3' WHERE id = 1",
        "UPDATE evaluations SET value = 'high'",
        "DELETE FROM base_model",
        "DELETE FROM adapter_files",
        "UPDATE bank SET bank_id = 'other'",
    ],
)
def test_of_a_row(run: Any, bank: Bank, change: str) -> None:
    with closing(sqlite3.connect(bank.path / "bank.db", isolation_level=None)) as behind:
        behind.execute("PRAGMA ignore_check_constraints = ON")
        for (name,) in behind.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
            behind.execute(f"DROP TRIGGER {name}")
        behind.execute(change)
    wrong = [one for words in ON_A_BANK for one in refused(run, words, ["bank", "adapter "], change)]
    assert wrong == []


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"])
def test_of_a_base_model(run: Any, make_base: Callable[..., Path], empty_folder: Path, file: str) -> None:
    base = make_base("bert")
    kept = Path(shutil.copytree(base, empty_folder / "kept"))
    wrong = []
    for damage in DAMAGES[:-1]:
        damage(base / file)
        wrong += refused(run, ("init", "--base", str(base)), [str(base)], f"{file} {damage}")
        shutil.rmtree("bank", ignore_errors=True)
        shutil.rmtree(base)
        shutil.copytree(kept, base)
    assert wrong == []


def test_of_training_rows(run: Any, make_base: Callable[..., Path], empty_folder: Path) -> None:
    base = make_base("bert")
    rows = "".join(json.dumps({"text": "a b", "label": label}) + "\n" for label in ("no", "yes") * 10).encode()
    contents = {
        "cut.jsonl": rows[:-9],
        "other.jsonl": b'{"text": "a b"}\n',
        "list.json": b"[1, 2]",
        "latin.csv": "text,label\ncaf\u00e9,no\n".encode("latin-1"),
        "quote.csv": b'text,label\n"a b,no\n',
        "zeros.parquet": bytes(200),
        "cut.jsonl.gz": gzip.compress(rows)[:-9],
        "zeros.xlsx": bytes(200),
        "empty.csv": b"",
    }
    wrong = []
    for name, content in contents.items():
        (empty_folder / name).write_bytes(content)
        words = ("add-task", "spam", "--data", name, "--base", str(base), "--device", "cpu")
        assert run(*words).code == 6, name
        wrong += refused(run, words, [name], name)
    assert wrong == []


@pytest.mark.parametrize("words", [("report", "out.html", "--bank", "runs"), ("sequence", "tradeoff", "runs")])
def test_of_a_sequence(run: Any, empty_folder: Path, words: tuple[str, ...]) -> None:
    (empty_folder / "runs").mkdir()
    (empty_folder / "runs" / "results.json").write_text('{"rows": [')
    shown = run(*words)
    assert shown.code == 8
    assert lacking(shown.err, place=["results.json"]) is None
