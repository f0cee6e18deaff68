"""EWC, InfLoRA, AM-LoRA and replay as a chain of tasks: what starts where, what is recorded, and the same bytes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load

from lorabank.algebra.stack import AdapterStack
from lorabank.training.context import TaskFact
from lorabank.training.job import Replayed, TrainedAdapter, TrainJob
from lorabank.training.run import train_adapter
from tests.unit.training.plain import plain_model

ATTENTION = tuple(f"bert.encoder.layer.{i}.attention.self" for i in range(2))
MODULES = [f"{layer}.{part}" for layer in ATTENTION for part in ("query", "value")]
STILL = {"learning_rate": 1e-30, "epochs": 1, "batch_size": 64}
"""One step that moves nothing: what comes out is what training began with."""
LEARNS = {"learning_rate": 1e-2, "epochs": 4, "lora_dropout": 0.0, "lora_alpha": 8.0}


def letters(text: str) -> list[int]:
    return [0, *(4 + ord(letter) - ord("a") for letter in text.split()), 2]


OTHER_ROWS = (["b a", "c", "x y", "w z w", "d a", "v"], ["0", "0", "1", "1", "0", "1"])
"""A task of its own, so that the next one is another."""


@pytest.fixture
def learn(job, recorder, quiet) -> Any:
    """``learn(strategy, before=[(name, adapter, context), ...], rows=None, observer=None, **config)``: the next task.

    What the tasks before recorded is given as a bank gives it.
    """

    def run(strategy: str, before: list[tuple[str, TrainedAdapter]] = (), *, rows=None, observer=None, **config: Any):
        made = as_bank(job, quiet, strategy, before, rows, **config)
        return train_adapter(made, observer or recorder())

    return run


def as_bank(job, base, strategy: str, before: Any, rows: Any, **config: Any) -> TrainJob:
    names = tuple(name for name, _ in before)
    stack = AdapterStack.build({name: adapter.factors for name, adapter in before}) if before else None
    adds_up = strategy in ("inflora", "amlora", "nlora", "olora", "inclora")
    made: TrainJob = job(
        strategy=strategy,
        earlier=stack,
        context=names if adds_up else (),
        continued=names[-1] if names and strategy in ("ewc", "replay") else None,
        on=base,
        **config,
    )
    objects: dict[str, list[TaskFact]] = {}
    for i, (_, adapter) in enumerate(before):
        for role, data in adapter.objects.items():
            objects.setdefault(role, []).append(TaskFact(names[: i + 1] if adds_up else names[i : i + 1], data))
    texts, targets = rows or (made.texts, made.targets)
    return replace(made, objects=objects, texts=texts, targets=targets)


def weights(trained: TrainedAdapter) -> dict[str, torch.Tensor]:
    return {f"A {name}": a for name, a in trained.factors.A.items()} | {
        f"B {name}": b for name, b in trained.factors.B.items()
    }


# ------------------------------------------------------------------------------------------------------------- ewc


def test_ewc_starts_from_the_last_adapter_at_no_cost(learn) -> None:
    first = learn("ewc", rows=OTHER_ROWS, **LEARNS)
    assert first.objects.keys() == {"importance"}
    assert first.metrics["final_ewc"] == 0  # nothing is before the first task
    second = learn("ewc", [("a", first)], **(LEARNS | STILL))
    assert second.metrics["final_ewc"] == 0
    for name, value in weights(first).items():
        torch.testing.assert_close(weights(second)[name], value)


def test_ewc_is_held_where_the_last_adapter_was(learn) -> None:
    first = learn("ewc", rows=OTHER_ROWS, **LEARNS)
    importance = load(first.objects["importance"])

    def moved(strength: float) -> float:
        """``sum F (theta - theta*)^2`` after the next task."""
        second = learn("ewc", [("a", first)], work=f"w{strength}", penalty_weight=strength, **LEARNS)
        was, now = weights(first), weights(second)
        parts = {key.replace(" ", ":"): value - was[key] for key, value in now.items()}
        return float(sum((importance[key] * change.square()).sum() for key, change in parts.items()))

    free, held = moved(0.0), moved(1e6)
    assert free > 0
    assert held < 0.02 * free


def test_what_ewc_records_is_the_sum_of_squared_gradients_per_row(learn, job, quiet) -> None:
    first = learn("ewc", rows=OTHER_ROWS, **LEARNS)
    second = learn("ewc", [("a", first)], work="second", **LEARNS)
    expected: dict[str, torch.Tensor] = {}
    own = job()
    for trained, (texts, targets) in ((first, OTHER_ROWS), (second, (own.texts, own.targets))):
        model = plain_model(quiet, trained.head, trained.factors)
        for text, target in zip(texts, targets, strict=True):
            model.zero_grad()
            logits = model(input_ids=torch.tensor([letters(text)])).logits
            F.cross_entropy(logits, torch.tensor([int(target)])).backward()
            for name, a in trained.factors.A.items():
                slope, s = model.get_submodule(name).weight.grad, trained.factors.scaling[name]
                for key, value in (
                    (f"A:{name}", s * trained.factors.B[name].T @ slope),
                    (f"B:{name}", s * slope @ a.T),
                ):
                    expected[key] = expected.get(key, torch.zeros(())) + value.square() / len(texts)
    found = load(second.objects["importance"])
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-7)


def test_another_scaling_measures_the_same_importances(learn) -> None:
    """Twice the scaling with half of B is the same model: gradients of B double, those of A stay."""
    first = learn("ewc", rows=OTHER_ROWS, **LEARNS)
    same = load(learn("ewc", [("a", first)], work="same", **(LEARNS | STILL)).objects["importance"])
    twice = load(
        learn("ewc", [("a", first)], work="twice", **(LEARNS | STILL | {"lora_alpha": 16.0})).objects["importance"]
    )
    for key, value in same.items():
        factor = 4.0 if key.startswith("B:") else 1.0
        torch.testing.assert_close(twice[key], factor * value, rtol=1e-3, atol=1e-9)


# --------------------------------------------------------------------------------------------------------- inflora


def covariances(model: Any, texts: Any) -> dict[str, torch.Tensor]:
    """Mean of ``x x^T`` over all tokens, one text at a time."""
    seen: dict[str, list[torch.Tensor]] = {name: [] for name in MODULES}
    hooks = [
        model.get_submodule(name).register_forward_pre_hook(lambda _, args, name=name: seen[name].append(args[0][0]))
        for name in MODULES
    ]
    with torch.no_grad():
        for text in texts:
            model(input_ids=torch.tensor([letters(text)]))
    for hook in hooks:
        hook.remove()
    tokens = {name: torch.cat(parts).double() for name, parts in seen.items()}
    return {name: x.T @ x / len(x) for name, x in tokens.items()}


def leading(covariance: torch.Tensor) -> torch.Tensor:
    """The eigenvectors that come first while their share of the squared eigenvalues stays below 98 %; at least one."""
    values, vectors = torch.linalg.eigh(covariance)
    share = (values.flip(0) ** 2).cumsum(0) / (values**2).sum()
    return vectors.flip(1)[:, : max(1, int((share < 0.98).sum()))]


def test_inflora_never_changes_its_a_and_learns_b(learn) -> None:
    first = learn("inflora", rows=OTHER_ROWS, **LEARNS)
    for before in ([], [("a", first)]):
        start = learn("inflora", before, work=f"still{len(before)}", **(LEARNS | STILL | {"batch_size": 4}))
        trained = learn("inflora", before, work=f"learnt{len(before)}", **LEARNS)
        for name in MODULES:
            assert torch.equal(trained.factors.A[name], start.factors.A[name])
            assert bool(trained.factors.A[name].any())
            assert float(start.factors.B[name].abs().max()) < 1e-20
            assert float(trained.factors.B[name].abs().max()) > 1e-4


def test_inflora_s_new_a_stands_outside_what_earlier_tasks_fed_in(learn, quiet) -> None:
    first = learn("inflora", rows=OTHER_ROWS, **LEARNS)
    second = learn("inflora", [("a", first)], work="second", **LEARNS)
    fed = covariances(plain_model(quiet, first.head, first.factors), OTHER_ROWS[0])
    for name in MODULES:
        memory = leading(fed[name])
        new = second.factors.A[name].double()
        assert float(new.norm(dim=1).min()) > 0.1
        assert float((new @ memory).abs().max()) < 1e-4
        assert float((first.factors.A[name].double() @ memory).abs().max()) > 0.1  # the first task is in there


def test_inflora_s_a_are_the_strongest_directions_left(learn, job, quiet) -> None:
    first = learn("inflora", rows=OTHER_ROWS, **LEARNS)
    second = learn("inflora", [("a", first)], work="second", **(LEARNS | STILL))
    before = covariances(plain_model(quiet, first.head, first.factors), OTHER_ROWS[0])
    now = covariances(plain_model(quiet, second.head, first.factors), job().texts)
    for name in MODULES:
        memory = leading(before[name])
        left = now[name] - memory @ (memory.T @ now[name])
        strongest = torch.linalg.svd(left).U[:, :2]
        rows = second.factors.A[name].double() * 3**0.5
        torch.testing.assert_close((rows @ strongest).abs(), torch.eye(2).double(), rtol=0, atol=1e-3)


# ---------------------------------------------------------------------------------------------------------- amlora


def test_amlora_records_its_selector_from_the_second_task_on(learn) -> None:
    first = learn("amlora", rows=OTHER_ROWS, **LEARNS)
    assert first.objects == {}
    second = learn("amlora", [("a", first)], work="second", **LEARNS)
    selector = load(second.objects["selector"])
    assert {key.partition(":")[2] for key in selector} == set(MODULES)
    assert all(selector[f"u:{name}"].shape == (2, 32) for name in MODULES)
    assert all(selector[f"c:{name}"].shape == (2,) and selector[f"c_zero:{name}"].shape == (1,) for name in MODULES)
    assert any(bool(selector[f"u:{name}"].any()) for name in MODULES)
    assert second.penalties == {"l1 of the selector": 1e-3}


def test_amlora_s_selector_starts_from_the_last_one(learn) -> None:
    first = learn("amlora", rows=OTHER_ROWS, **LEARNS)
    second = learn("amlora", [("a", first)], work="second", **LEARNS)
    third = learn("amlora", [("a", first), ("b", second)], work="third", rows=OTHER_ROWS, **(LEARNS | STILL))
    was, now = load(second.objects["selector"]), load(third.objects["selector"])
    for name in MODULES:
        torch.testing.assert_close(now[f"u:{name}"][:2], was[f"u:{name}"], rtol=0, atol=1e-20)
        torch.testing.assert_close(now[f"c:{name}"][:2], was[f"c:{name}"], rtol=0, atol=1e-20)
        torch.testing.assert_close(now[f"c_zero:{name}"], was[f"c_zero:{name}"], rtol=0, atol=1e-20)
        assert float(now[f"u:{name}"][2].abs().max()) < 1e-20
        assert float(now[f"c:{name}"][2].abs()) < 1e-20


# ---------------------------------------------------------------------------------------------------------- resume

OLD = Replayed(
    ["a b", "x y z", "m", "k l"], ["z", "y", "x", "x"], ("x", "y", "z"), None, 66,
    {"classifier.weight": torch.linspace(-1, 1, 96).view(3, 32), "classifier.bias": torch.tensor([0.1, 0.0, -0.1])},
)  # fmt: skip


@pytest.mark.by_turns
@pytest.mark.parametrize(
    "strategy",
    [
        "amlora",
        "ewc",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("nlora", "inflora", "replay", "joint")),
    ],
)
def test_a_resumed_run_gives_the_bytes_of_an_uninterrupted_one(
    learn, job, recorder, base, factors_of, strategy: str
) -> None:
    """On a base with dropout, so that the random state counts too; killed within a run of 18 steps or more."""
    first = learn(strategy, rows=OTHER_ROWS, **LEARNS)
    settings = {"epochs": 3, "save_steps": 2}

    def second(work: str, observer: Any = None, *, resume: bool = False) -> TrainedAdapter:
        made = as_bank(job, base, strategy, [("a", first)], None, work=work, resume=resume, **settings)
        replayed = (OLD,) if strategy in ("replay", "joint") else ()
        return train_adapter(replace(made, replayed=replayed), observer or recorder())

    whole = second("whole")
    with pytest.raises(KeyboardInterrupt):
        second("cut", recorder(stop_after=9))
    observer = recorder()
    resumed = second("cut", observer, resume=True)
    assert len(observer.values) == whole.steps - 8
    assert resumed.objects == whole.objects
    assert resumed.head_digest == whole.head_digest
    found, expected = factors_of(resumed), factors_of(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
