"""Which adapters are active, by hand for short sequences."""

from __future__ import annotations

from typing import Any

import pytest

from lorabank.core.records import AdapterRecord
from lorabank.core.states import active_state, deployed_state, own_state
from lorabank.training.strategies.presets import INCLORA, ISOLATED, OLORA, SEQLORA


def adapter(digest: str, strategy: str = "olora", context: tuple[str, ...] = (), **metrics: Any) -> AdapterRecord:
    return AdapterRecord(
        digest=digest, task=f"task-{digest}", r=8, lora_alpha=32.0, use_rslora=False, target_modules=(),
        strategy=strategy, penalties={}, context=context, seed=0, steps=1, wall_seconds=0.0, device="cpu", bytes=0,
        head_digest=None, files={}, versions={}, config={}, metrics=metrics,
    )  # fmt: skip


def sequence(strategy: str) -> list[AdapterRecord]:
    if strategy == "isolated":
        return [adapter(name, strategy) for name in "abc"]
    if strategy == "seqlora":
        chain = [("a", {}), ("b", {"continued_from": "a"}), ("c", {"continued_from": "b"})]
        return [adapter(name, strategy, **metrics) for name, metrics in chain]
    return [adapter(name, strategy, tuple("abc"[:i])) for i, name in enumerate("abc")]


@pytest.mark.parametrize(
    ("strategy", "context"),
    [(OLORA, ("a", "b", "c")), (INCLORA, ("a", "b", "c")), (ISOLATED, ()), (SEQLORA, ())],
)
def test_context_of_the_fourth_task(strategy, context) -> None:
    assert strategy.context(sequence(strategy.name)) == context
    assert strategy.context([]) == ()


@pytest.mark.parametrize("strategy", ["olora", "inclora"])
def test_every_known_task_is_answered_by_the_sum(strategy: str) -> None:
    adapters = sequence(strategy)
    for stage, expected in ((1, ("a",)), (2, ("a", "b")), (3, ("a", "b", "c"))):
        for task in adapters:  # also the ones to come
            assert deployed_state(adapters[:stage], task) == expected


def test_an_isolated_task_keeps_its_own_adapter() -> None:
    adapters = sequence("isolated")
    for stage in (1, 2, 3):
        for task in adapters[:stage]:
            assert deployed_state(adapters[:stage], task) == (task.digest,)
    assert deployed_state(adapters[:1], adapters[2]) == ()  # nobody shares anything with a task to come


def test_seqlora_is_answered_by_the_newest_snapshot() -> None:
    adapters = sequence("seqlora")
    for stage, expected in ((1, ("a",)), (2, ("b",)), (3, ("c",))):
        for task in adapters:
            assert deployed_state(adapters[:stage], task) == expected


@pytest.mark.parametrize("strategy", ["olora", "inclora", "isolated", "seqlora"])
def test_the_untrained_base_has_no_adapter(strategy: str) -> None:
    for task in sequence(strategy):
        assert deployed_state([], task) == ()


def test_of_a_chain_only_the_newest_snapshot_counts() -> None:
    chain = sequence("seqlora")
    assert active_state(chain) == ("c",)
    first = adapter("x", "olora")
    assert active_state([first, *chain]) == ("x", "c")
    assert OLORA.context([first, *chain]) == ("x", "c")


def test_a_chain_that_continues_an_adapter_replaces_it() -> None:
    first = adapter("x", "olora")
    then = adapter("y", "seqlora", continued_from="x")
    assert active_state([first, then]) == ("y",)


def test_own_state_is_context_and_self() -> None:
    assert own_state(adapter("c", context=("a", "b"))) == ("a", "b", "c")


def test_a_mixed_sequence() -> None:
    """An isolated task in the middle neither answers for the others nor loses its own adapter."""
    a = adapter("a", "olora")
    b = adapter("b", "isolated")
    c = adapter("c", "olora", context=("a", "b"))
    assert deployed_state([a, b], a) == ("a",)
    assert deployed_state([a, b], b) == ("b",)
    assert deployed_state([a, b, c], a) == ("a", "b", "c")
    assert deployed_state([a, b, c], b) == ("b",)
