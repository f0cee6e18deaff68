"""Mergers entry by entry, against PEFT's own functions on long vectors and against loops in float64."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
import torch
from peft.utils import merge_utils

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import IncompatibleError
from tests.unit.compose.mergers.conftest import Merging

TASKS = ("a", "b", "c")
WEIGHTS = "a=0.5,b=-2,c=1"
W = {"a": 0.5, "b": -2.0, "c": 1.0}


def flat(by_module) -> np.ndarray:
    return np.concatenate([by_module[module].ravel() for module in ("m", "n")])


def vectors(merging) -> list[torch.Tensor]:
    """The delta weights of every task as one vector over the whole model."""
    return [torch.from_numpy(flat(merging.dense(task))) for task in TASKS]


def near(made, expected) -> None:
    expected = np.asarray(expected)
    np.testing.assert_allclose(flat(made), expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.fixture(params=["merging", "gained"])
def members(request):
    """Plain adapters, and such that one has a row gain: over the base's weight they are entries like all others."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("density", [0.2, 0.7])
def test_ties_is_peft_s_on_the_vector_of_the_whole_model(members, density: float) -> None:
    weights = torch.tensor(list(W.values()), dtype=torch.float64)
    expected = 0.8 * merge_utils.ties(vectors(members), weights, density)
    near(members.merge("ties", weights=WEIGHTS, density=density, scale=0.8), expected)


@pytest.mark.parametrize("density", [0.2, 0.7])
def test_magnitude_prune_is_peft_s_on_the_vector_of_the_whole_model(members, density: float) -> None:
    weights = torch.tensor(list(W.values()), dtype=torch.float64)
    expected = merge_utils.magnitude_prune(vectors(members), weights, density)
    near(members.merge("magnitude-prune", weights=WEIGHTS, density=density), expected)


def test_dare_keeps_entries_times_a_factor_and_their_mean(merging) -> None:
    whole = flat(merging.dense("a"))
    drawn = np.stack([flat(merging.merge("dare", "a", drop=0.25, seed=seed)) for seed in range(400)])
    kept = drawn != 0
    for row, mask in zip(drawn, kept, strict=True):
        np.testing.assert_allclose(row[mask], whole[mask] / 0.75, rtol=1e-6)
    deviation = np.sqrt(0.25 * 0.75 / kept.size)
    assert abs(kept.mean() - 0.75) < 5 * deviation
    spread = np.abs(whole) * np.sqrt(0.25 / 0.75 / len(drawn))
    assert (np.abs(drawn.mean(0) - whole) < 5 * spread + 1e-9).all()
    assert len({row.tobytes() for row in drawn}) == len(drawn)


def test_dare_is_the_weighted_sum_of_what_each_task_draws(members) -> None:
    alone = {task: flat(members.merge("dare", task, drop=0.5, seed=3)) for task in TASKS}
    expected = sum(W[task] * alone[task] for task in TASKS)
    near(members.merge("dare", *TASKS, weights=WEIGHTS, drop=0.5, seed=3), expected)
    near(members.merge("dare", "c", "b", "a", weights=WEIGHTS, drop=0.5, seed=3), expected)


def test_dare_draws_for_each_task_and_each_module_by_itself() -> None:
    modules = ("one", "other")
    factors = LoraFactors(
        {module: torch.ones(1, 50) for module in modules},
        {module: torch.ones(40, 1) for module in modules},
        dict.fromkeys(modules, 1.0),
    )
    equal = Merging({"a": factors, "b": factors})
    drawn = [equal.merge("dare", task, drop=0.5, seed=0)[module] != 0 for task in "ab" for module in modules]
    for one, other in combinations(drawn, 2):  # two fair draws agree on half of 2,000 entries, +- 5 deviations of 22
        assert abs(int((one == other).sum()) - 1000) < 112


def test_dare_ties_elects_among_what_was_drawn(members) -> None:
    alone = [torch.from_numpy(flat(members.merge("dare", task, drop=0.4, seed=1))) for task in TASKS]
    weights = torch.tensor(list(W.values()), dtype=torch.float64)
    expected = merge_utils.ties(alone, weights, density=0.999999999)  # of entries that are 0 none has a sign
    near(members.merge("dare-ties", weights=WEIGHTS, drop=0.4, seed=1), expected)


def ternary(vector: np.ndarray, density: float, alpha: float) -> np.ndarray:
    least = np.sort(np.abs(vector))[-int(density * vector.size)]
    return alpha * np.std(vector, ddof=1) * np.where(np.abs(vector) >= least, np.sign(vector), 0)


@pytest.mark.parametrize(("density", "alpha"), [(0.2, 1.0), (0.5, 3.0)])
def test_compeft_makes_every_task_ternary(members, density: float, alpha: float) -> None:
    expected = sum(W[task] * ternary(flat(members.dense(task)), density, alpha) for task in TASKS)
    near(members.merge("compeft", weights=WEIGHTS, density=density, alpha=alpha), expected)
    (one,) = {np.abs(entry) for entry in flat(members.merge("compeft", "a", density=density))} - {0.0}
    assert one == pytest.approx(np.std(flat(members.dense("a")), ddof=1), rel=1e-6)


def test_compeft_in_the_space_of_the_factors(merging) -> None:
    expected = 0.0
    for task in TASKS:
        factors = merging.adapters[task]
        parts = [factors.A[m].double().numpy() for m in ("m", "n")]
        parts += [factors.scaling[m] * factors.B[m].double().numpy() for m in ("m", "n")]
        long = ternary(np.concatenate([part.ravel() for part in parts]), 0.5, 2.0)
        A_m, A_n, B_m, B_n = (
            piece.reshape(part.shape)
            for piece, part in zip(np.split(long, np.cumsum([p.size for p in parts])[:-1]), parts, strict=True)
        )
        expected = expected + W[task] * np.concatenate([(B_m @ A_m).ravel(), (B_n @ A_n).ravel()])
    near(merging.merge("compeft", weights=WEIGHTS, density=0.5, alpha=2.0, space="factors"), expected)


def test_compeft_in_the_space_of_the_factors_refuses_row_gains(gained) -> None:
    with pytest.raises(IncompatibleError, match="the adapter of task 'b' has a row gain"):
        gained.merge("compeft", space="factors")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("ties", {"density": 1.0}),
        ("dare", {"drop": 0.0}),
        ("dare-ties", {"drop": 0.0}),
        ("magnitude-prune", {"density": 1.0}),
    ],
)
def test_one_adapter_is_itself(members, name: str, settings) -> None:
    near(members.merge(name, "b", **settings), flat(members.dense("b")))


@pytest.mark.parametrize("name", ["ties", "dare", "dare-ties", "magnitude-prune", "compeft"])
def test_the_order_of_the_members_changes_nothing(members, name: str) -> None:
    near(members.merge(name, "c", "a", "b"), flat(members.merge(name, "a", "b", "c")))


@pytest.mark.parametrize("name", ["ties", "dare", "dare-ties", "magnitude-prune", "compeft"])
def test_a_module_that_a_task_leaves_alone_is_of_the_others(merging, make_adapter, name: str) -> None:
    merging.adapters["b"] = make_adapter({"m": (6, 9)}, 2, 1.0, seed=8)
    both, alone = merging.merge(name, "a", "b"), merging.merge(name, "a")
    np.testing.assert_allclose(both["n"], alone["n"], atol=1e-6)
    assert not np.allclose(both["m"], alone["m"])
