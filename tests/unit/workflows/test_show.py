"""show and doctor: everything that is stored, by names people use, and nothing changed."""

from __future__ import annotations

import json

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import EvalConfig
from lorabank.core.errors import NotFoundError
from lorabank.workflows.doctor import PACKAGES
from lorabank.workflows.show import _task, find_named, listed


def test_a_task_with_all_that_is_known_of_it(bank, compose) -> None:
    compose("manual", name="mixed")
    shown = api.show(bank, "second")
    snapshot = Bank.open(bank).snapshot()
    adapter = snapshot.adapter_of("second")
    assert shown["task"] == snapshot.task("second")._asdict()
    assert shown["path"] == str(bank / "adapters" / adapter.digest)
    assert [dataset["split"] for dataset in shown["datasets"]] == ["train", "eval", "calibration"]
    assert {dataset["task"] for dataset in shown["datasets"]} == {"second"}
    assert shown["compositions"] == ["mixed"]
    # names instead of digests
    assert shown["adapter"]["context"] == ["first"]
    assert shown["overlap"] == {"first": adapter.metrics["overlap"][snapshot.adapter_of("first").digest]}
    assert "overlap" not in shown["adapter"]["metrics"]
    assert shown["adapter"]["metrics"]["capacity_left"] == adapter.metrics["capacity_left"]
    assert (shown["adapter"]["r"], shown["adapter"]["files"]) == (3, adapter.files)
    json.dumps(shown, allow_nan=False)


def test_scores_are_those_on_the_task_or_of_the_composition(bank, compose) -> None:
    (before,) = api.show(bank, "first")["scores"]
    assert (before["subject"], before["stage"], before["task"]) == ("as-trained", 1, "first")
    compose("manual", name="mixed", set=("weights=first=1,second=2",))
    (report,) = api.evaluate(bank, EvalConfig(compositions=("mixed",), device="cpu"))
    scores = api.show(bank, "mixed")["scores"]
    assert [(score["task"], score["stage"], score["value"]) for score in scores] == [
        ("first", 2, report.values[2][0]),
        ("second", 2, report.values[2][1]),
    ]
    assert [score["subject"] for score in api.show(bank, "second")["scores"]] == ["as-trained", "mixed"]


def test_a_composition_names_its_members(bank, compose) -> None:
    compose("manual", name="mixed", set=("weights=first=0.5,second=-1",))
    shown = api.show(bank, "mixed")
    assert "task" not in shown
    assert (shown["composition"]["name"], shown["composition"]["mode"]) == ("mixed", "manual")
    assert shown["composition"]["parameters"]["weights"] == {"first": 0.5, "second": -1.0}
    snapshot = Bank.open(bank).snapshot()
    assert shown["members"] == [
        {"task": name, "adapter": snapshot.adapter_of(name).digest, "strategy": "olora"}
        for name in ("first", "second")
    ]
    assert shown["path"] == str(bank)
    json.dumps(shown, allow_nan=False)


def test_a_continued_adapter_names_what_it_continues(bank, rows) -> None:
    from lorabank.core.config import TrainConfig

    settings = {"r": 3, "lora_alpha": 6.0, "use_rslora": True, "epochs": 1, "device": "cpu", "max_length": 16}
    config = TrainConfig(data=str(rows("third.jsonl", ("no", "yes"))), strategy="seqlora", **settings)
    api.add_task(bank, "third", config)
    assert api.show(bank, "third")["adapter"]["metrics"]["continued_from"] == "second"


def test_an_unknown_name(bank, compose) -> None:
    compose("manual", name="mixed")
    snapshot = Bank.open(bank).snapshot()
    with pytest.raises(NotFoundError, match=r"'mixd'\. Did you mean 'mixed'\? The bank has: first, second, mixed"):
        find_named(snapshot, "mixd")


def test_an_unknown_name_among_many_names_the_first_few(bank) -> None:
    error = Bank.open(bank).snapshot().unknown("task", "x", (f"task-{i}" for i in range(50)))
    assert error.message == "no task 'x'. The bank has: task-0, task-1, task-2, task-3, task-4, ... (50 in all)"


