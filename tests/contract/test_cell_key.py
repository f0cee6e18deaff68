"""The key of a cell holds everything that decides its score: each part is changed alone, and the cells that it decides
get other keys, and no other cell does."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.bank.snapshot import Snapshot
from lorabank.core.config import ComposeConfig, EvalConfig
from lorabank.workflows import evaluate
from tests.contract.conftest import Lab

Change = Callable[[Snapshot], Snapshot]
OTHER = "0" * 64
ALL, ON_ONE, LAST = {0, 1, 2}, {0, 1}, {1, 2}
"""Of the cells [after one, on one], [after two, on one], [after two, on two]."""


class _Asked(Exception):
    """The keys are known; nothing has to be computed."""


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """``keys(bank, change, **config)``: the keys that ``eval`` looks for, once the bank's state is changed."""

    def run(bank: Path, change: Change = lambda snapshot: snapshot, **config: Any) -> list[str]:
        found: list[str] = []
        sound = Bank.snapshot

        def look(self: Bank, wanted: Sequence[str]) -> None:
            found.extend(wanted)
            raise _Asked

        with monkeypatch.context() as patched:
            patched.setattr(Bank, "evaluations", look)
            patched.setattr(Bank, "snapshot", lambda self: change(sound(self)))
            with pytest.raises(_Asked):
                api.evaluate(bank, EvalConfig(forgetting_matrix=True, **({"device": "cpu"} | config)))
        return found

    return run


def changed(before: list[str], after: list[str]) -> set[int]:
    assert len(before) == len(after) == 3
    return {index for index, (one, two) in enumerate(zip(before, after, strict=True)) if one != two}


def task(**fields: Any) -> Change:
    """Another record of the first task."""
    return lambda snapshot: snapshot._replace(tasks=(snapshot.tasks[0]._replace(**fields), *snapshot.tasks[1:]))


def adapter(position: int = 1, *, config: dict[str, Any] | None = None, **fields: Any) -> Change:
    """Another record of the adapter at a position."""

    def change(snapshot: Snapshot) -> Snapshot:
        record = snapshot.by_position[position]
        record = record._replace(**fields, config={**record.config, **(config or {})})
        return snapshot._replace(by_position={**snapshot.by_position, position: record})

    return change


def rows(snapshot: Snapshot) -> Snapshot:
    """Other evaluation rows of the first task."""
    kept = [
        data._replace(sha256=OTHER) if (data.task, data.split) == ("one", "eval") else data
        for data in snapshot.datasets
    ]
    return snapshot._replace(datasets=tuple(kept))


PARTS: dict[str, tuple[Change, set[int]]] = {
    "base": (lambda snapshot: snapshot._replace(base=snapshot.base._replace(fingerprint=OTHER)), ALL),
    "rows": (rows, ON_ONE),
    "labels": (task(labels=("part0", "other")), ON_ONE),
    "order of the labels": (task(labels=("part1", "part0")), ON_ONE),
    "template": (task(prompt_template="Which? {text}"), ON_ONE),
    "max_length": (adapter(config={"max_length": 17}), ON_ONE),
    "scoring": (adapter(config={"scoring": "generation"}), ON_ONE),
    "a setting of another scoring": (adapter(config={"set": ["*.max_new_tokens=3"]}), set()),
    "the adapter alone": (adapter(digest=OTHER), {0}),
    "the newest adapter": (adapter(2, digest=OTHER), LAST),
    "what it was trained on": (adapter(2, context=(OTHER,)), LAST),
}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_of_the_bank_decides_its_cells(make_lab: Callable[[str], Lab], keys: Any, part: str) -> None:
    bank, (change, expected) = make_lab("llama").bank("olora", 2), PARTS[part]
    given = {"metric": "exact_match"}  # one that goes with every scoring, so that nothing else changes with it
    assert keys(bank, **given) == keys(bank, **given)
    assert changed(keys(bank, **given), keys(bank, change, **given)) == expected


@pytest.mark.parametrize("config", [{"max_new_tokens": 3}, {"set": ["max_new_tokens=3"]}])
def test_a_setting_of_the_scoring_decides_its_cells(make_lab: Any, keys: Any, config: dict[str, Any]) -> None:
    """Under its old name, which stands beside ``set``, and under the present one."""
    bank, asked = make_lab("llama").bank("olora", 2), {"scoring": "generation"}
    given = {"metric": "exact_match"}
    plain = keys(bank, adapter(config=asked), **given)
    assert changed(plain, keys(bank, adapter(config=asked | config), **given)) == ON_ONE
    usual = {name: 50 if name != "set" else ["max_new_tokens=50"] for name in config}
    assert keys(bank, adapter(config=asked | usual), **given) == plain


