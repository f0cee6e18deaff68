"""What interrupted runs recorded: settings, and the past that they began in; by older versions too."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from lorabank.bank.snapshot import Snapshot
from lorabank.core.config import TrainConfig
from lorabank.core.records import AdapterRecord, BaseModelRecord, TaskRecord
from lorabank.core.settings import validate
from lorabank.core.shelves import STRATEGIES
from lorabank.workflows.learning.past import moved_on, past_of, recorded_run


def test_settings_of_an_older_run_are_read_under_their_new_names() -> None:
    older = {"data": "rows.jsonl", "strategy": "replay", "lambda_orth": 0.25, "lambda_l1": 1e-3, "replay_rows": 6}
    older |= {"max_new_tokens": 50, "label_words": None, "delimiter": None, "lambda_l2": 0.0}  # and no chat_template
    settings, rows = recorded_run("one", {"config": older, "train": "a", "eval": "b"})
    expected = TrainConfig(
        data="rows.jsonl",
        strategy="replay",
        penalty_weight=0.25,
        set=("replay.replay_rows=6", "*.chat_template=none"),
    )
    assert validate(TrainConfig, settings) == expected
    assert rows == {"train": "a", "eval": "b"}


def test_settings_of_a_run_of_this_version_are_read_as_they_are() -> None:
    config = TrainConfig(data="rows.jsonl", strategy="amlora", set=("lambda_l1=0.5",))
    settings, _ = recorded_run("one", {"config": asdict(config), "train": "a", "eval": "b"})
    assert validate(TrainConfig, settings) == config


def adapter(task: str, digest: str, context: tuple[str, ...], **objects: str) -> AdapterRecord:
    return AdapterRecord(
        digest=digest, task=task, r=8, lora_alpha=32.0, use_rslora=False, target_modules=("q",), strategy="inflora",
        penalties={}, context=context, seed=0, steps=1, wall_seconds=1.0, device="cpu", bytes=1, head_digest=None,
        files={}, versions={}, config={}, metrics={}, objects=objects,
    )  # fmt: skip


def snapshot(*adapters: AdapterRecord) -> Snapshot:
    tasks = tuple(
        TaskRecord(one.task, number, "SEQ_CLS", ("a", "b"), "ready", one.digest)
        for number, one in enumerate(adapters, start=1)
    )
    base = BaseModelRecord("tiny", "local", None, "c", "f" * 64, "7", "float32", "SEQ_CLS", 32, 1000)
    return Snapshot("id", 1, base, tasks, (), (), (), dict(enumerate(adapters, start=1)))


def chain(count: int) -> list[AdapterRecord]:
    """Each trained on top of all before it."""
    digests = [f"{number:064x}" for number in range(count)]
    return [adapter(f"t{n}", digests[n], tuple(digests[:n]), inputs=f"{n:032x}") for n in range(count)]


def recorded_before(adapters: list[AdapterRecord], **others: Any) -> dict[str, Any]:
    """The past as versions up to schema 0004 recorded it: every adapter of every state."""
    return {
        "base": "f" * 64,
        "earlier": [[one.task, *one.context, one.digest] for one in adapters],
        "context": [one.digest for one in adapters],
        "continued": None,
        "replayed": [],
        "objects": {"inputs": [[*one.context, one.digest, one.objects["inputs"]] for one in adapters]},
        **others,
    }


INFLORA = STRATEGIES.load("inflora")


def test_the_past_grows_with_the_tasks() -> None:
    """Not with their square: a reservation holds it."""
    sizes = [len(json.dumps(past_of(snapshot(*chain(count)), INFLORA))) for count in (100, 200)]
    assert sizes[1] < 2.1 * sizes[0]


def test_a_run_of_an_older_version_is_resumed_in_its_past() -> None:
    adapters = chain(4)
    now, there = past_of(snapshot(*adapters), INFLORA), snapshot(*adapters)
    for older in (recorded_before(adapters, position=5), recorded_before(adapters)):
        assert moved_on({"past": older}, now, there) is None
    assert moved_on({"past": now}, now, there) is None


@pytest.mark.parametrize("recorded", [recorded_before, lambda adapters: past_of(snapshot(*adapters), INFLORA)])
def test_another_past_is_told(recorded: Callable[[list[AdapterRecord]], dict[str, Any]]) -> None:
    adapters = chain(4)
    there = snapshot(*adapters)
    now = past_of(there, INFLORA)
    changed = [*adapters[:2], adapters[2]._replace(digest="e" * 64), adapters[3]]
    other_state = [*adapters[:3], adapters[3]._replace(context=adapters[3].context[1:])]
    for then, message in (
        (adapters[:3], "it began after t0, t1, t2, and now there is t0, t1, t2, t3"),
        (changed, "t2 had another adapter when it began"),
        (other_state, "t3 had another adapter when it began"),
    ):
        assert moved_on({"past": recorded(then)}, now, there) == message
    elsewhere = [*adapters[:3], adapters[3]._replace(objects={"inputs": "e" * 32})]
    assert moved_on({"past": recorded(elsewhere)}, now, there) == "when it began the bank had another objects"