def test_overlaps_are_shown_largest_first(bank) -> None:
    opened = Bank.open(bank)
    snapshot = opened.snapshot()
    adapter = snapshot.adapter_of("second")._replace(metrics={"overlap": {"a": 0.1, "b": 0.3, "c": 0.2}})
    shown = _task(opened, snapshot._replace(by_position=snapshot.by_position | {2: adapter}), snapshot.task("second"))
    assert list(shown["overlap"]) == ["b", "c", "a"]


def test_many_names_are_cut_short() -> None:
    assert listed(["a", "b"]) == "a, b"
    assert listed([str(i) for i in range(30)], most=3) == "0, 1, 2, ... (30 in all)"


def facts(path) -> dict[str, str]:
    told = api.doctor(path).facts
    names = [name for name, _ in told]
    assert len(set(names)) == len(names)
    return dict(told)


def test_the_doctor_tells_versions_devices_and_bank_and_changes_nothing(bank, tree) -> None:
    import torch

    before = tree(bank)
    told = facts(bank)
    assert told["torch"] == torch.__version__
    assert told.keys() > set(PACKAGES)
    assert told["devices"].startswith("cpu (")
    assert told["cpu dtype"].startswith("float32")
    assert told["bank state"] == "format 1, schema 0005, 2 tasks, 0 compositions; quick check: no findings"
    assert told["operations"] == "none under way"
    base = Bank.open(bank).snapshot().base
    assert told["base model"] == f"{base.name}: {base.name} (local)"
    assert tree(bank) == before


def test_the_doctor_needs_no_bank(tmp_path) -> None:
    told = facts(tmp_path / "none")
    assert told["bank state"] == "there is none"
    assert told["base model"].startswith("sentence-transformers/all-MiniLM-L6-v2: ")
    assert not (tmp_path / "none").exists()


def test_the_doctor_tells_what_is_wrong_with_a_bank(bank) -> None:
    adapter = Bank.open(bank).snapshot().adapter_of("first")
    (bank / "adapters" / adapter.digest / "adapter_model.safetensors").unlink()
    assert facts(bank)["bank state"].endswith("quick check: 1 finding")
    (bank / "bank.db").write_bytes(b"not a database at all" * 100)
    (finding,) = api.doctor(bank).findings
    assert facts(bank)["bank state"] == finding.message
    assert finding.message.endswith(": file is not a database")
    assert list(map(str, finding.commands)) == ["lorabank doctor --repair", "lorabank restore BACKUP"]


def test_the_doctor_tells_of_operations_and_of_a_missing_base(bank, monkeypatch, tmp_path) -> None:
    from lorabank.models.bases import resolving

    opened = Bank.open(bank)
    name = opened.snapshot().base.name
    monkeypatch.setattr(resolving, "find_on_disk", lambda *_: None)
    monkeypatch.setattr("lorabank.models.bases.hub.hub_reachable", lambda: False)
    with opened.reserve("compose", "mixed", {}):
        told = facts(bank)
        assert "compose mixed since" in told["operations"]
        assert ", process " in told["operations"]
    assert told["base model"] == f"{name}: not on this disk, the hub does not answer"


def test_the_doctor_names_what_was_interrupted() -> None:
    from lorabank.core.records import OperationRecord
    from lorabank.workflows.doctor import _operation

    began = "2026-01-02T03:04:05.000000+00:00"
    dead = OperationRecord("0" * 32, "add-task", "spam", 1, "b", "h", {}, began, alive=False)
    assert _operation(dead) == "add-task spam since 2026-01-02T03:04:05Z, interrupted"


def test_a_package_that_is_missing_is_told(monkeypatch, tmp_path) -> None:
    from importlib.metadata import PackageNotFoundError

    from lorabank.workflows import doctor as checkup

    def version(package: str) -> str:
        if package == "peft":
            raise PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(checkup, "version", version)
    assert facts(tmp_path / "none")["peft"] == "not installed"
    assert "peft is not installed: pip install peft" in api.doctor(tmp_path / "none").warnings
