"""Hostile text in every field, through every command, to a pipe and to a terminal: nothing of it acts.

Whatever a bank of somebody else, a data file, a file's name or the command line holds: on a stream stands no control
character but the line feed and the tab, and in the report no live element.
"""

from __future__ import annotations

import ast
import json
import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import click
import pytest
from lorabank_cli.docs import commands
from lorabank_cli.main import main
from lorabank_cli.render.text import shown

from lorabank.bank.bank import Bank
from lorabank.bank.catalog.rows import sealed
from lorabank.bank.objects.canonical import canonical
from lorabank.core.errors import DataError
from lorabank.core.records import Finding
from tests.cli.hostile import ALL, PAYLOADS, assert_harmless, assert_harmless_page, terminal

VERBS = {path: command for path, command in commands() if not isinstance(command, click.Group)}


def test_there_are_forty_payloads() -> None:
    assert len(PAYLOADS) >= 40


# ----------------------------------------------------------------------------------- words of the command line


class Refusing:
    """In the place of the library: whatever is asked, the answer is an error that says the payload."""

    def __init__(self, payload: str) -> None:
        self.payload = payload

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def refuse(*_: object, **__: object) -> None:
            raise DataError(self.payload, hint=self.payload, unchanged=self.payload)

        return refuse


def words_of(command: click.Command, payload: str) -> list[str]:
    """The payload as every argument and as the value of every option that takes any text."""
    words: list[str] = []
    for param in command.params:
        if isinstance(param, click.Argument):
            words.append(f"x{payload}")
        elif (
            not getattr(param, "shared", False)
            and not param.is_flag
            and isinstance(param.type, click.types.StringParamType)
        ):
            words.append(f"{max(param.opts, key=len)}={payload}")
    return words


