"""Cells say what they were computed with; where those of one matrix differ in it, it is told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from lorabank_cli.commands.eval import _text
from lorabank_cli.main import main

from lorabank import __version__, api
from lorabank.bank.bank import Bank
from lorabank.bank.catalog import reading
from lorabank.core.config import EvalConfig
from lorabank.core.records import EvaluationRecord
from lorabank.evaluation.environments import KEY, environments_of, mixed
from lorabank.workflows import evaluate

MATRIX = EvalConfig(forgetting_matrix=True, device="cpu")


@pytest.fixture
def unknown(copy, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bank whose cells were stored before they said anything."""
    bank: Path = copy("olora", 2)
    sound = reading.EvaluationRecord

    def silent(*, detail: dict[str, Any], **others: Any) -> EvaluationRecord:
        return sound(**others, detail={key: value for key, value in detail.items() if key != KEY})

    monkeypatch.setattr(reading, "EvaluationRecord", silent)
    return bank


def test_a_cell_keeps_versions_and_threads(copy) -> None:
    (report,) = api.evaluate(copy("olora", 2), MATRIX)
    here = {"lorabank": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    assert report.environments == ({"cells": 3, **here, "threads": torch.get_num_threads()},)
    assert mixed(report.environments) is None
    assert "environments" not in _text([report], {}, False)


def test_cells_of_two_environments_are_told_everywhere(
    copy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    bank = copy("olora", 2)  # each task's own cell is there already
    there = len(Bank.open(bank).all_evaluations())
    other = {"lorabank": "0.0.9", "torch": "2.0.1", "transformers": "4.40.0", "threads": 7}
    monkeypatch.setattr(evaluate, "this_environment", lambda threads: other)
    (report,) = api.evaluate(bank, MATRIX)
    assert [one["cells"] for one in report.environments] == [there, 3 - there]
    assert report.environments[1] == {"cells": 3 - there, **other}
    told = "1 cell with lorabank 0.0.9, torch 2.0.1, transformers 4.40.0, 7 threads"
    assert main(["--bank", str(bank), "eval", "--forgetting-matrix", "--device", "cpu"]) == 0
    assert told in capsys.readouterr().out
    assert main(["--bank", str(bank), "report", str(tmp_path / "report.html")]) == 0
    assert told in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_older_cells_stay_valid_and_say_unknown(unknown: Path) -> None:
    (report,) = api.evaluate(unknown, MATRIX)
    (again,) = api.evaluate(unknown, MATRIX)
    assert (again.computed, again.cached) == (0, 3)
    assert again.environments == (
        {"cells": 3, "lorabank": None, "torch": None, "transformers": None, "threads": None},
    )
    assert "2 cells unknown" in (mixed(report.environments) or "")


def test_what_a_prepared_cell_says_is_read_with_care(unknown: Path) -> None:
    records = Bank.open(unknown).all_evaluations()
    for said in ("text", ["list"], {"torch": ["a"], "threads": {}}, None):
        assert environments_of([records[0]._replace(detail={KEY: said})])[0]["torch"] is None
