"""After a rename every answer and every score is what it was, and nothing is computed again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig, EvalConfig
from lorabank.workflows.results import MatrixReport
from tests.contract.conftest import Lab
from tests.contract.test_resume import learnt, stop

WHOLE = EvalConfig(all=True, forgetting_matrix=True, device="cpu")


@pytest.fixture(scope="module")
def composed(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks, three compositions that keep something of their members, and every score."""
    path = Path(shutil.copytree(lab.bank("isolated", 2), tmp_path_factory.mktemp("composed") / "bank"))
    for config in (
        ComposeConfig(mode="prototype", device="cpu", set=("clusters_per_task=2",)),
        ComposeConfig(mode="prototype", router="gaussian", name="routed", device="cpu"),
        ComposeConfig(mode="manual", set=("weights=one=0.25,two=1.5",), device="cpu"),
    ):
        api.compose(path, config)
    api.evaluate(path, WHOLE)
    return path


def said(bank: Path, texts: list[str], names: dict[str, str]) -> list[object]:
    """Answers of every composition and task, names as they were."""
    found: list[object] = []
    for name in ("prototype", "routed", "manual"):
        for one in api.predict(bank, texts, api_config(composition=names.get(name, name))):
            found.append((name, one.label, one.probability))
    for name in ("one", "two"):
        found += [
            (name, one.label, one.probability)
            for one in api.predict(bank, texts, api_config(task=names.get(name, name)))
        ]
    return found


def api_config(**settings: str) -> object:
    from lorabank.core.config import PredictConfig

    return PredictConfig(device="cpu", **settings)  # type: ignore[arg-type]


def numbers(report: MatrixReport) -> tuple[object, ...]:
    routing = {key: value for key, value in (report.routing or {}).items() if key != "tasks"}
    return report.values, report.low, report.high, report.scalars, routing


def test_a_rename_changes_no_answer_and_no_score(composed: Path, texts: list[str], tmp_path: Path) -> None:
    bank = Path(shutil.copytree(composed, tmp_path / "bank"))
    before, answers = api.evaluate(bank, WHOLE), said(bank, texts, {})
    names = {"one": "two-b", "two": "one", "routed": "router"}  # one name is taken by the other task
    api.rename(bank, "one", "two-b")
    api.rename(bank, "two", "one")
    api.rename(bank, "routed", "router")
    after = api.evaluate(bank, WHOLE)
    assert sum(report.computed for report in after) == 0
    assert [numbers(report) for report in after] == [numbers(report) for report in before]
    assert [report.subject for report in after] == [names.get(report.subject, report.subject) for report in before]
    assert all(report.tasks == ("two-b", "one") for report in after)
    assert said(bank, texts, names) == answers
    assert Bank.open(bank).verify(full=True) == []
    for _ in range(3):
        api.undo(bank)
    assert [numbers(report) for report in api.evaluate(bank, WHOLE)] == [numbers(report) for report in before]
    assert said(bank, texts, {}) == answers


def test_a_run_is_resumed_after_a_rename(lab: Lab, copy: Callable[[str, int], Path]) -> None:
    whole = learnt(Bank.open(lab.bank("olora", 2)).snapshot().adapter_of("two"))
    bank = stop(lab, copy("olora", 1), "two", "olora")
    api.rename(bank, "one", "first")
    assert learnt(api.add_task(bank, "two", None, resume=True, note="late", tags=["x"]).adapter) == whole
    assert Bank.open(bank).snapshot().task("two")[-4:-2] == ("late", ("x",))
