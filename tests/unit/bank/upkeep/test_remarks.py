"""Names, notes and tags that change, and everything that is stored under a name."""

from __future__ import annotations

import pytest

from lorabank.bank.bank import Bank
from lorabank.core.errors import ConfigError, ExistsError, NotFoundError
from tests.unit.bank.test_kill import kill_everywhere


@pytest.fixture
def filled(bank, kit) -> Bank:
    kit.add_task(bank, "a")
    kit.add_task(bank, "b", weight=2.0)
    kit.compose(bank, "ab", ("a", "b"), content=kit.safetensors(0.5))
    bank.add_evaluations([kit.evaluation("k1", task="a", stage=1), kit.evaluation("k2", task="b", subject="ab")])
    return bank


def test_a_renamed_task_is_the_same_everywhere(filled):
    before, scores = filled.contents()
    filled.rename("a", "first")
    after, renamed = filled.contents()
    assert after.task("first") == before.task("a")._replace(name="first", first_name="a")
    assert after.composition("ab").members == ("first", "b")
    assert after.composition("ab").adapters == before.composition("ab").adapters
    assert [data.task for data in after.datasets if data.split == "eval"] == ["first", "b"]
    assert after.adapter_of("first") == before.adapter_of("a")._replace(task="first")
    assert renamed == [scores[0]._replace(task="first"), scores[1]]
    assert filled.verify(full=True) == []
    with pytest.raises(NotFoundError):
        after.task("a")
    filled.undo()
    assert filled.contents() == (before, scores)


def test_a_renamed_composition_keeps_its_scores(filled):
    before, scores = filled.contents()
    filled.rename("ab", "both")
    after, renamed = filled.contents()
    assert after.compositions == (before.composition("ab")._replace(name="both"),)
    assert renamed == [scores[0], scores[1]._replace(subject="both")]
    filled.undo()
    assert filled.contents() == (before, scores)


def test_what_a_composition_keeps_of_a_member_follows_its_name(bank, kit):
    """Weights and prototypes stand under the name of the time; names are given away and taken again."""
    kit.add_task(bank, "a")
    kit.add_task(bank, "b", weight=2.0)
    make(bank, "old", ("a", "b"))
    bank.rename("a", "x")
    bank.rename("b", "a")
    kit.add_task(bank, "b", weight=3.0)
    make(bank, "new", ("x", "a", "b"))
    bank.rename("b", "c")
    snapshot = bank.snapshot()
    assert snapshot.composition("old").parameters["weights"] == {"x": 0.0, "a": 1.0}
    assert snapshot.composition("new").parameters["weights"] == {"x": 0.0, "a": 1.0, "c": 2.0}
    assert [*snapshot.composition("new").objects] == ["prototypes:a", "prototypes:c", "prototypes:x"]
    content = {name: bank.read_blob(snapshot.composition("new").objects[f"prototypes:{name}"]) for name in "xac"}
    assert content == {"x": b"x", "a": b"a", "c": b"b"}
    assert [task.born for task in snapshot.tasks] == ["a", "b", "b#3"]
    assert bank.verify(full=True) == []


def make(bank: Bank, name: str, tasks: tuple[str, ...]) -> None:
    """A composition that keeps something of each member under its name."""
    snapshot = bank.snapshot()
    with bank.reserve("compose", name, {}) as operation:
        from lorabank.core.records import CompositionRecord

        objects = {f"prototypes:{task}": operation.stage_blob(task.encode()) for task in tasks}
        weights = {task: float(number) for number, task in enumerate(tasks)}
        digests = tuple(snapshot.adapter_of(task).digest for task in tasks)
        operation.commit_composition(CompositionRecord(name, "manual", tasks, digests, {"weights": weights}, objects))


def test_scores_of_a_removed_task_of_the_same_name_stay_its_own(filled, kit):
    filled.remove("ab")
    filled.remove("a")
    filled.add_evaluations([kit.evaluation("before", task="a", created_at="2001-01-01T00:00:00+00:00")])
    kit.add_task(filled, "a", weight=9.0)
    filled.add_evaluations([kit.evaluation("after", task="a", created_at="2999-01-01T00:00:00+00:00")])
    filled.rename("a", "z")
    assert {score.key: score.task for score in filled.all_evaluations()}.items() >= {
        "before": "a",
        "after": "z",
    }.items()


@pytest.mark.parametrize(
    ("old", "new", "error"),
    [
        ("a", "b", ExistsError), ("a", "ab", ExistsError), ("ab", "a", ExistsError), ("a", "a", ConfigError),
        ("a", "No Name", ConfigError), ("a", "auto", ConfigError), ("nothing", "x", NotFoundError),
        ("a\ud800", "x", NotFoundError),
    ],
)  # fmt: skip
def test_names_that_cannot_be_given(filled, old, new, error):
    before, history = filled.contents(), filled.history()
    with pytest.raises(error) as caught:
        filled.rename(old, new)
    assert caught.value.unchanged == "the bank was not changed"
    assert (filled.contents(), filled.history()) == (before, history)


def test_notes_and_tags_are_kept_and_taken_back(filled):
    for name in ("a", "ab"):
        before = filled.snapshot()
        filled.set_note(name, "  what it is for \n")
        assert filled.change_tags(name, add=["prod", "mail"]) == ("mail", "prod")
        assert filled.change_tags(name, add=["late"], remove=["prod"]) == ("late", "mail")
        after = filled.snapshot()
        (record,) = (one for one in (*after.tasks, *after.compositions) if one.name == name)
        assert (record.note, record.tags) == ("what it is for", ("late", "mail"))
        assert filled.verify(full=True) == []
        assert [event.kind for event in filled.history()][-3:] == ["note", "tag", "tag"]
        for _ in range(3):
            filled.undo()
        assert filled.snapshot() == before


def test_what_changes_nothing_is_no_line(filled):
    filled.set_note("a", "same")
    filled.change_tags("a", add=["x"])
    history = filled.history()
    filled.set_note("a", "same ")
    filled.change_tags("a", add=["x"])
    assert filled.history() == history


def test_notes_and_tags_that_cannot_be_kept(filled):
    before = filled.contents()
    for attempt in (
        lambda: filled.set_note("a", "x" * 2001),
        lambda: filled.set_note("a", "\udcff"),
        lambda: filled.change_tags("a", add=["Not a tag"]),
        lambda: filled.change_tags("a", add=["a,b"]),
        lambda: filled.change_tags("a", add=[f"t{n}" for n in range(33)]),
    ):
        with pytest.raises(ConfigError):
            attempt()
    with pytest.raises(NotFoundError, match="has no tag 'x'"):
        filled.change_tags("a", remove=["x"])
    with pytest.raises(NotFoundError, match="no task or composition 'aa'"):
        filled.set_note("aa", "x")
    assert filled.contents() == before


def test_killed_at_every_step_of_renaming(filled):
    start = filled.path

    def act(bank: Bank) -> None:
        if "a" in {task.name for task in bank.snapshot().tasks}:
            bank.rename("a", "z")

    kills, wrong = kill_everywhere(start, act)
    assert wrong == []
    assert kills >= 5  # BEGIN, the row, its score, the event, COMMIT