@pytest.mark.by_turns
@pytest.mark.parametrize("path", VERBS)
def test_words_and_errors_to_a_pipe(
    path: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import lorabank

    for payload in (*PAYLOADS.values(), ALL):
        monkeypatch.setattr(lorabank, "api", Refusing(payload))
        payload = payload.replace("\x00", "").replace("\ud800", "")  # a word of a process can hold neither
        for more in ([], ["--json"], ["--verbose"], ["--debug"], [f"--bank={payload}"], [f"--config={payload}"]):
            code = main([*path.split()[1:], *words_of(VERBS[path], payload), *more])
            captured = capsys.readouterr()
            assert_harmless(captured.out + captured.err)
            assert code != 1, captured.err
            assert "Traceback" not in captured.err or "--debug" in more


@pytest.mark.parametrize("color", [False, True])
def test_words_and_errors_to_a_terminal(color: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import lorabank

    monkeypatch.setenv("TERM", "xterm")
    if not color:
        monkeypatch.setenv("NO_COLOR", "1")
    with terminal(monkeypatch) as written:
        for payload in (*PAYLOADS.values(), ALL):
            monkeypatch.setattr(lorabank, "api", Refusing(payload))
            for path in ("lorabank show", "lorabank predict", "lorabank export", "lorabank restore"):
                main([*path.split()[1:], *words_of(VERBS[path], payload)])
            main([payload])
            main(["list", payload])
    (screen,) = written
    assert "error:" in screen
    # Of our own, the word "error:" is red; anything else would be the payload's.
    assert_harmless(screen.replace("\x1b[31m\x1b[1merror:\x1b[0m", "error:") if color else screen)


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_a_config_file(payload: str, run: Callable[..., Any], empty_folder: Path) -> None:
    quoted = json.dumps(f"x{payload}")
    for content in (
        f"bank = {quoted}",
        f"{quoted} = 1",
        f"[list]\n{quoted} = 2",
        f"[{quoted}]\nbank = 2",
        f"bank = {payload}",
    ):
        (empty_folder / "c.toml").write_bytes(content.encode("utf-8", "surrogatepass"))
        result = run("list", "--config", "c.toml")
        assert_harmless(result.out + result.err)
        assert result.code in (2, 3), result.err


# ------------------------------------------------------------------------------------------- fields of a bank

DIGESTS = {
    "digest",
    "fingerprint",
    "row_digest",
    "statistics",
    "blob",
    "sha256",
    "key",
    "bank_id",
    "id",
    "head_digest",
}
FIXED = DIGESTS | {"state", "split", "task_id", "removed_at", "task_type", "dtype", "columns", "host", "boot_id"}
JSON = {"labels", "target_modules", "penalties", "versions", "config", "metrics", "parameters", "settings", "detail"}
NAMED = {"bank", "base_model", "datasets", "adapters", "tasks", "compositions", "evaluations", "events"}
NUMBERS = {"penalties"}  # objects whose values are shown as numbers


def poison(bank: Path, payload: str) -> None:
    """Put a payload into every text that a bank of somebody else could hold, with digests that fit."""
    plain = payload.encode("utf-8", "replace").decode() if payload.isascii() or "\ud800" in payload else payload
    with closing(sqlite3.connect(bank / "bank.db", isolation_level=None)) as connection:
        connection.row_factory = sqlite3.Row
        for (table,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
            if table == "alembic_version":
                continue
            rows = connection.execute(f"SELECT rowid AS number, * FROM {table}").fetchall()
            for row in rows:
                new = dict(row)
                number = new.pop("number")
                for column, value in new.items():
                    if not isinstance(value, str) or column in FIXED or table in ("adapter_files",):
                        continue
                    if (table, column) == ("events", "created_at"):
                        continue
                    if column in JSON:
                        new[column] = poisoned_json(column, value, payload)
                    elif table in NAMED:
                        unique = f"{number}" if column == "name" and table != "base_model" else ""
                        new[column] = f"{plain}{unique}"
                new = {**new, **sealed(table, {key: value for key, value in new.items() if key != "row_digest"})}
                sets = ", ".join(f'"{column}" = ?' for column in new)
                connection.execute(f"UPDATE {table} SET {sets} WHERE rowid = ?", (*new.values(), number))


def poisoned_json(column: str, value: str, payload: str) -> str:
    found = json.loads(value)
    if isinstance(found, list):
        return canonical([payload, *found[1:]])
    return canonical({**found, payload: 1.0 if column in NUMBERS else payload})


@pytest.fixture
def poisoned(bank: Bank, empty_folder: Path) -> Callable[[str], Path]:
    import shutil

    def make(payload: str) -> Path:
        shutil.rmtree("copy", ignore_errors=True)
        path = Path(shutil.copytree(bank.path, "copy"))
        poison(path, payload)
        return path

    return make


READING = (
    ("list",), ("list", "--json"), ("verify",), ("verify", "--full", "--json"), ("gc", "--dry-run"), ("show", "x"),
    ("remove", "x", "--dry-run"), ("log",), ("log", "--json"), ("undo", "--dry-run"),
    ("backup",), ("report", "report.html"), ("predict", "hello"), ("eval",),
)  # fmt: skip


@pytest.mark.parametrize(
    "payload",
    [pytest.param(ALL, id="all"), *(pytest.param(v, id=k, marks=pytest.mark.slow) for k, v in PAYLOADS.items())],
)
def test_a_bank_full_of_it(payload: str, poisoned: Callable[[str], Path], run: Callable[..., Any]) -> None:
    path = poisoned(payload)
    names = [task.name for task in Bank.open(path).snapshot().tasks]
    assert len(names) == 2
    for line in (*(READING if payload == ALL else READING[:5]), ("show", names[0]), ("show", names[0], "--json")):
        result = run(*line, "--bank", str(path))
        assert_harmless(result.out + result.err)
        assert result.code != 1, (line, result.err)
    with closing(sqlite3.connect(path / "bank.db", isolation_level=None)) as connection:
        connection.execute("DELETE FROM evaluations")  # what was measured is in the report of the next test
    assert run("report", "report.html", "--bank", str(path)).code == 0
    assert_harmless_page(Path("report.html"))


def test_a_report_of_what_was_measured(poisoned: Callable[[str], Path], empty_folder: Path) -> None:
    from lorabank.core.records import EvaluationRecord
    from lorabank.evaluation.confusion import label_detail, label_scores, with_texts
    from lorabank.evaluation.reporting.bank import render_report
    from lorabank.evaluation.text_samples import Sample, TextScores
    from lorabank.workflows.results import MatrixReport

    tasks = tuple(PAYLOADS.values())
    values = [[0.5] * len(tasks)] * (len(tasks) + 1)
    ones = [[1] * len(tasks)] * len(tasks)
    routing = {"oracle": 0.5, "routed": 0.5, "accuracy": 0.5, "confusion": ones, "tasks": list(tasks)}
    given = {"subject": ALL, "mode": ALL, "task_id": ALL, "tasks": tasks, "values": values, "metric": ALL}
    given |= {"low": values, "high": values, "counts": (8,) * len(tasks), "routing": routing}
    given["scalars"] = dict.fromkeys(tasks, 0.5)
    detail = {"labels": label_detail([ALL, "b"], ["b", ALL], [0.5, 0.6])}
    cell = EvaluationRecord(ALL, ALL, 1, ALL, ALL, 0.0, 2, 0.0, 0.6, "given", {}, detail)
    scores = label_scores(cell, (ALL, "b"))
    assert scores is not None
    given["labels"] = {task: with_texts(scores, [ALL, ALL]) for task in tasks}
    given["texts"] = {task: TextScores({ALL: 0.5}, (Sample(1, ALL, ALL, ALL),)) for task in tasks}
    given["environments"] = [
        {"cells": n, "lorabank": ALL, "torch": ALL, "transformers": None, "threads": n} for n in (1, 2)
    ]
    measured = MatrixReport(**{**dict.fromkeys(MatrixReport.__dataclass_fields__), **given})  # type: ignore[arg-type]
    snapshot = Bank.open(poisoned(ALL)).snapshot()
    page = render_report(snapshot, [measured], created_at=ALL, version=ALL)
    path = empty_folder / "report.html"
    path.write_text(page, encoding="utf-8")
    assert_harmless_page(path)


def test_a_bank_full_of_it_on_a_terminal(poisoned: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    path = poisoned(ALL)
    name = Bank.open(path).snapshot().tasks[0].name
    with terminal(monkeypatch) as written:
        for line in (*READING, ("show", name), ("doctor",)):
            main([*line, "--bank", str(path)])
    assert len(written[0]) > 2000
    assert_harmless(written[0])


def test_the_names_of_files(run: Callable[..., Any], bank: Bank, empty_folder: Path) -> None:
    """Files of a bank and beside it that carry a payload as their name."""
    digest = next(iter(bank.snapshot().adapters))
    for payload in PAYLOADS.values():
        name = payload.replace("/", "_").replace("\x00", "_").encode("utf-8", "surrogatepass")[:200]
        stranger = os.path.join(os.fsencode(bank.adapter_path(digest)), name)
        with open(stranger, "wb"), open(name, "wb"):
            pass
        shown_name = os.fsdecode(name)
        for line in (
            ("verify",), ("verify", "--json"), ("restore", shown_name), ("--bank", shown_name, "list"),
            ("backup", shown_name),
            ("doctor", "--repair", "--from", shown_name), ("report", f"no/{shown_name}"),
        ):  # fmt: skip
            result = run(*line)
            assert_harmless(result.out + result.err)
            assert result.code not in (0, 1), (line, result.err)
        if os.path.exists(stranger):
            os.unlink(stranger)
        os.unlink(name)


# ------------------------------------------------------------------------- what the models and the data say


@pytest.mark.parametrize("payload", [*PAYLOADS.values(), ALL], ids=[*PAYLOADS, "all"])
def test_answers_findings_and_progress(payload: str, run: Callable[..., Any], api: Any) -> None:
    from lorabank.core.observer import Observer
    from lorabank.data.asked import given_rows
    from lorabank.workflows.asking.answer_rows import AnsweredRows
    from lorabank.workflows.results import ExportResult, Prediction

    def answering(path: object, config: object, observer: Observer) -> tuple[Prediction, ...]:
        observer.notice(payload)
        observer.start(payload, 2)
        observer.advance(1, {payload: 0.5})
        observer.finish()
        text = {"text": payload, "label": payload, "task": payload, "adapters": {payload: 1.0}, "task_id": "given"}
        return (Prediction(**{**dict.fromkeys(Prediction.__dataclass_fields__), **text, "probability": 0.5}),)

    api["predict"] = api["generate"] = answering
    asked = given_rows([payload])
    api["answer_rows"] = AnsweredRows(("text", payload), iter([[(payload, payload)]]), asked)
    api["verify"] = (Finding(payload, payload, payload, payload),)
    api["remove"] = (payload, payload)
    api["report"] = Path(payload)
    api["export"] = ExportResult(path=payload, files=(payload,), kind=payload, note=payload)
    for line in (
        ("predict", payload), ("generate", payload), ("predict", payload, "--json"), ("verify",), ("report",),
        ("remove", payload, "--dry-run"), ("remove", payload, "--yes"), ("export", payload, payload),
    ):  # fmt: skip
        result = run(*line)
        assert_harmless(result.out + result.err)


@pytest.mark.parametrize("payload", PAYLOADS.values(), ids=PAYLOADS)
def test_cells_of_a_table_are_no_formulas(payload: str, tmp_path: Path) -> None:
    import csv

    import numpy as np

    from lorabank.evaluation.matrix import ScoreMatrix
    from lorabank.evaluation.plots.heatmap import write_csv

    names = tuple(start + payload for start in ("", "=", "+", "-", "@", "\t", "\r"))
    matrix = ScoreMatrix(names, np.full((len(names) + 1, len(names)), -0.5), np.ones(len(names)))
    path = write_csv(matrix, tmp_path / "matrix.csv")
    with path.open(encoding="utf-8", newline="") as file:
        cells = [cell for line in csv.reader(file) for cell in line]
    texts = [cell for cell in cells if cell != "-0.5"]
    assert len(texts) == 1 + 2 * len(names) + 1
    assert not [cell for cell in texts if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]


# ------------------------------------------------------------------------------------------------ by reading


@pytest.mark.parametrize("text", [ALL, *PAYLOADS.values()])
def test_nothing_gets_past_the_last_place(text: str) -> None:
    assert_harmless(shown(text, color=False))
    colored = shown(f"\x1b[31mred\x1b[0m {text}", color=True)
    assert colored.startswith("\x1b[31mred\x1b[0m ")
    assert_harmless(re.sub(r"\x1b\[[0-9;]{1,20}m", "", colored))
    assert shown("a\tb\nc", color=False) == "a\tb\nc"


def test_no_command_writes_past_the_one_output() -> None:
    """Only ``output.py`` writes to a stream, through ``streams.py``; ``main.py`` says fixed words when memory is out,
    ``__main__.py`` where Ctrl-C comes before it.

    ``docs.py`` is a tool of developers, the bar gets escaped words.
    """
    source = Path(__file__).parents[2] / "cli/lorabank_cli"
    found = {}
    for path in source.rglob("*.py"):
        calls = [
            ast.unparse(node.func)
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Call)
        ]
        writes = {"print", "click.echo", "click.secho", "click.echo_via_pager", "sys.stdout.write", "sys.stderr.write"}
        writes |= {"click.confirm", "click.prompt", "click.progressbar", "os.write"}
        if used := writes & set(calls):
            found[str(path.relative_to(source))] = used
    assert found == {
        "render/output.py": {"click.echo"},
        "render/streams.py": {"os.write"},
        "__main__.py": {"os.write"},
        "main.py": {"os.write"},
        "docs.py": {"click.echo"},
        "verb.py": {"click.confirm"},
        "render/progress.py": {"click.echo", "click.progressbar"},
    }