def test_a_head_decides_its_cells(lab: Lab, keys: Any) -> None:
    bank = lab.bank("olora", 2)
    assert changed(keys(bank), keys(bank, adapter(head_digest=OTHER))) == ON_ONE


def test_an_untrained_head_is_another_than_the_trained_one(lab: Lab, keys: Any) -> None:
    """Of [base, on one], [base, on two] and the four cells after them."""
    bank, forward = lab.bank("olora", 2), {"forward_transfer": True}
    before, seeded = keys(bank, **forward), keys(bank, adapter(2, seed=7), **forward)
    assert len(set(before)) == len(before) == 6
    untrained = {1, 3}  # two on the base, and after one
    assert {i for i, (one, two) in enumerate(zip(before, seeded, strict=True)) if one != two} == untrained


def test_a_selector_decides_its_cells(lab: Lab, keys: Any) -> None:
    bank = lab.bank("amlora", 2)
    assert changed(keys(bank), keys(bank, adapter(2, objects={"selector": OTHER}))) == LAST


@pytest.mark.parametrize(
    "setting", [{"batch_size": 3}, {"dtype": "bfloat16"}, {"metric": "exact_match"}, {"device": "cuda"}]
)
def test_a_setting_decides_every_cell(
    lab: Lab, keys: Any, setting: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = lab.bank("olora", 2)
    before = keys(bank, dtype="float32")
    monkeypatch.setattr(evaluate, "resolve_device", torch.device)
    assert keys(bank, dtype="float32") == before
    assert changed(before, keys(bank, **({"dtype": "float32"} | setting))) == ALL


def _other_statistics(role: str) -> Change:
    """The first task's router statistics are those of the second."""

    def change(snapshot: Snapshot) -> Snapshot:
        made = [
            one._replace(objects={**one.objects, f"{role}:one": one.objects[f"{role}:two"]})
            for one in snapshot.compositions
        ]
        return snapshot._replace(compositions=tuple(made))

    return change


@pytest.mark.parametrize("router", ["kmeans", "gaussian"])
def test_what_a_router_knows_decides_every_cell(copy, keys: Any, router: str) -> None:
    bank = copy("olora", 2)
    settings = {"mode": "prototype", "set": ("*.clusters_per_task=2",), "device": "cpu", "router": router}
    api.compose(bank, ComposeConfig(name="routed", **settings))
    before = keys(bank, compositions=("routed",))
    assert len(set(before)) == 3
    assert changed(before, keys(bank, _other_statistics("prototypes"), compositions=("routed",))) == ALL
    assert changed(before, keys(bank, rows, compositions=("routed",))) == ON_ONE
    assert changed(before, keys(bank, task(labels=("part1", "part0")), compositions=("routed",))) == ALL
    assert changed(before, keys(bank, adapter(config={"max_length": 300}), compositions=("routed",))) == ALL
    assert changed(before, keys(bank, adapter(2, context=(OTHER,)), compositions=("routed",))) == LAST
    other = {"router": "kmeans" if router == "gaussian" else "gaussian"}
    api.compose(bank, ComposeConfig(name="other", **(settings | other)))
    assert changed(before, keys(bank, compositions=("other",))) == ALL
    if router == "gaussian":
        for share in ("shrinkage", "own_covariance"):
            api.compose(bank, ComposeConfig(name="other", replace=True, **(settings | {"set": (f"{share}=0.3",)})))
            assert changed(before, keys(bank, compositions=("other",))) == ALL


def test_a_head_router_decides_every_cell(lab: Lab, keys: Any) -> None:
    bank = lab.bank("olora", 2)
    given, kmeans, gaussian = (keys(bank, head_from=source) for source in ("task", "kmeans", "gaussian"))
    assert changed(given, kmeans) == changed(given, gaussian) == changed(kmeans, gaussian) == ALL
    statistics = Bank.open(bank).snapshot().tasks[1].statistics
    assert changed(kmeans, keys(bank, task(statistics=statistics), head_from="kmeans")) == ALL


def test_weights_and_rank_of_a_sum_decide_its_cells(copy, keys: Any) -> None:
    bank = copy("olora", 2)
    even, uneven = "weights=one=1,two=1", "weights=one=0.5,two=1"
    for name, given in (("a", (even,)), ("b", (uneven,)), ("c", (even, "max_rank=1"))):
        api.compose(bank, ComposeConfig(mode="manual", name=name, set=given, device="cpu"))
    summed = keys(bank, compositions=("a",))
    assert changed(summed, keys(bank, compositions=("b",))) == ALL
    assert changed(summed, keys(bank, compositions=("c",))) == ALL


def test_a_learned_gate_decides_its_cells(copy, keys: Any) -> None:
    bank = copy("olora", 2)
    for name, seed in (("a", 0), ("b", 1)):
        api.compose(bank, ComposeConfig(mode="attention", name=name, seed=seed, set=("epochs=0.5",), device="cpu"))
    first, second = (keys(bank, compositions=(name,)) for name in ("a", "b"))
    assert changed(first, second) == LAST  # after one task there is nothing to learn


def test_keys_are_those_of_older_versions(copy, keys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By hand, from the records alone: what was scored before stays found, and no file is read to find it."""
    bank = copy("olora", 2)
    settings = {"dtype": "float32", "device": "cpu", "batch_size": 64, "metric": "auto"}
    weights = ("weights=one=0.5,two=-1",)
    api.compose(bank, ComposeConfig(mode="manual", name="sum", set=weights, device="cpu"))
    api.compose(bank, ComposeConfig(mode="prototype", name="near", router="gaussian", device="cpu"))
    snapshot = Bank.open(bank).snapshot()
    one, two = (snapshot.adapter_of(name) for name in ("one", "two"))
    assert (list(one.context), list(two.context)) == ([], [one.digest])
    forms = [
        {
            "labels": list(task.labels),
            "max_length": snapshot.adapter_of(task.name).config["max_length"],
            "max_new_tokens": 50,
            "scoring": "classification",
            "template": task.prompt_template,
        }
        for task in snapshot.tasks
    ]
    rows_of = {data.task: data.sha256 for data in snapshot.datasets if data.split == "eval"}
    statistics = [snapshot.task(name).statistics for name in ("one", "two")]
    longest = max(form["max_length"] for form in forms)

    def by_hand(*cells: tuple[str, list[Any]]) -> list[str]:
        values = [[2, snapshot.base.fingerprint, identity, rows_of[name], settings] for name, identity in cells]
        texts = [json.dumps(value, sort_keys=True, separators=(",", ":")) for value in values]
        return [hashlib.sha256(text.encode()).hexdigest() for text in texts]

    monkeypatch.setattr(Bank, "read_blob", lambda self, digest: pytest.fail("a file is read"))
    own = [["head", one.head_digest, forms[0]], ["head", two.head_digest, forms[1]]]
    first = ["sum", None, [[one.digest, 1.0]]]
    both = ["sum", None, [[digest, 1.0] for digest in sorted((one.digest, two.digest))]]
    expected = by_hand(("one", [*first, own[0]]), ("one", [*both, own[0]]), ("two", [*both, own[1]]))
    assert keys(bank) == expected

    half = ["sum", None, [[one.digest, 0.5]]]
    weighed = ["sum", None, sorted([[one.digest, 0.5], [two.digest, -1.0]])]
    expected = by_hand(("one", [*half, own[0]]), ("one", [*weighed, own[0]]), ("two", [*weighed, own[1]]))
    assert keys(bank, compositions=("sum",)) == expected

    members = [["one", [one.digest], statistics[0]], ["two", [one.digest, two.digest], statistics[1]]]
    router = ["gaussian", [0.1, 0.1], longest]
    near = ["prototype", router, members, forms]
    expected = by_hand(("one", ["prototype", router, members[:1], forms[:1]]), ("one", near), ("two", near))
    assert keys(bank, compositions=("near",)) == expected

    told = [["one", statistics[0]], ["two", statistics[1]]]
    one_head = ["routed", ["kmeans", None, longest, told[:1]], forms[:1]]
    any_head = ["routed", ["kmeans", None, longest, told], forms]
    expected = by_hand(("one", [*first, one_head]), ("one", [*both, any_head]), ("two", [*both, any_head]))
    assert keys(bank, head_from="kmeans") == expected
