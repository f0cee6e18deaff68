"""Files as people have them, from the command line to the record: read, said, left out, counted, resumed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from lorabank_cli.main import main

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import InitConfig, TrainConfig
from lorabank.core.observer import SilentObserver
from lorabank.workflows.learning import train
from tests.contract.conftest import SETTINGS, Lab

NEW = ("skip_bad", "map")
OLD = {
    "delimiter": None, "encoding": None, "sheet": None, "prompt_template": None, "label_words": None,
    "chat_template": "auto", "max_new_tokens": 50, "lambda_l1": 1e-3, "lambda_l2": 0.0, "replay_rows": 200,
}  # fmt: skip
"""Settings that are those of methods now, as records of older versions hold them."""
ROWS = [(f"größe {i} {'abc'[i % 3]}", ("Ä", "B", "C")[i % 3]) for i in range(24)]
EXCEL = "Betreff;Kategorie\r\n" + "".join(f'"{text}";{label}\r\n' for text, label in ROWS) + ";Ä\r\nkein Etikett;\r\n"
READ = ("--text-column", "betreff", "--label-column", "Kategorie", "--encoding", "cp1252", "--skip-bad")
FAST = ("--epochs", "1", "--r", "2", "--keep-samples", "8", "--clusters-per-task", "2", "--device", "cpu", "-q")


class Heard(SilentObserver):
    """Keeps what was said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def notice(self, message: str) -> None:
        self.lines.append(message)


@pytest.fixture
def tickets(tmp_path: Path) -> Path:
    path = tmp_path / "tickets.csv"
    path.write_bytes(EXCEL.encode("cp1252"))
    return path


def document(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    code = main([*words, "--json"])
    out = capsys.readouterr().out
    assert code == 0, out
    return json.loads(out)


def test_a_file_of_excel_is_planned_trained_and_recorded(
    lab: Lab, tickets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bank = str(tmp_path / "bank")
    words = ("-b", bank, "add-task", "tickets", "--data", str(tickets), "--base", str(lab.base), *READ, *FAST)
    said = [f"{str(tickets)!r} is read as CSV separated by ';', encoding cp1252",
            f"{str(tickets)!r}: the column 'Betreff' is read as 'betreff'"]  # fmt: skip
    plan = document(capsys, *words, "--dry-run")
    done = document(capsys, *words)
    for found in (plan, done):
        assert found["read_as"] == said
        (left,) = found["bad_rows"]
        assert (left["source"], left["rows"]) == (str(tickets), 2)
        assert left["first"] == ["line 26, column 'Betreff': the text is empty",
                                 "line 27, column 'Kategorie': the label is empty"]  # fmt: skip
        assert set(found["label_counts"]) == {"Ä", "B", "C"}
        assert sum(sum(split.values()) for split in found["label_counts"].values()) == len(ROWS)
        assert any("fewer than 10 training rows" in line for line in found["warnings"])
    record = api.show(bank, "tickets")["adapter"]
    assert record["metrics"]["bad_rows"] == done["bad_rows"]
    assert (record["config"]["set"], record["config"]["skip_bad"]) == (["*.encoding=cp1252"], True)


def test_everything_is_said_before_the_training(lab: Lab, tickets: Path, tmp_path: Path) -> None:
    heard = Heard()
    config = TrainConfig(
        data=str(tickets), text_column="Betreff", label_column="Kategorie", set=("encoding=cp1252",), skip_bad=True,
        **{**SETTINGS, "epochs": 1},
    )  # fmt: skip
    api.add_task(tmp_path / "bank", "tickets", config, init=InitConfig(base=str(lab.base)), observer=heard)
    for part in ("separated by ';'", "2 bad rows are left out: line 26", "fewer than 10 training rows"):
        assert any(part in line for line in heard.lines), part


def test_a_workbook_and_a_packed_file_are_tasks_too(lab: Lab, tmp_path: Path) -> None:
    import gzip

    made = openpyxl.Workbook()
    for row in (("Text", "Label"), *ROWS):
        made.active.append(row)
    made.save(tmp_path / "x.xlsx")
    lines = "".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in ROWS)
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    init = InitConfig(base=str(lab.base))
    digests = set()
    for name in ("x.xlsx", "x.jsonl.gz"):
        config = TrainConfig(data=str(tmp_path / name), **{**SETTINGS, "epochs": 1})
        result = api.add_task(tmp_path / name.replace(".", "-"), "one", config, init=init)
        digests.add((result.adapter.digest, *(split.sha256 for split in result.datasets)))
    assert len(digests) == 1, "the same rows make the same adapter"


def test_a_run_that_an_older_version_began_is_resumed(
    lab: Lab, copy: Callable[[str, int], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stop(SilentObserver):
        def advance(self, done: int, values: object) -> None:
            if done == 3:
                raise KeyboardInterrupt

    stored = train._stored

    def older(config: TrainConfig, *rest: Any) -> dict[str, Any]:
        found = stored(config, *rest)
        found["config"] = {key: value for key, value in asdict(config).items() if key not in NEW} | OLD
        return found

    bank = copy("olora", 1)
    plain = Path(shutil.copytree(bank, tmp_path / "plain"))
    with monkeypatch.context() as patch:
        patch.setattr(train, "_stored", older)
        with pytest.raises(KeyboardInterrupt):
            lab.add(bank, "two", Stop(), save_steps=2)
    again = lab.settings("two", save_steps=2)
    api.add_task(bank, "two", again, resume=True)
    lab.add(plain, "two", save_steps=2)
    first, second = (Bank.open(path).snapshot().adapter_of("two").digest for path in (bank, plain))
    assert first == second
