"""A new version of a task takes the place of the old one in one commit, and the old one can come back."""

from __future__ import annotations

from contextlib import suppress

import pytest

from lorabank.bank.bank import Bank
from lorabank.core.errors import DamagedError, ExistsError, IncompatibleError
from tests.unit.bank.prepared import rewrite


@pytest.fixture
def filled(bank, kit) -> Bank:
    kit.add_task(bank, "a")
    kit.add_task(bank, "b", weight=2.0)
    kit.compose(bank, "ab", ("a", "b"), content=kit.safetensors(0.5))
    kit.compose(bank, "only-b", ("b",))
    return bank


def test_the_new_version_takes_name_and_place(filled, kit):
    kit.replace_task(filled, "a", weight=3.0)
    snapshot = filled.snapshot()
    assert [(task.name, task.position, task.replaces) for task in snapshot.tasks] == [("b", 2, None), ("a", 3, 1)]
    assert [made.name for made in snapshot.compositions] == ["only-b"]
    assert [made.name for made in snapshot.removed_compositions] == ["ab"]
    assert [(one.position, snapshot.state_of(one)) for one in snapshot.versions(snapshot.task("a"))] == [
        (1, "superseded"),
        (3, "ready"),
    ]
    assert filled.verify(full=True) == []
    event = filled.history()[-1]
    assert (event.kind, event.name) == ("replace", "a")
    assert event.detail == {"tasks_added": [3], "tasks_removed": [1], "compositions_removed": [1]}


def test_versions_follow_each_other_and_go_back(filled, kit):
    for weight in (3.0, 4.0):
        kit.replace_task(filled, "a", weight=weight)
    snapshot = filled.snapshot()
    assert [snapshot.state_of(one) for one in snapshot.versions(snapshot.task("a"))] == [
        "superseded", "superseded", "ready",
    ]  # fmt: skip
    assert filled.undo().back == ("a",)
    kit.replace_task(filled, "a", weight=5.0)
    snapshot = filled.snapshot()
    assert [one.position for one in snapshot.versions(snapshot.task("a"))] == [1, 3, 5]
    states = {task.position: snapshot.state_of(task) for task in snapshot.removed_tasks}
    assert states == {1: "superseded", 3: "superseded", 4: "removed"}
    filled.undo()
    assert filled.undo().back == ("a", "ab")
    filled.remove("ab")
    filled.remove("a")
    snapshot = filled.snapshot()
    assert {snapshot.state_of(task) for task in snapshot.removed_tasks} == {"removed"}  # none took its place


def test_a_version_has_the_scores_that_were_measured_on_it(filled, kit):
    """Scores tell a task by its name, which versions share."""

    def measure(key: str, **changes: object) -> None:
        filled.add_evaluations([kit.evaluation(key, task="a", created_at="", **changes)])

    def own() -> list[str]:
        return [score.key for score in filled.task_scores("a")]

    filled.add_evaluations([kit.evaluation("of b", task="b", created_at="")])
    measure("first")
    kit.replace_task(filled, "a", weight=3.0)
    assert own() == []
    measure("second")
    assert own() == ["second"]
    filled.undo()
    assert own() == ["first"]
    measure("first again", stage=3)
    kit.replace_task(filled, "a", weight=4.0)
    filled.undo()
    filled.rename("a", "c")
    filled.rename("c", "a")
    assert own() == ["first", "first again"]
    filled.remove("ab")
    filled.remove("a")
    kit.add_task(filled, "a")  # the very adapter once more: its scores have its key, and are not measured again
    assert own() == ["first", "first again"]


def test_a_composition_has_the_scores_that_were_measured_on_it(filled, kit):
    def measure(key: str) -> None:
        filled.add_evaluations([kit.evaluation(key, subject="ab", created_at="")])

    def own() -> list[str]:
        return [score.key for score in filled.composition_scores("ab")]

    filled.add_evaluations([kit.evaluation("of another", subject="only-b", created_at="")])
    measure("first")
    kit.compose(filled, "ab", ("b", "a"), replace=True)
    assert own() == []
    measure("second")
    assert own() == ["second"]
    filled.undo()
    assert own() == ["first"]
    kit.compose(filled, "ab", ("b",), replace=True)
    kit.compose(filled, "ab", ("a", "b"), content=kit.safetensors(0.5), replace=True)
    assert own() == ["first"]  # the very composition once more


