"""Mergers whose result is an adapter, against dense float64 computations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import IncompatibleError
from lorabank.core.shelves import MERGERS

WEIGHTS = "a=0.5,b=-2,c=1"
W = {"a": 0.5, "b": -2.0, "c": 1.0}


def near(made, expected) -> None:
    assert made.keys() == expected.keys()
    for module, delta in expected.items():
        np.testing.assert_allclose(made[module], delta, rtol=0, atol=1e-6 * np.abs(delta).max())


def cut(matrix, rank: int):
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def total(merging, weights, change=lambda delta: delta):
    deltas = {task: merging.dense(task) for task in merging.adapters}
    return {m: sum(w * change(deltas[task][m]) for task, w in weights.items()) for m in deltas["a"]}


@pytest.mark.parametrize("kind", ["merging", "gained"])
@pytest.mark.parametrize("scale", [0.4, -1.5])
def test_task_arithmetic_is_one_factor_for_all(request, kind: str, scale: float) -> None:
    merging = request.getfixturevalue(kind)
    near(merging.merge("task-arithmetic", scale=scale), total(merging, dict.fromkeys("abc", scale)))


def test_task_arithmetic_unlearns_what_it_adds(merging) -> None:
    added, taken = merging.merge("task-arithmetic", scale=0.7), merging.merge("task-arithmetic", scale=-0.7)
    near(added, {module: -delta for module, delta in taken.items()})


@pytest.mark.parametrize("rank", [1, 2, 6])
def test_svd_is_the_nearest_matrix_of_a_rank(merging, rank: int) -> None:
    expected = {module: cut(delta, rank) for module, delta in total(merging, W).items()}
    near(merging.merge("svd", weights=WEIGHTS, rank=rank), expected)


def test_svd_keeps_the_largest_rank_of_a_member(merging) -> None:
    near(merging.merge("svd"), {m: cut(delta, 3) for m, delta in total(merging, dict.fromkeys("abc", 1.0)).items()})


def test_svd_sums_row_gains_beside_the_cut(gained, merging) -> None:
    gains = {module: delta - merging.dense("b")[module] for module, delta in gained.dense("b").items()}
    expected = {module: cut(delta, 2) + W["b"] * gains[module] for module, delta in total(merging, W).items()}
    near(gained.merge("svd", weights=WEIGHTS, rank=2), expected)


@pytest.mark.parametrize("kind", ["merging", "gained"])
def test_byom_cuts_every_adapter_by_itself(request, kind: str) -> None:
    merging = request.getfixturevalue(kind)
    near(merging.merge("byom", weights=WEIGHTS, rank=1), total(merging, W, lambda delta: cut(delta, 1)))


def test_byom_keeps_half_of_a_rank(merging) -> None:
    expected = {module: cut(delta, 2) for module, delta in merging.dense("b").items()}  # of rank 3
    near(merging.merge("byom", "b"), expected)


# ----------------------------------------------------------------------------------------------------------- knots


def elected(parts: list[np.ndarray], density: float) -> np.ndarray:
    """TIES of long vectors, entry by entry."""
    kept = []
    for part in parts:
        least = np.sort(np.abs(part))[-int(density * part.size)]
        kept.append(np.where(np.abs(part) >= least, part, 0))
    made = np.zeros_like(parts[0])
    for i in range(made.size):
        sign = np.sign(sum(part[i] for part in kept))
        agreeing = [part[i] for part in kept if np.sign(part[i]) == sign and sign != 0]
        made[i] = np.mean(agreeing) if agreeing else 0
    return made


@pytest.mark.parametrize("density", [0.3, 1.0])
def test_knots_merges_in_the_space_that_all_share(merging, density: float) -> None:
    tasks, modules = "abc", {"m": 9, "n": 4}
    lefts, rights = {}, {task: [] for task in tasks}
    for module, width in modules.items():
        u, s, vt = np.linalg.svd(np.concatenate([merging.dense(task)[module] for task in tasks], 1))
        rank = int((s > 1e-9 * s[0]).sum())
        lefts[module] = u[:, :rank] * s[:rank]
        for k, task in enumerate(tasks):
            rights[task].append(vt[:rank, k * width : (k + 1) * width])
    vectors = [np.concatenate([part.ravel() for part in rights[task]]) for task in tasks]
    flat, expected, at = elected(vectors, density), {}, 0
    for part, (module, left) in zip(rights["a"], lefts.items(), strict=True):
        expected[module] = 0.6 * left @ flat[at : at + part.size].reshape(part.shape)
        at += part.size
    near(merging.merge("knots", density=density, scale=0.6), expected)


def test_knots_forms_no_dense_matrix(merging) -> None:
    sources = merging.sources()
    made = MERGERS.load("knots")().prepared(sources.tasks).merge(sources)
    assert {module: a.shape for module, a in made.A.items()} == {"m": (6, 9), "n": (5, 4)}  # all ranks together
    assert merging.merge("knots", "a").keys() == {"m", "n"}


def test_knots_takes_modules_that_some_adapters_lack(merging, make_adapter) -> None:
    merging.adapters["b"] = make_adapter({"m": (6, 9)}, 2, 1.0, seed=8)
    near(merging.merge("knots", "b", density=1.0), merging.dense("b"))
    assert merging.merge("knots", "a", "b").keys() == {"m", "n"}


# ---------------------------------------------------------------------------------------------------- A and B apart


def test_l_lora_sums_over_one_A_at_its_rank(alike) -> None:
    shared = alike.adapters["a"].A
    for task, factors in alike.adapters.items():
        alike.adapters[task] = LoraFactors(shared, factors.B, factors.scaling)
    near(alike.merge("l-lora", weights=WEIGHTS), total(alike, W))
    sources = alike.sources()
    made = MERGERS.load("l-lora")().prepared(sources.tasks).merge(sources)
    assert {module: len(a) for module, a in made.A.items()} == {"m": 2, "n": 2}


def test_l_lora_refuses_adapters_over_different_A(alike) -> None:
    with pytest.raises(IncompatibleError, match="tasks 'a' and 'b' have different ones on m") as caught:
        alike.merge("l-lora")
    assert (caught.value.exit_code, caught.value.unchanged) == (5, "nothing was changed")
    assert list(map(str, caught.value.commands)) == ["lorabank compose --mode manual"]


def test_peft_linear_is_peft_s(alike) -> None:
    """`add_weighted_adapter` of the installed PEFT on a plain module."""
    model = nn.ModuleDict({"m": nn.Linear(9, 6, bias=False), "n": nn.Linear(4, 5, bias=False)})
    base = {name: model[name].weight.detach().clone() for name in ("m", "n")}
    made = None
    for task, factors in alike.adapters.items():
        config = LoraConfig(r=2, lora_alpha=2 * factors.scaling["m"], target_modules=["m", "n"])
        if made is None:
            made = get_peft_model(model, config, adapter_name=task)
        else:
            made.add_adapter(task, config)
        for module, a in factors.A.items():
            layer = made.get_submodule(f"base_model.model.{module}")
            layer.lora_A[task].weight.data = a.clone()
            layer.lora_B[task].weight.data = factors.B[module].clone()
    made.add_weighted_adapter(list(W), list(W.values()), "mixed", combination_type="linear")
    made.set_adapter("mixed")
    whole = made.merge_and_unload()
    expected = {m: (whole.get_submodule(m).weight.detach() - base[m]).double().numpy() for m in base}
    found = alike.merge("peft-linear", weights=WEIGHTS)
    for module, delta in expected.items():  # PEFT computes in float32 and adds to the weight
        np.testing.assert_allclose(found[module], delta, rtol=0, atol=3e-6 * np.abs(delta).max())
    by_hand = {}
    for module in base:
        roots = {t: math.sqrt(abs(W[t] * f.scaling[module])) for t, f in alike.adapters.items()}
        A = sum(np.sign(W[t]) * roots[t] * f.A[module].double().numpy() for t, f in alike.adapters.items())
        B = sum(roots[t] * f.B[module].double().numpy() for t, f in alike.adapters.items())
        by_hand[module] = B @ A
    near(found, by_hand)


def test_slao_averages_B_over_time_and_takes_the_newest_A(alike) -> None:
    B = {module: 0.0 for module in ("m", "n")}
    for i, factors in enumerate(alike.adapters.values(), start=1):
        for module in B:
            own = factors.scaling[module] * factors.B[module].double().numpy()
            B[module] = B[module] + (own - B[module]) / math.sqrt(i)
    near(alike.merge("slao"), {m: b @ alike.adapters["c"].A[m].double().numpy() for m, b in B.items()})
    merger = MERGERS.load("slao")()
    assert merger.near("abc")["c"] == pytest.approx(3**-0.5)
    assert merger.near("abc")["b"] == pytest.approx((1 - 3**-0.5) / math.sqrt(2))


@pytest.mark.parametrize("name", ["peft-linear", "slao"])
def test_different_ranks_are_refused_where_A_and_B_are_merged_apart(merging, name: str) -> None:
    with pytest.raises(IncompatibleError, match=r"tasks 'a' and 'b' have ranks 2 and 3 on m"):
        merging.merge(name)


@pytest.mark.parametrize("name", ["l-lora", "peft-linear", "slao", "knots"])
def test_row_gains_are_refused_in_one_sentence(gained, name: str) -> None:
    with pytest.raises(IncompatibleError, match=r"the adapter of task 'b' has a row gain"):
        gained.merge(name)


# ---------------------------------------------------------------------------------------------------- what all keep


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("weighted", {}),
        ("task-arithmetic", {"scale": 1.0}),
        ("svd", {}),
        ("byom", {"rank": 3}),
        ("knots", {"density": 1.0}),
        ("l-lora", {}),
        ("peft-linear", {}),
        ("slao", {}),
    ],
)
def test_one_adapter_is_itself(merging, name: str, settings) -> None:
    near(merging.merge(name, "b", **settings), merging.dense("b"))


@pytest.mark.parametrize("name", ["weighted", "task-arithmetic", "svd", "byom", "knots", "peft-linear"])
def test_the_order_of_the_members_changes_nothing(alike, name: str) -> None:
    near(alike.merge(name, "c", "a", "b"), alike.merge(name, "a", "b", "c"))


def test_two_tasks_may_share_an_adapter(merging) -> None:
    merging.adapters["again"] = merging.adapters["a"]
    sources = merging.sources("a", "b")
    sources.tasks, sources.adapters = ("a", "b", "again"), (*sources.adapters, sources.adapters[0])
    merger = MERGERS.load("svd")(weights="a=1,b=2,again=3", rank=6).prepared(sources.tasks)
    made = merger.merge(sources)
    expected = {m: 4 * merging.dense("a")[m] + 2 * merging.dense("b")[m] for m in ("m", "n")}
    near({module: made.delta(module).double().numpy() for module in made.A}, expected)
    assert torch.equal(sources.factors("again").A["m"], sources.factors("a").A["m"])


EVERY = sorted(name for name in MERGERS if not MERGERS.load(name).fitted)


@pytest.mark.parametrize("name", EVERY)
def test_adapters_that_change_nothing_make_a_merge_that_changes_nothing(alike, name: str) -> None:
    shared = alike.adapters["a"].A  # of one A, for the merger that needs that
    for task, factors in alike.adapters.items():
        zero = {module: torch.zeros_like(b) for module, b in factors.B.items()}
        alike.adapters[task] = LoraFactors(shared, zero, factors.scaling)
    for delta in alike.merge(name).values():
        np.testing.assert_array_equal(delta, 0)


@pytest.mark.parametrize(
    ("name", "settings"),
    [("weighted", {}), ("svd", {}), ("byom", {"rank": 6}), ("ties", {"density": 1.0}), ("dare", {"drop": 0.0})],
)
def test_an_adapter_may_have_a_row_gain_alone(merging, name: str, settings) -> None:
    a = merging.adapters["a"]
    gain = {"m": torch.linspace(0.5, 1.5, 6)}
    zero = {module: torch.zeros_like(b) for module, b in a.B.items()}
    merging.adapters["a"] = LoraFactors(a.A, zero, a.scaling, gain)
    made = merging.merge(name, "a", **settings)
    np.testing.assert_allclose(made["m"], merging.dense("a")["m"], atol=1e-6)
    assert "n" not in made or not made["n"].any()
