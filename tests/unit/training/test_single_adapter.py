"""SI, MAS and SLAO as a chain of tasks on one adapter, against loops and plain transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from safetensors.torch import load

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.training.context import TaskFact
from lorabank.training.job import TrainedAdapter
from lorabank.training.run import train_adapter
from lorabank.training.strategies.si import Path
from lorabank.training.variants.base import FreeFactors, Step
from tests.unit.training.plain import plain_model

LEARNS = {"learning_rate": 1e-2, "epochs": 4, "lora_dropout": 0.0, "lora_alpha": 8.0}
STILL = LEARNS | {"learning_rate": 1e-30, "epochs": 1, "batch_size": 64}
ROWS = (["b a", "c", "x y", "w z w", "d a", "v"], ["0", "0", "1", "1", "0", "1"])


@pytest.fixture
def learn(job, recorder, quiet) -> Callable[..., TrainedAdapter]:
    """``learn(strategy, before=(), rows=None, **config)``: the task behind those before."""

    def run(strategy: str, before: list[TrainedAdapter] = (), *, rows: Any = None, **config: Any) -> TrainedAdapter:
        names = [f"t{i}" for i in range(len(before))]
        stack = AdapterStack.build({n: one.factors for n, one in zip(names, before, strict=True)}) if before else None
        made = job(strategy=strategy, earlier=stack, continued=names[-1] if names else None, on=quiet, **config)
        objects: dict[str, list[TaskFact]] = {}
        for name, one in zip(names, before, strict=True):
            for role, data in one.objects.items():
                objects.setdefault(role, []).append(TaskFact((name,), data))
        texts, targets = rows or (made.texts, made.targets)
        return train_adapter(replace(made, objects=objects, texts=texts, targets=targets), recorder())

    return run


# ------------------------------------------------------------------------------------------------------------ si, mas


def test_the_path_adds_up_what_each_step_takes_off() -> None:
    torch.manual_seed(0)
    inner = FreeFactors(LoraFactors({"q": torch.randn(2, 4)}, {"q": torch.randn(3, 2)}, {"q": 2.0}))
    path = Path(inner)
    parameters = [inner.A[0], inner.B[0]]
    expected = [torch.zeros(p.shape, dtype=torch.float64) for p in parameters]
    for number in range(1, 6):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape)
        path.after_loss(Step(number, 5))
        for total, parameter in zip(expected, parameters, strict=True):
            slope, change = parameter.grad.clone(), torch.randn(parameter.shape)
            parameter.grad.add_(3.0)  # what a penalty and clipping do behind it does not count
            with torch.no_grad():
                before = parameter.detach().clone()
                parameter.add_(change)
            total -= slope.double() * (parameter.detach().double() - before.double())
        path.after_step(Step(number, 5))
    for omega, total in zip(path.omega, expected, strict=True):
        torch.testing.assert_close(omega.double(), total, rtol=0, atol=1e-6)
    assert [name for name, _ in path.named_buffers()] == ["omega_0", "omega_1"]


def test_the_path_of_si_is_that_of_its_training(learn, recorder, job, quiet) -> None:
    """One step from a known start: its slopes times what it changed, over the square of the change and the damping."""
    first = learn("si", rows=ROWS, **LEARNS)
    one = LEARNS | {"epochs": 1, "batch_size": 64}
    second = learn("si", [first], work="second", **one)
    own = job()
    start_head = learn("si", [first], work="start", **STILL).head
    model = plain_model(quiet, start_head, first.factors)
    ids = [[0, *(4 + ord(letter) - ord("a") for letter in text.split()), 2] for text in own.texts]
    found = torch.cat([model(input_ids=torch.tensor([row])).logits for row in ids])
    torch.nn.functional.cross_entropy(found, torch.tensor([int(target) for target in own.targets])).backward()
    before, after = load(first.objects["path-importance"]), load(second.objects["path-importance"])
    for name, a in first.factors.A.items():
        slope, s = model.get_submodule(name).weight.grad, first.factors.scaling[name]
        for key, gradient, was, now in (
            (f"A:{name}", s * first.factors.B[name].T @ slope, a, second.factors.A[name]),
            (f"B:{name}", s * slope @ a.T, first.factors.B[name], second.factors.B[name]),
        ):
            change = now - was
            expected = (-gradient * change).clamp(min=0) / (change.square() + 0.1)
            torch.testing.assert_close(after[key] - before[key], expected, rtol=1e-3, atol=1e-6)
            assert bool(expected.any())


def test_what_mas_records_is_the_mean_size_of_the_slopes(learn, job, quiet) -> None:
    first = learn("mas", rows=ROWS, **LEARNS)
    second = learn("mas", [first], work="second", **LEARNS)
    own = job()
    expected: dict[str, torch.Tensor] = {}
    for trained, texts in ((first, ROWS[0]), (second, own.texts)):
        model = plain_model(quiet, trained.head, trained.factors)
        for text in texts:
            model.zero_grad()
            ids = [0, *(4 + ord(letter) - ord("a") for letter in text.split()), 2]
            model(input_ids=torch.tensor([ids])).logits.square().sum().backward()
            for name, a in trained.factors.A.items():
                slope, s = model.get_submodule(name).weight.grad, trained.factors.scaling[name]
                for key, value in (
                    (f"A:{name}", s * trained.factors.B[name].T @ slope),
                    (f"B:{name}", s * slope @ a.T),
                ):
                    expected[key] = expected.get(key, torch.zeros(())) + value.abs() / len(texts)
    found = load(second.objects["output-importance"])
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("strategy", "role"), [("si", "path-importance"), ("mas", "output-importance")])
def test_it_is_held_where_the_last_adapter_was(learn, strategy: str, role: str) -> None:
    first = learn(strategy, rows=ROWS, **LEARNS)
    weights = load(first.objects[role])

    def moved(strength: float) -> float:
        second = learn(strategy, [first], work=f"w{strength}", penalty_weight=strength, **LEARNS)
        parts = [
            (weights[f"{kind}:{name}"] * (getattr(second.factors, kind)[name] - value).square()).sum()
            for kind in "AB"
            for name, value in getattr(first.factors, kind).items()
        ]
        return float(torch.stack(parts).sum())

    free, held = moved(0.0), moved(1e5)
    assert free > 0
    assert held < 0.1 * free


# --------------------------------------------------------------------------------------------------------------- slao


def test_slao_starts_from_an_orthonormal_basis_and_the_trained_b(learn) -> None:
    first = learn("slao", rows=ROWS, **LEARNS)
    second = learn("slao", [first], work="second", **STILL)
    for name, A in second.factors.A.items():
        torch.testing.assert_close(A @ A.T, torch.eye(len(A)), rtol=0, atol=1e-6)
        within = first.factors.A[name] @ A.T @ A  # the rows span the same space
        torch.testing.assert_close(within, first.factors.A[name], rtol=0, atol=1e-6)
        torch.testing.assert_close(second.factors.B[name], first.factors.B[name], rtol=0, atol=1e-6)


def test_what_slao_stores_is_the_running_merge(learn) -> None:
    chain: list[TrainedAdapter] = []
    for number, alpha in enumerate((8.0, 8.0, 4.0)):  # with another scaling, too
        rows = ROWS if number == 1 else None
        settings = LEARNS | {"lora_alpha": alpha}
        chain.append(learn("slao", chain, rows=rows, work=f"w{number}", **settings))
    trained = [load(one.objects["trained-b"]) for one in chain]  # s B
    for name in chain[0].factors.A:
        merged = trained[0][name].double()
        for i in (2, 3):
            merged = merged + (trained[i - 1][name].double() - merged) / i**0.5
        last = chain[-1].factors
        torch.testing.assert_close(last.scaling[name] * last.B[name].double(), merged, rtol=0, atol=1e-6)
        assert not torch.allclose(merged, trained[2][name].double(), atol=1e-4)
