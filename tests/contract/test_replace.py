"""add-task --replace: the new version is trained as if the old one had been removed, which answers meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from lorabank_cli.main import main

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import ExistsError
from lorabank.core.observer import SilentObserver
from tests.contract.conftest import Lab
from tests.contract.test_resume import STEPS, Stop, learnt

OTHER = {"seed": 3}


class Watcher(SilentObserver):
    """Looks at the bank while an adapter is trained."""

    def __init__(self, bank: Path) -> None:
        self.bank = bank
        self.seen: set[tuple[int, ...]] = set()

    def start(self, what: str, total: int) -> None:
        if what.startswith("training"):
            self.seen.add(tuple(task.position for task in Bank.open(self.bank).snapshot().tasks))


@pytest.mark.by_turns
@pytest.mark.parametrize("strategy", ["isolated", "olora", "seqlora", "replay", "inflora", "amlora"])
def test_it_is_trained_as_if_the_old_version_had_been_removed(
    lab: Lab, copy: Callable[[str, int], Path], strategy: str, tmp_path: Path
) -> None:
    bank = copy(strategy, 2)
    removed = Path(shutil.copytree(bank, tmp_path / "removed"))
    watcher = Watcher(bank)
    settings = lab.settings("two", strategy=strategy, **OTHER)
    new = api.add_task(bank, "two", settings, replace=True, observer=watcher)
    assert (new.task.position, new.task.replaces) == (3, 2)
    assert watcher.seen == {(1, 2)}
    api.remove(removed, "two")
    assert learnt(new.adapter) == learnt(lab.add(removed, "two", strategy=strategy, **OTHER).adapter)
    assert Bank.open(bank).verify(full=True) == []


def test_an_interrupted_replacement_is_resumed(lab: Lab, copy: Callable[[str, int], Path], tmp_path: Path) -> None:
    bank = copy("olora", 2)
    whole = Path(shutil.copytree(bank, tmp_path / "whole"))
    settings = lab.settings("two", strategy="olora", **OTHER, **STEPS)
    expected = api.add_task(whole, "two", settings, replace=True)
    with pytest.raises(KeyboardInterrupt):
        api.add_task(bank, "two", settings, replace=True, observer=Stop())
    assert [task.position for task in Bank.open(bank).snapshot().tasks] == [1, 2]
    resumed = api.add_task(bank, "two", None, resume=True)
    assert learnt(resumed.adapter) == learnt(expected.adapter)
    assert resumed.task.replaces == 2
    api.undo(bank)
    assert [task.position for task in Bank.open(bank).snapshot().tasks] == [1, 2]


def test_compositions_go_along_and_are_made_again_as_told(lab: Lab, copy: Callable[[str, int], Path]) -> None:
    bank = copy("isolated", 2)
    api.compose(
        bank, ComposeConfig(mode="manual", set=("weights=one=0.25,two=-2", "max_rank=2"), device="cpu", name="sum")
    )
    api.compose(bank, ComposeConfig(mode="prototype", router="gaussian", set=("shrinkage=0.5",), device="cpu"))
    before = Bank.open(bank).snapshot()
    with pytest.raises(ExistsError):
        lab.add(bank, "two", strategy="isolated")
    plan = api.plan_task(bank, "two", lab.settings("two", strategy="isolated"), replace=True)
    assert (plan.replaces, plan.superseded) == (2, ("sum", "prototype"))
    result = api.add_task(bank, "two", lab.settings("two", strategy="isolated", **OTHER), replace=True)
    assert list(result.superseded) == ["sum", "prototype"]
    assert Bank.open(bank).snapshot().compositions == ()
    for words in result.superseded.values():
        assert main([*words, "--bank", str(bank), "--device", "cpu", "--quiet"]) == 0
    after = Bank.open(bank).snapshot()
    for name in result.superseded:
        kept, old = (dict(one.composition(name).parameters) for one in (after, before))
        for measured in ("relative_error", "distance"):
            assert kept.pop(measured, None) != old.pop(measured, None) or name == "prototype"
        assert kept == old
        assert after.composition(name).members == before.composition(name).members
    shown = api.show(bank, "two")
    assert (shown["version"], [one["state"] for one in shown["versions"]]) == (2, ["superseded", "ready"])
    for _ in range(3):
        api.undo(bank)
    assert Bank.open(bank).snapshot().compositions == before.compositions


def test_replace_without_an_older_version_adds_the_task(lab: Lab, copy: Callable[[str, int], Path]) -> None:
    added = api.add_task(copy("isolated", 1), "two", lab.settings("two", strategy="isolated"), replace=True)
    assert (added.task.replaces, added.superseded) == (None, {})
