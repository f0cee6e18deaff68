"""A member of a merge is its adapter or its state: against dense sums in float64."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.compose.base import Fitted, Member, with_its_settings
from lorabank.compose.merged import Merged
from lorabank.compose.routers.statistics import fit_statistics
from lorabank.core.config import ComposeConfig
from lorabank.core.observer import SilentObserver
from lorabank.core.records import CompositionRecord

SHAPES = {"m": (6, 9), "n": (5, 4)}


@pytest.fixture
def adapters(make_adapter) -> dict[str, LoraFactors]:
    """Three of different ranks, of which the second leaves a module alone."""
    made = {"a": (SHAPES, 2, 3.0), "b": ({"m": SHAPES["m"]}, 3, 2.0), "c": (SHAPES, 1, 4.0)}
    return {name: make_adapter(shapes, r, alpha, seed=i) for i, (name, (shapes, r, alpha)) in enumerate(made.items())}


def members_of(adapters: dict[str, LoraFactors], states: Sequence[str]) -> list[Member]:
    """Tasks whose states are the adapters of a word each, the own one last."""
    statistics = fit_statistics(np.eye(4, dtype=np.float32), 1, 0)
    return [
        Member(state[-1] * 2, k, state[-1], tuple(state), k - 1, ("no", "yes"), lambda: statistics, 1,
               factors=adapters.__getitem__)
        for k, state in enumerate(states, start=1)
    ]  # fmt: skip


def fitted(members: list[Member], adapters: dict[str, LoraFactors], **config: Any) -> tuple[Fitted, Merged]:
    runtime = type("Runtime", (), {"stack": AdapterStack.build(adapters)})()
    made = Merged.fit(members, ComposeConfig(mode="merged", **config), lambda: runtime, SilentObserver())
    record = CompositionRecord("mix", "merged", (), (), made.parameters, {})
    return made, Merged.load(record, {}, members, lambda: runtime)


def dense(adapters: dict[str, LoraFactors], state: str, module: str) -> np.ndarray:
    """The delta weight of a sum of adapters, float64."""
    total = np.zeros(SHAPES[module])
    for name in state:
        own = adapters[name]
        if module in own.A:
            total += own.scaling[module] * own.B[module].double().numpy() @ own.A[module].double().numpy()
    return total


def delta(composed: Merged, adapters: dict[str, LoraFactors], module: str, stage: int = 3) -> np.ndarray:
    stack = AdapterStack.build(adapters)
    made = composed.as_adapter(stage, stack, None)
    if made is None:
        made = composed.plan(stage, ["text"]).dense
        return made.delta[module].double().numpy() if module in made.delta else np.zeros(SHAPES[module])
    return made.delta(module).double().numpy() if module in made.A else np.zeros(SHAPES[module])


@pytest.mark.parametrize(("stage", "known"), [(1, 1), (2, 2), (3, 3)])
def test_equal_weights_over_states_are_expanded_to_adapters(adapters, stage: int, known: int) -> None:
    states = ("a", "ab", "abc")
    settings = ("weights=aa=0.25,bb=0.25,cc=0.25",)
    _, composed = fitted(members_of(adapters, states), adapters, over="states", set=settings)
    assert composed.plan(stage, ["text"]).weights.tolist() == [
        0.25 * known,
        0.25 * max(known - 1, 0),
        0.25 * (known > 2),
    ]
    for module in SHAPES:
        expected = 0.25 * sum(dense(adapters, state, module) for state in states[:known])
        np.testing.assert_allclose(delta(composed, adapters, module, stage), expected, rtol=1e-6, atol=1e-6)


def ties(vectors: list[np.ndarray]) -> np.ndarray:
    """TIES without a cut, entry by entry."""
    out = np.zeros(vectors[0].shape)
    for place in itertools.product(*map(range, out.shape)):
        values = [vector[place] for vector in vectors]
        agreeing = [value for value in values if value * sum(values) > 0]
        out[place] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return out


@pytest.mark.parametrize("over", ["adapters", "states", None])
def test_a_merger_that_is_no_sum_reads_states_unless_told_otherwise(adapters, over) -> None:
    members = members_of(adapters, ("a", "ab", "abc"))
    made, composed = fitted(members, adapters, over=over, merger="ties", set=("density=1",))
    chosen = ("a", "b", "c") if over == "adapters" else ("a", "ab", "abc")
    for module in SHAPES:
        expected = ties([dense(adapters, state, module) for state in chosen])
        np.testing.assert_allclose(delta(composed, adapters, module), expected, rtol=1e-5, atol=1e-6)
    assert made.parameters["over"] == (over or "states")
    record = CompositionRecord("mix", "merged", ("aa", "bb", "cc"), (), made.parameters, {})
    assert f"--over {made.parameters['over']}" in str(with_its_settings(record))


def test_svd_of_states_is_that_of_their_dense_sum(adapters) -> None:
    members = members_of(adapters, ("a", "ab", "abc"))
    settings = ("weights=aa=0.5,bb=-1,cc=2", "rank=2")
    _, composed = fitted(members, adapters, over="states", merger="svd", set=settings)
    for module in SHAPES:
        whole = sum(w * dense(adapters, s, module) for w, s in zip((0.5, -1, 2), ("a", "ab", "abc"), strict=True))
        u, s, vt = np.linalg.svd(whole)
        np.testing.assert_allclose(delta(composed, adapters, module), (u[:, :2] * s[:2]) @ vt[:2], atol=1e-5)


@pytest.mark.parametrize("merger", ["weighted", "ties", "svd", "dare", "knots"])
def test_states_of_one_adapter_each_change_no_bit(adapters, merger: str) -> None:
    members = members_of(adapters, ("a", "b", "c"))
    states, by_state = fitted(members, adapters, over="states", merger=merger)
    plain, by_adapter = fitted(members, adapters, over="adapters", merger=merger)
    assert states.parameters == plain.parameters
    assert by_state.identity(3) == by_adapter.identity(3)
    for module in SHAPES:
        assert np.array_equal(delta(by_state, adapters, module), delta(by_adapter, adapters, module))


def test_the_order_of_states_changes_nothing(adapters) -> None:
    deltas = [
        delta(fitted(members_of(adapters, order), adapters, merger="ties", set=("density=1",))[1], adapters, "m")
        for order in itertools.permutations(("a", "ab", "abc"))
    ]
    for other in deltas[1:]:
        np.testing.assert_allclose(other, deltas[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("weights", "told"),
    [("aa=1,bb=1,cc=1", False), ("aa=1,bb=1", False), ("aa=0.25,bb=0.25,cc=0.25", True), ("bb=1", True)],
)
def test_weights_that_are_no_state_are_told(adapters, weights: str, told: bool) -> None:
    members = members_of(adapters, ("a", "ab", "abc"))
    made, _ = fitted(members, adapters, set=(f"weights={weights}",), name="mix")
    assert ("untrained_state" in made.report) == told
    if told:
        again = "lorabank compose --mode merged --name mix --merger weighted --set weights="
        again += f"{weights} --over states --replace"
        assert made.report["untrained_state"]["command"].line() == again
    over_states, _ = fitted(members, adapters, set=(f"weights={weights}",), over="states")
    alone, _ = fitted(members_of(adapters, ("a", "b", "c")), adapters, set=(f"weights={weights}",))
    assert "untrained_state" not in over_states.report.keys() | alone.report.keys()


def test_states_are_proposed_with_equal_weights_where_none_were_given(adapters) -> None:
    """The sum of the adapters of the first and the third task is no state."""
    members = members_of(adapters, ("a", "ab", "abc"))
    made, _ = fitted([members[0], members[2]], adapters, tasks="aa,cc")
    assert (
        made.report["untrained_state"]["command"]
        .line()
        .endswith(
            "compose --mode merged --tasks aa,cc --merger weighted --weights aa=0.5,cc=0.5 --over states --replace"
        )
    )
