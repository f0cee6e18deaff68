"""log, undo, rename, note and tag as they are typed."""

from __future__ import annotations

from typing import Any

import pytest

from lorabank.bank.bank import Bank


def test_log_shows_the_newest_first_and_what_is_next(run: Any, bank: Bank) -> None:
    bank.remove("spam", cascade=True)
    lines = run("log").out.splitlines()
    assert lines[0] == "history of bank, newest first"
    assert lines[1].split() == ["#", "when", "(UTC)", "change", "name", "what", "undo"]
    assert [line.split()[3:5] for line in lines[2:6]] == [
        ["remove", "spam"],
        ["compose", "both"],
        ["add-task", "spam"],
        ["add-task", "sentiment"],
    ]
    assert lines[2].endswith("gone: both  next")
    assert len(lines) == 7
    limited = run("log", "--limit", "2").out.splitlines()
    assert [line.split() for line in limited[2:4]] == [line.split() for line in lines[2:4]]
    assert limited[4:] == ["(3 older)", "all:", "  lorabank log"]


def test_log_says_what_an_undo_brought_back(run: Any, bank: Bank) -> None:
    bank.remove("spam", cascade=True)
    bank.undo()
    assert "back: spam, both" in run("log", "--limit", "1").out


def test_a_removed_name_is_said_to_be_removed(run: Any, bank: Bank) -> None:
    bank.remove("spam", cascade=True)
    for words in (("show", "spam"), ("predict", "--task", "spam", "x"), ("predict", "--composition", "both", "x")):
        missing = run(*words)
        assert missing.code == 3
        assert "it was removed" in missing.err.splitlines()[0]
        assert [line.strip() for line in missing.err.splitlines()[-2:]] == ["lorabank list --all", "lorabank log"]


def test_log_as_json_has_everything(run: Any, bank: Bank) -> None:
    bank.remove("both")
    bank.undo()
    changes = run("log", "--json").document["changes"]
    assert [change["kind"] for change in changes] == ["undo", "remove", "compose", "add-task", "add-task", "init"]
    assert [change["next"] for change in changes] == [False, False, True, False, False, False]
    assert changes[0]["added"] == changes[1]["removed"] == ["both"]
    assert (changes[0]["undoes"], changes[1]["undone_by"]) == (5, 6)


def test_undo_asks_and_says_what_came_back(run: Any, bank: Bank) -> None:
    bank.remove("spam", cascade=True)
    planned = run("undo", "--dry-run")
    assert planned.out.startswith("would undo remove spam of ")
    assert planned.out.splitlines()[1] == "  back  spam, both"
    refused = run("undo")
    assert (refused.code, "add --yes" in refused.err) == (2, True)
    assert [task.name for task in bank.snapshot().tasks] == ["sentiment"]
    done = run("undo", "--yes", "--json")
    assert done.document["back"] == ["spam", "both"]
    assert done.document["event"]["kind"] == "remove"
    assert [task.name for task in bank.snapshot().tasks] == ["sentiment", "spam"]


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 0), ("n\n", 130, 1)])
def test_undo_on_a_terminal(
    run: Any, bank: Bank, terminal: Any, monkeypatch: pytest.MonkeyPatch, answer: str, code: int, left: int
) -> None:
    terminal("stdin")
    monkeypatch.setattr("lorabank_cli.verb.click.confirm", confirm(answer == "y\n"))
    assert run("undo").code == code
    assert len(bank.snapshot().compositions) == left


def confirm(answer: bool) -> Any:
    import click

    def ask(*_: object, **__: object) -> bool:
        if not answer:
            raise click.Abort
        return True

    return ask


def test_nothing_to_undo_is_one_line(run: Any, bank: Bank) -> None:
    for _ in range(3):
        assert run("undo", "--yes").code == 0
    ended = run("undo", "--yes")
    assert ended.code == 3
    assert ended.err.splitlines()[0] == "error: there is nothing to undo"


def test_gc_says_what_cannot_be_undone_after_it(run: Any, bank: Bank) -> None:
    bank.remove("spam", cascade=True)
    shown = run("gc", "--dry-run", "--grace-hours", "0")
    last = shown.out.splitlines()[-1]
    assert last.startswith("undo will no longer be able to revert: remove spam (change 5), compose both (change 4), ")
    assert run("gc", "--grace-hours", "0", "--yes", "--json").document["lost"][0] == "remove spam (change 5)"
    assert run("undo", "--yes").code == 3


def test_rename_note_and_tag(run: Any, bank: Bank) -> None:
    assert run("rename", "spam", "mail").out == "renamed spam to mail in bank\n"
    assert run("note", "mail", "from 2025").out == "mail: from 2025\n"
    assert run("tag", "mail", "prod", "late").out == "mail: late, prod\n"
    assert run("tag", "mail", "--remove", "late", "--json").document == {"name": "mail", "tags": ["prod"]}
    task = bank.snapshot().task("mail")
    assert (task.note, task.tags, task.first_name) == ("from 2025", ("prod",), "spam")
    lines = run("log").out.splitlines()[2:6]
    assert [line.split()[3:5] for line in lines] == [
        ["tag", "mail"],
        ["tag", "mail"],
        ["note", "mail"],
        ["rename", "spam"],
    ]
    assert "tags: late,prod -> prod" in lines[0]
    assert "note: - -> from 2025" in lines[2]
    assert "name: spam -> mail" in lines[3]
    added = next(line for line in run("log").out.splitlines() if "add-task" in line)
    assert added.split()[3:5] == ["add-task", "spam"]
    assert "now called: mail" in added
    assert run("note", "mail", "").out == "mail has no note\n"
    assert run("tag", "mail", "--remove", "prod").out == "mail has no tags\n"


def test_rename_note_and_tag_refuse_in_one_line(run: Any, bank: Bank) -> None:
    for words, code in (
        (("rename", "spam", "sentiment"), 4),
        (("rename", "span", "x"), 3),
        (("rename", "spam", "A B"), 2),
        (("note", "spam", "x" * 2001), 2),
        (("tag", "spam"), 2),
        (("tag", "spam", "Not this"), 2),
        (("tag", "spam", "--remove", "x"), 3),
    ):
        refused = run(*words)
        assert refused.code == code, refused.err
        assert refused.err.startswith("error: ")
    assert len(bank.history()) == 4
