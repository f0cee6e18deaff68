"""The current folder decides nothing that was not typed: a ``./bank`` of another user must be named."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.shell_completion import ShellComplete
from lorabank_cli.main import cli

from lorabank.bank.bank import Bank


@pytest.fixture
def somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who runs the command is neither the owner of the files nor root; the files look as if another user had them."""
    found = os.stat
    mine = os.geteuid()

    def stat(path: Any, *args: Any, **options: Any) -> os.stat_result:
        status = found(path, *args, **options)
        other = os.path.basename(os.fspath(path)) == "bank" if isinstance(path, str | Path) else False
        return os.stat_result((*status[:4], mine + 1, *status[5:10])) if other else status

    monkeypatch.setattr(os, "stat", stat)


def test_a_bank_of_another_user_is_opened_when_it_is_named(
    bank: Bank, run: Callable[..., Any], empty_folder: Path, somebody_else: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for line in (("list",), ("verify",), ("show", "spam"), ("add-task", "x", "--data", "x.jsonl")):
        result = run(*line)
        assert result.code == 2, result.err
        assert f"bank belongs to another user ({os.geteuid() + 1})" in result.err
        assert "lorabank --bank bank" in result.err
    assert run("limits").code == 0
    assert run("list", "--bank", "bank").code == 0
    assert run("--bank", "bank", "list").code == 0
    monkeypatch.setenv("LORABANK_BANK", "bank")
    assert run("list").code == 0


def offered() -> list[str]:
    completion = ShellComplete(cli, {"auto_envvar_prefix": "LORABANK"}, "lorabank", "_LORABANK_COMPLETE")
    return [item.value for item in completion.get_completions(["show"], "")]


def test_completion_opens_no_bank_of_another_user(
    bank: Bank, empty_folder: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {"sentiment", "spam"} <= set(offered())
    request.getfixturevalue("somebody_else")
    assert offered() == []
    monkeypatch.setenv("LORABANK_BANK", "bank")
    assert {"sentiment", "spam"} <= set(offered())
