"""What a commit stores, gives back, and does not take."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from contextlib import closing

import pytest

from lorabank.core.errors import ConfigError, DataError, ExistsError, IncompatibleError, NotFoundError
from lorabank.core.records import CompositionRecord, DatasetRecord, TaskRecord


def test_a_task_is_stored_as_given(bank, kit):
    first = kit.add_task(bank, "sentiment")
    second = kit.add_task(bank, "spam", weight=2.0, context=(first.adapter,))
    snapshot = bank.snapshot()
    assert snapshot.tasks == (first, second)
    assert [(task.name, task.position, task.state) for task in snapshot.tasks] == [
        ("sentiment", 1, "ready"),
        ("spam", 2, "ready"),
    ]
    assert second.labels == ("no", "yes")
    adapter = snapshot.adapter_of("spam")
    files = kit.files(2.0, -2.0)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    content = [[name, hashes[name], len(files[name])] for name in sorted(files)]
    digest = hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
    size = sum(map(len, files.values()))
    assert adapter == kit.adapter._replace(
        digest=digest,
        task="spam",
        context=(first.adapter,),
        files=hashes,
        bytes=size,
        objects={"inputs": hashlib.sha256(kit.safetensors(2.0, 0.75, name="inputs")).hexdigest()},
    )
    assert snapshot.adapters == {first.adapter: snapshot.adapter_of("sentiment"), digest: adapter}
    data = snapshot.dataset("spam", "eval")
    assert (data.rows, data.columns, data.sha256, data.rows_dropped) == (80, ("text", "label"), "2" * 64, 0)
    assert bank.read_blob(data.blob) == b"PAR1 rows of spam"
    assert snapshot.dataset("spam", "train").rows_dropped == 2
    assert snapshot.dataset("spam", "calibration") is None
    folder = bank.verified_adapter(digest)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert folder == bank.adapter_path(digest) == bank.path / "adapters" / digest
    assert bank.operations() == []
    assert [list((bank.path / name).iterdir()) for name in ("staging", "work", "trash")] == [[], [], []]


def test_a_composition_is_stored_as_given(bank, kit):
    tasks = [kit.add_task(bank, name, weight=n) for n, name in enumerate(("a", "b", "c"), 1)]
    stored = kit.compose(bank, "mix", ("a", "c"), content=kit.safetensors(0.25))
    assert bank.snapshot().compositions == (stored,)
    assert stored.members == ("a", "c")
    assert stored.adapters == (tasks[0].adapter, tasks[2].adapter)
    assert stored.parameters == {"weights": [1.0, 1.0]}
    assert bank.read_blob(stored.objects["selector"]) == kit.safetensors(0.25)


def test_the_objects_of_an_adapter_come_back_by_role(bank, kit):
    """Some staged with the task, one that another task brought in before."""
    first = kit.add_task(bank, "a")
    shared = bank.snapshot().adapter_of("a").objects["inputs"]
    with bank.reserve("add-task", "b", {}) as operation:
        objects = {
            "selector": operation.stage_blob(kit.safetensors(0.25)),
            "importance": operation.stage_blob(b"PAR1 importance"),
            "inputs": shared,
        }
        digest = operation.stage_adapter(kit.files(2.0))
        record = kit.adapter._replace(digest=digest, task="b", objects=objects)
        operation.commit_task(TaskRecord("b", 0, "SEQ_CLS", ("no", "yes"), "training"), record, [])
    snapshot = bank.snapshot()
    stored = snapshot.adapter_of("b")
    assert stored.objects == {
        "importance": hashlib.sha256(b"PAR1 importance").hexdigest(),
        "inputs": hashlib.sha256(kit.safetensors(1.0, 0.75, name="inputs")).hexdigest(),
        "selector": hashlib.sha256(kit.safetensors(0.25)).hexdigest(),
    }
    assert bank.read_blob(stored.objects["selector"]) == kit.safetensors(0.25)
    assert bank.read_blob(stored.objects["importance"]) == b"PAR1 importance"
    assert snapshot.adapters[first.adapter].objects == {"inputs": shared}
    assert bank.verify(full=True) == []


def test_an_adapter_has_no_objects_unless_it_names_some(bank, kit):
    """The default cannot be changed, or one record would change all others."""
    assert kit.adapter.objects == {}
    with pytest.raises(TypeError):
        kit.adapter.objects["inputs"] = "0" * 64
    with bank.reserve("add-task", "a", {}) as operation:
        record = kit.adapter._replace(digest=operation.stage_adapter(kit.files(1.0)), task="a")
        operation.commit_task(TaskRecord("a", 0, "SEQ_CLS", ("no", "yes"), "training"), record, [])
    assert bank.snapshot().adapter_of("a").objects == {}


def test_every_split_can_be_stored(bank, kit):
    with bank.reserve("add-task", "a", {}) as operation:
        rows = {split: operation.stage_blob(f"PAR1 {split}".encode()) for split in ("eval", "calibration", "replay")}
        splits = [
            DatasetRecord("a", split, 8, ("text", "label"), "1" * 64, "train.jsonl", blob=rows.get(split))
            for split in ("train", "eval", "calibration", "replay")
        ]
        record = kit.adapter._replace(digest=operation.stage_adapter(kit.files(1.0)), task="a")
        operation.commit_task(TaskRecord("a", 0, "SEQ_CLS", ("no", "yes"), "training"), record, splits)
    snapshot = bank.snapshot()
    assert snapshot.datasets == tuple(splits)
    assert bank.read_blob(snapshot.dataset("a", "replay").blob) == b"PAR1 replay"


def test_names_are_looked_up_with_a_suggestion(bank, kit):
    kit.add_task(bank, "sentiment")
    with pytest.raises(NotFoundError, match="Did you mean 'sentiment'"):
        bank.snapshot().task("sentimnt")
    with pytest.raises(NotFoundError, match="no composition yet") as caught:
        bank.snapshot().composition("mix")
    assert [command.line() for command in caught.value.commands] == ["lorabank compose --mode routed"]


def test_a_composition_can_be_superseded(bank, kit):
    kit.add_task(bank, "spam")
    kit.compose(bank, "mix", ("spam",), content=b"old")
    new = kit.compose(bank, "mix", ("spam",), content=b"new", replace=True)
    assert bank.snapshot().compositions == (new,)
    with pytest.raises(ExistsError):
        bank.reserve("compose", "spam", {"replace": True})


def test_files_that_are_refused(bank, kit):
    good = kit.safetensors(1.0)
    cases = {
        "NaN": ({"adapter_model.safetensors": kit.safetensors(1.0, float("nan"))}, DataError),
        "infinite": ({"adapter_model.safetensors": kit.safetensors(float("-inf"))}, DataError),
        "cut": ({"adapter_model.safetensors": good[:-1]}, DataError),
        "trailing": ({"adapter_model.safetensors": good + b"x"}, DataError),
        "config": ({"adapter_config.json": b"{"}, DataError),
        "big config": ({"adapter_config.json": b"[" + b"1," * 150_000 + b"1]"}, DataError),
        "path": ({"../evil": b""}, ConfigError),
        "hidden": ({".evil": b""}, ConfigError),
        "nested": ({"a/b": b""}, ConfigError),
    }
    with bank.reserve("add-task", "spam", {}) as operation:
        for files, error in cases.values():
            with pytest.raises(error):
                operation.stage_adapter(files)
        with pytest.raises(DataError, match="not finite"):
            operation.stage_blob(kit.safetensors(float("nan"), name="centroids"))
    assert list((bank.path / "adapters").iterdir()) == list((bank.path / "blobs").iterdir()) == []
    assert not (bank.path.parent / "evil").exists()


def test_what_a_commit_refers_to_must_be_there(bank, kit):
    with bank.reserve("add-task", "spam", {}) as operation:
        digest = operation.stage_adapter(kit.files(1.0))
        task = TaskRecord("spam", 0, "SEQ_CLS", ("no", "yes"), "training")
        adapter = kit.adapter._replace(digest=digest, task="spam")
        for wrong_task, wrong_adapter in (
            (task._replace(statistics="0" * 64), adapter),
            (task, adapter._replace(digest="0" * 64)),
            (task, adapter._replace(context=("0" * 64,))),
            (task, adapter._replace(objects={"inputs": "0" * 64})),
        ):
            with pytest.raises(IncompatibleError):
                operation.commit_task(wrong_task, wrong_adapter, [])
    assert bank.snapshot().tasks == ()
    kit.add_task(bank, "real")
    with bank.reserve("compose", "mix", {}) as operation:
        for members, digests, objects in (
            (("real",), ("0" * 64,), {}),
            (("ghost",), (digest,), {}),
            (("real",), (bank.snapshot().adapter_of("real").digest,), {"selector": "0" * 64}),
        ):
            with pytest.raises(IncompatibleError):
                operation.commit_composition(CompositionRecord("mix", "manual", members, digests, {}, objects))
    assert bank.snapshot().compositions == ()


def test_equal_content_is_stored_once_and_renewed(bank, kit):
    first = kit.add_task(bank, "a")
    folder = bank.adapter_path(first.adapter)
    os.utime(folder, (1, 1))
    second = kit.add_task(bank, "b")
    assert second.adapter == first.adapter
    assert len(list((bank.path / "adapters").iterdir())) == 1
    assert folder.stat().st_mtime > 1_000_000
    snapshot = bank.snapshot()
    assert (snapshot.adapter_of("a").task, snapshot.adapter_of("b").task) == ("a", "b")
    assert snapshot.adapters[first.adapter].task == "a"


def test_a_sound_copy_replaces_a_damaged_one(bank, kit):
    task = kit.add_task(bank, "a")
    kit.overwrite(bank.adapter_path(task.adapter) / "adapter_model.safetensors", b"damaged")
    assert bank.verify(full=True) != []
    kit.add_task(bank, "b")
    assert bank.verify(full=True) == []


def test_evaluations_are_kept_once(bank, kit):
    first, second = kit.evaluation("k1"), kit.evaluation("k2", task_id="routed", value=0)
    bank.add_evaluations([first, second])
    bank.add_evaluations([first._replace(value=0.1), kit.evaluation("k3")])
    assert bank.all_evaluations() == [first, second, kit.evaluation("k3")]
    assert bank.evaluations(["k2", "unknown"]) == {"k2": second}


def test_scores_are_found_without_reading_all(bank, kit):
    """SQLite's own account of how it answers the look-ups by key, by task, and by subject."""
    bank.add_evaluations(kit.evaluation(f"k{number}") for number in range(3))
    with closing(sqlite3.connect(bank.path / "bank.db")) as connection:
        for condition, index in (
            ("[key] IS ?1", "sqlite_autoindex_evaluations_1 (key=?)"),
            ("[task] IS ?1", "ix_evaluations_task_stage (task=?)"),
            ("[task] IS ?1 AND [stage] IS 1 AND [subject] IS 'as-trained'", "ix_evaluations_task_stage (task=? AND"),
            ("[subject] IS ?1", "ix_evaluations_subject (subject=?)"),
        ):
            query = f"EXPLAIN QUERY PLAN SELECT * FROM evaluations WHERE {condition} ORDER BY rowid"
            (*_, plan), *_ = connection.execute(query, ("x",)).fetchall()
            assert plan.startswith(f"SEARCH evaluations USING INDEX {index}"), plan