def test_the_old_version_answers_until_the_commit(filled, kit):
    before = filled.snapshot()
    with suppress(RuntimeError), filled.reserve("add-task", "a", {"replaces": 1}) as operation:
        assert filled.snapshot() == before
        operation.stage_blob(b"rows")
        raise RuntimeError
    assert filled.snapshot() == before


def test_a_name_is_taken_all_the_same(filled):
    """By a composition, by another task, and by a task that is not the one to be replaced."""
    for name, position in (("ab", 1), ("b", 1), ("a", 2), ("a", None)):
        config = {} if position is None else {"replaces": position}
        with pytest.raises(ExistsError, match="already"):
            filled.reserve("add-task", name, config)


def interrupted(bank: Bank) -> None:
    with suppress(KeyboardInterrupt), bank.reserve("add-task", "a", {"replaces": 1}) as operation:
        (operation.work / "checkpoint-1").mkdir()
        raise KeyboardInterrupt


def test_an_interrupted_run_replaces_what_it_was_to_replace(filled, kit):
    interrupted(filled)
    with filled.resume("add-task", "a") as operation:
        kit.commit_task(operation, "a", weight=6.0)
    assert filled.snapshot().task("a").replaces == 1
    assert filled.undo().back == ("a", "ab")


def test_what_was_renamed_meanwhile_is_not_replaced(filled, kit):
    interrupted(filled)
    filled.rename("a", "z")
    before = filled.snapshot()
    with filled.resume("add-task", "a") as operation, pytest.raises(IncompatibleError, match="is now called 'z'"):
        kit.commit_task(operation, "a", weight=6.0)
    assert filled.snapshot() == before


@pytest.mark.parametrize("back", ["rename", "undo", "undo a removal"])
def test_what_is_to_be_replaced_gets_its_name_back(filled, kit, back):
    """The hint of the refusal above must work: the waiting run is in the way of others with its name alone."""
    interrupted(filled)
    before = filled.snapshot().task("a")
    if back == "undo a removal":
        filled.remove("a", cascade=True)
    else:
        filled.rename("a", "z")
    with pytest.raises(ExistsError, match="an interrupted add-task has the name 'a'"):
        filled.rename("b", "a")
    if back == "rename":
        filled.rename("z", "a")
    else:
        filled.undo()
    assert filled.snapshot().task("a")[:2] == before[:2]
    with filled.resume("add-task", "a") as operation:
        kit.commit_task(operation, "a", weight=6.0)
    assert filled.snapshot().task("a").replaces == 1


def test_what_was_removed_meanwhile_is_followed(filled, kit):
    interrupted(filled)
    filled.remove("a", cascade=True)
    with filled.resume("add-task", "a") as operation:
        kit.commit_task(operation, "a", weight=6.0)
    assert filled.snapshot().task("a").replaces == 1
    assert (filled.history()[-1].kind, filled.undo().back) == ("add-task", ())
    assert filled.undo().back == ("a", "ab")


def test_a_version_that_came_later_cannot_be_replaced(filled):
    rewrite(filled, "tasks", replaces=1)
    with pytest.raises(DamagedError, match="task 1 replaces one that came later"):
        filled.snapshot()


def test_a_new_version_keeps_note_and_tags_unless_others_are_given(filled, kit):
    filled.set_note("a", "mails")
    filled.change_tags("a", add=["prod"])
    kit.replace_task(filled, "a", weight=3.0)
    assert filled.snapshot().task("a")[-4:-2] == ("mails", ("prod",))
    config = {"replaces": 3, "note": "other mails", "tags": ["late"]}
    with filled.reserve("add-task", "a", config) as operation:
        kit.commit_task(operation, "a", weight=4.0)
    assert filled.snapshot().task("a")[-4:-2] == ("other mails", ("late",))
    assert filled.undo().back == ("a",)
    assert filled.snapshot().task("a")[-4:-2] == ("mails", ("prod",))
