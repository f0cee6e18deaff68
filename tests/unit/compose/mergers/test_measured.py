"""`fisher` and `regmean` over what was measured, against dense float64 computations."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from lorabank.algebra.factors import DenseDelta
from lorabank.compose.mergers.base import Sources
from lorabank.core.shelves import MERGERS
from lorabank.models.facts.inputs import InputCovariance

SHAPES = {"m": (6, 9), "n": (5, 4)}


class Measured:
    """In the place of kept rows: what would be measured on them."""

    def __init__(self, facts: dict[str, Any]) -> None:
        self.facts = facts

    def sample(self, limit: int) -> Measured:
        return self

    def measure(self, task: str, modules: tuple[str, ...], make: Callable[[], Any]) -> Any:
        return self.facts[task]


def merge(merging, name: str, facts: dict[str, Any], *tasks: str, **settings: object):
    plain = merging.sources(*tasks)
    sources = Sources(plain.tasks, plain.adapters, lambda: plain.stack, plain.weight, ask=lambda: Measured(facts))
    made = MERGERS.load(name)(**settings).merge(sources)
    if isinstance(made, DenseDelta):
        return {module: delta.double().numpy() for module, delta in made.delta.items()}
    return {module: made.delta(module).double().numpy() for module in made.A}


def near(made, expected) -> None:
    assert made.keys() == expected.keys()
    for module, delta in expected.items():
        np.testing.assert_allclose(made[module], delta, rtol=0, atol=1e-6 * np.abs(delta).max())


@pytest.fixture
def information() -> dict[str, dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(4)
    return {task: {m: torch.randn(s, generator=generator).square() for m, s in SHAPES.items()} for task in "abc"}


@pytest.mark.parametrize("kind", ["merging", "gained"])
def test_fisher_weighs_every_entry(request, information, kind: str) -> None:
    merging = request.getfixturevalue(kind)
    deltas = {task: merging.dense(task) for task in "abc"}
    expected = {}
    for module in SHAPES:
        weights = {task: np.maximum(information[task][module].double().numpy(), 0.3) for task in "abc"}
        expected[module] = sum(weights[t] * deltas[t][module] for t in "abc") / sum(weights.values())
    near(merge(merging, "fisher", information, floor=0.3), expected)
    near(merge(merging, "fisher", information, "c", "a", "b", floor=0.3), expected)


def test_fisher_counts_a_task_that_leaves_a_module_alone(merging, information, make_adapter) -> None:
    merging.adapters["b"] = make_adapter({"m": (6, 9)}, 2, 1.0, seed=8)
    del information["a"]["n"]  # no row reached it: the floor
    made = merge(merging, "fisher", information, "a", "b", floor=0.5)
    of_b = np.maximum(information["b"]["n"].double().numpy(), 0.5)
    near({"n": made["n"]}, {"n": 0.5 * merging.dense("a")["n"] / (0.5 + of_b)})


@pytest.fixture
def inputs() -> dict[str, InputCovariance]:
    generator, found = torch.Generator().manual_seed(6), {}
    for k, task in enumerate("abc"):
        rows = {m: torch.randn(5 + 3 * k, d, generator=generator) * (1 + k) for m, (_, d) in SHAPES.items()}
        sums = {module: x.T @ x for module, x in rows.items()}
        found[task] = InputCovariance(sums, {m: len(x) for m, x in rows.items()}, {m: m for m in SHAPES})
    return found


def regmean(deltas, inputs: dict[str, InputCovariance], module: str, off: float) -> np.ndarray:
    """By plain least squares: the rows of all tasks below each other, and what each adapter makes of its own."""
    grams = []
    for task in deltas:
        gram = inputs[task].sums[module].double().numpy()
        gram = np.where(np.eye(len(gram)) > 0, gram, off * gram)
        grams.append(gram / np.trace(gram))
    total = sum(delta[module] @ gram for delta, gram in zip(deltas.values(), grams, strict=True))
    return np.linalg.solve(sum(grams).T, total.T).T


@pytest.mark.parametrize("kind", ["merging", "gained"])
@pytest.mark.parametrize("off", [0.9, 0.1])
def test_regmean_solves_the_normal_equations(request, inputs, kind: str, off: float) -> None:
    merging = request.getfixturevalue(kind)
    deltas = {task: merging.dense(task) for task in "abc"}
    expected = {module: regmean(deltas, inputs, module, off) for module in SHAPES}
    near(merge(merging, "regmean", inputs, off_diagonal=off), expected)
    near(merge(merging, "regmean", inputs, "b", "c", "a", off_diagonal=off), expected)


def test_regmean_fits_every_task_s_inputs_better_than_the_mean(merging, inputs) -> None:
    def error(made) -> float:
        gaps = [(made["m"] - merging.dense(task)["m"], inputs[task].sums["m"].double().numpy()) for task in "abc"]
        return sum(np.trace(gap @ (gram / np.trace(gram)) @ gap.T) for gap, gram in gaps)

    mean = {"m": sum(merging.dense(task)["m"] for task in "abc") / 3}
    assert error(merge(merging, "regmean", inputs)) < 0.8 * error(mean)


def test_regmean_bears_an_input_that_is_always_0(merging, inputs) -> None:
    for task in "abc":
        inputs[task].sums["m"][0, :] = inputs[task].sums["m"][:, 0] = 0
    made = merge(merging, "regmean", inputs)["m"]
    np.testing.assert_allclose(made[:, 0], 0, atol=1e-9)
    assert np.isfinite(made).all()


def test_regmean_leaves_a_task_out_whose_rows_do_not_reach_a_module(merging, inputs) -> None:
    """As the rows of a task may all go to other experts."""
    del inputs["a"].shared["n"]
    deltas = {task: merging.dense(task) for task in "bc"}
    near({"n": merge(merging, "regmean", inputs)["n"]}, {"n": regmean(deltas, inputs, "n", 0.9)})


@pytest.mark.parametrize("name", ["fisher", "regmean"])
def test_one_adapter_is_itself(merging, information, inputs, name: str) -> None:
    near(merge(merging, name, information if name == "fisher" else inputs, "b"), merging.dense("b"))