def test_the_score_of_a_task_is_the_one_right_after_it_was_learnt(bank, kit):
    for name in "ab":
        kit.add_task(bank, name)
    right = kit.evaluation("k1", task="b", stage=2, created_at="2030-01-01T00:00:00+00:00")
    newer = right._replace(key="k2", created_at="2030-01-02T00:00:00+00:00")
    others = [
        newer._replace(key="k3", stage=1),
        newer._replace(key="k4", task_id="routed"),
        newer._replace(key="k5", subject="mix"),
        newer._replace(key="k6", task="c"),
    ]
    bank.add_evaluations([newer, right, *others])
    snapshot, scores = bank.learnt_scores()
    assert (snapshot, scores) == (bank.snapshot(), {2: newer})


def test_a_task_that_was_removed_since_is_no_member(bank, kit) -> None:
    kit.add_task(bank, "a")
    kept = bank.snapshot().adapter_of("a").digest
    bank.remove("a")
    with bank.reserve("compose", "both", {"replace": False}) as operation:
        record = CompositionRecord("both", "manual", ("a",), (kept,), {"weights": [1.0]}, {})
        with pytest.raises(IncompatibleError, match=f"task 'a' with adapter {kept[:12]} is not in the bank"):
            operation.commit_composition(record, replace=False)
    assert bank.snapshot().compositions == ()


def test_a_score_that_is_given_twice_is_stored_once(bank, kit) -> None:
    bank.add_evaluations([kit.evaluation("one"), kit.evaluation("two"), kit.evaluation("one")])
    assert [one.key for one in bank.all_evaluations()] == ["one", "two"]
