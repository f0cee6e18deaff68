"""Several tasks get new versions and a composition in one commit, which is there whole or not at all."""

from __future__ import annotations

import pytest

from lorabank.bank.bank import Bank
from lorabank.core.errors import IncompatibleError
from lorabank.core.records import CompositionRecord
from tests.unit.bank.test_kill import kill_everywhere


def fold(bank: Bank, kit, *, context: str | None = None) -> CompositionRecord:
    """The first task's new adapter is in the context of the second one's, or ``context`` is."""
    with bank.reserve("fold", "both", {"note": "two in one"}) as operation:
        snapshot = bank.snapshot()
        digests = [operation.stage_adapter(kit.files(5.0, -2.0)), operation.stage_adapter(kit.files(0.0, -2.0))]
        versions = []
        for name, digest in zip(("a", "b"), digests, strict=True):
            task = snapshot.task(name)
            below = (context or digests[0],) if name == "b" else ()
            adapter = snapshot.adapter_of(name)._replace(digest=digest, context=below)
            data = [one for one in snapshot.datasets if one.task == name]
            versions.append((task._replace(replaces=task.position, adapter=digest), adapter, data))
        made = CompositionRecord("both", "manual", ("a", "b"), tuple(digests), {}, {})
        return operation.commit_fold(versions, made)


@pytest.fixture
def filled(bank, kit) -> Bank:
    for name, weight in (("a", 1.0), ("b", 2.0), ("c", 3.0)):
        kit.add_task(bank, name, weight=weight)
    kit.compose(bank, "ab", ("a", "b"))
    kit.compose(bank, "bc", ("b", "c"))
    kit.compose(bank, "only-c", ("c",))
    return bank


def test_it_is_one_change(filled, kit) -> None:
    before = filled.snapshot()
    made = fold(filled, kit)
    snapshot = filled.snapshot()
    assert [(task.name, task.position, task.replaces) for task in snapshot.tasks] == [
        ("c", 3, None),
        ("a", 4, 1),
        ("b", 5, 2),
    ]
    assert [composition.name for composition in snapshot.compositions] == ["only-c", "both"]
    assert made.note == snapshot.composition("both").note == "two in one"
    for name in ("a", "b"):
        old, new = before.task(name), snapshot.task(name)
        assert (new.labels, new.statistics) == (old.labels, old.statistics)
        assert snapshot.dataset(name, "eval").blob == before.dataset(name, "eval").blob
    event = filled.history()[-1]
    assert (event.kind, event.name) == ("fold", "both")
    assert event.detail == {
        "tasks_added": [4, 5],
        "tasks_removed": [1, 2],
        "compositions_added": [4],
        "compositions_removed": [1, 2],
    }
    assert filled.verify(full=True) == []
    undone = filled.undo()
    assert (undone.back, undone.gone) == (("a", "b", "ab", "bc"), ("a", "b", "both"))
    after = filled.snapshot()
    assert (after.tasks, {one.name for one in after.compositions}) == (before.tasks, {"ab", "bc", "only-c"})


def test_what_cannot_be_referred_to_changes_nothing(filled, kit) -> None:
    before = filled.contents(), filled.history()
    with pytest.raises(IncompatibleError, match="not in the bank"):
        fold(filled, kit, context="9" * 64)
    assert (filled.contents(), filled.history()) == before
    assert filled.operations() == []


def test_killed_at_every_step_it_is_there_whole_or_not_at_all(filled, kit) -> None:
    def names(bank: Bank) -> set[str]:
        snapshot = bank.snapshot()
        tasks = {f"{task.name} {task.position}" for task in snapshot.tasks}
        return tasks | {composition.name for composition in snapshot.compositions}

    kills, wrong = kill_everywhere(filled.path, lambda bank: fold(bank, kit), names)
    assert wrong == []
    assert kills > 30
