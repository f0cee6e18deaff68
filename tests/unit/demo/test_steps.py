"""The demo says what it does, which step it is at and how long the rest takes, by the pace of this machine."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorabank.core.observer import SilentObserver
from lorabank.demo import run as demo_run
from lorabank.demo.run import COMPOSITIONS, TASKS, demo
from lorabank.demo.steps import Step, Steps


class Heard(SilentObserver):
    def __init__(self) -> None:
        self.said: list[str] = []

    def notice(self, message: str) -> None:
        self.said.append(message)

    def start(self, what: str, total: int) -> None:
        self.said.append(f"[{what} {total}]")

    def advance(self, done: int, values: Any) -> None:
        self.said.append(str(done))

    def finish(self) -> None:
        self.said.append("finished")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("lorabank.demo.steps.time.monotonic", lambda: now[0])
    return now


def test_the_first_steps_tell_how_long_all_takes_and_each_step_how_long_is_left(clock: list[float]) -> None:
    heard = Heard()
    steps = Steps(heard, "demo", [Step("one", {"training": 90.0, "": 10.0}), Step("two", {"training": 300.0})])
    clock[0] += 500  # a model is loaded
    steps.begin()
    steps.start("training (olora)", 90)
    for done in range(1, 11):
        clock[0] += 2
        steps.advance(done, {})
    # 8 of 90 units took 16 s: 2 s for each of the 400; a unit is 2.5 thousandths of the whole
    whole = "at the pace of these first steps the whole takes about 13 min"
    assert heard.said == [
        "step 1 of 2: one", "[demo 1000]", "2", "5", "7", "10", "12", "15", "17", whole, "20", "22", "25",
    ]  # fmt: skip
    steps.finish()
    clock[0] += 180  # 200 s for 100 units
    steps.begin()
    assert heard.said[-1] == "step 2 of 2: two (about 10 min left)"
    steps.start("training", 9)
    steps.advance(9, {})
    assert heard.said[-1] == "1000"
    assert sum("pace" in line for line in heard.said) == 1
    assert "finished" not in heard.said
    steps.close()
    assert heard.said[-1] == "finished"


def test_the_progress_of_several_jobs_never_falls(clock: list[float]) -> None:
    heard = Heard()
    steps = Steps(
        heard, "demo", [Step("one", {"training": 60.0, "scoring": 40.0, "": 20.0}), Step("two", {"a": 80.0})]
    )
    steps.begin()
    for job, total in (("training", 3), ("unknown", 5), ("scoring", 4)):
        steps.start(job, total)
        for done in range(1, total + 1):
            clock[0] += 1
            steps.advance(done, {})
        steps.finish()
    steps.begin()
    steps.start("a", 0)
    shown = [int(line) for line in heard.said if line.isdigit()]
    assert shown == sorted(shown)
    assert [shown[k] for k in (2, 7, 11)] == [300, 300, 500]


def test_what_was_done_before_says_nothing_about_the_pace(clock: list[float]) -> None:
    heard = Heard()
    steps = Steps(heard, "demo", [Step(name, {"training": 100.0}, name == "one") for name in ("one", "two", "three")])
    steps.begin()
    steps.start("training", 4)
    clock[0] += 40
    steps.advance(4, {})  # a job shorter than the first units
    steps.finish()
    steps.begin()
    assert heard.said == [
        "step 2 of 3: two", "[demo 1000]", "at the pace of these first steps the whole takes about 80 s",
        "500", "step 3 of 3: three (about 40 s left)",
    ]  # fmt: skip


def test_nothing_was_left_to_do() -> None:
    heard = Heard()
    Steps(heard, "demo", [Step("one", {"training": 1.0}, True)]).close()
    assert heard.said == []


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The demo without models: what is learnt and composed is only noted."""
    did: list[str] = []
    banks: dict[Path, list[str]] = {}

    def learn(bank: Path, task: str, config: Any, init: Any, observer: Any) -> None:
        banks.setdefault(bank, []).append(task)
        did.append(f"{bank.name} {task} {config.epochs} {config.seed}")

    def compose(bank: Path, config: Any, observer: Any) -> None:
        banks[bank].append(config.mode)
        did.append(f"{bank.name} {config.mode} {config.seed}")

    def measure(bank: Path, compositions: Any, *, seed: int, observer: Any) -> list[Any]:
        names = ("average_accuracy", "learning_accuracy", "backward_transfer", "forgetting")
        scalars = dict.fromkeys(names, 0.5)
        subjects = ["as-trained", *(config.name for config in compositions)]
        last = {"tasks": TASKS, "values": [[0.25] * 4], "task_id": "given", "routing": None}
        return [SimpleNamespace(subject=s, scalars=scalars, **last) for s in subjects]

    monkeypatch.setattr(demo_run, "learn", learn)
    monkeypatch.setattr(demo_run, "learnt_tasks", lambda bank: banks.get(bank, ()))
    monkeypatch.setattr(demo_run, "_composed", lambda bank: banks.get(bank, ()))
    monkeypatch.setattr(demo_run, "_compose", compose)
    monkeypatch.setattr(demo_run, "measure", measure)
    monkeypatch.setattr("lorabank.workflows.publish.save_plot", lambda report, path: path)
    monkeypatch.setattr(demo_run, "write_report", lambda banks, path: path)
    return did


def test_the_demo_counts_its_steps_skips_what_is_there_and_writes_its_table(fake: list[str], tmp_path: Path) -> None:
    heard = Heard()
    result = demo(tmp_path, seed=3, epochs=None, observer=heard)
    learnt = [[f"{bank} {task} 3.0 3" for task in TASKS] for bank in ("seqlora", "olora")]
    assert fake == [*learnt[0], *learnt[1], *(f"olora {config.mode} 3" for config in COMPOSITIONS)]
    steps = [line for line in heard.said if line.startswith("step ")]
    assert len(steps) == 2 * len(TASKS) + len(COMPOSITIONS) + 2
    assert [line.split(":")[0] for line in steps] == [f"step {k} of {len(steps)}" for k in range(1, len(steps) + 1)]
    assert "step 2 of 13: seqlora learns spam" in steps[1]
    plan = heard.said[: heard.said.index(steps[0])]
    assert "13 steps" in plan[0]
    assert "ten minutes" in plan[0]
    assert str(tmp_path) in plan[-1], "it begins with what it will do"
    assert result.paths[-2:] == (str(tmp_path / "table.md"), str(tmp_path / "report.html"))
    page = (tmp_path / "table.md").read_text(encoding="utf-8").splitlines()
    assert page[4].startswith("|  | task id | sentiment | spam | products | tweets | average | forgotten |")
    assert page[6] == (
        "| one adapter for all tasks (seqlora) | given | 0.2500 | 0.2500 | 0.2500 | 0.2500 | 0.5000 | 0.5000 |"
    )
    assert "| seqlora | as-trained | given | 0.5000 | 0.5000 | 0.5000 | 0.5000 |  |  |" in page
    assert len([line for line in page if line.startswith("| olora")]) == 4

    del fake[:]
    heard = Heard()
    demo(tmp_path, seed=3, epochs=None, observer=heard)
    assert fake == []
    assert [line.split(":")[0] for line in heard.said if line.startswith("step")] == ["step 5 of 13", "step 13 of 13"]
