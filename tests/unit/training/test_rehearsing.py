"""Strategies that pass rows or heads of earlier tasks again: each loss and gradient against plain transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.records import BaseModelRecord
from lorabank.models.facts.answers import answers_from_bytes, answers_to_bytes, kept_answers
from lorabank.training.checkpoints import read_tensors
from lorabank.training.context import TaskFact
from lorabank.training.job import Replayed, TrainedAdapter, TrainJob
from lorabank.training.run import train_adapter
from lorabank.training.strategies.gem import constrained, projected
from tests.unit.training.plain import plain_model

LABELS = ("0", "1", "2")
OLD = (["b a", "c", "x y", "w z w", "d a", "v"], ["0", "2", "1", "1", "0", "2"])
"""The rows of the earlier task."""
KEPT = [4, 1, 2]
LEARNS = {"learning_rate": 1e-2, "epochs": 4, "lora_dropout": 0.0, "lora_alpha": 8.0}
STILL = LEARNS | {"learning_rate": 1e-30, "epochs": 1, "batch_size": 64}
"""One step over all rows that moves nothing: its loss is that of the start."""


@pytest.fixture
def first(job, recorder, quiet) -> Callable[[str], TrainedAdapter]:
    """``first(strategy)``: the earlier task, three of whose rows are kept."""

    def run(strategy: str) -> TrainedAdapter:
        made = job(work="first", strategy=strategy, on=quiet, **LEARNS)
        return train_adapter(replace(made, texts=OLD[0], targets=OLD[1], labels=LABELS, kept=KEPT), recorder())

    return run


@pytest.fixture
def second(job, quiet) -> Callable[..., TrainJob]:
    """``second(strategy, first, objects=None, rows=KEPT, **config)``: the job of the next task."""

    def make(
        strategy: str, before: TrainedAdapter, *, objects: Any = None, rows: Sequence[int] = KEPT, **config: Any
    ) -> TrainJob:
        active = strategy == "olora-distil"
        stack = AdapterStack.build({"a": before.factors})
        names = {"context": ("a",)} if active else {"continued": "a"}
        made: TrainJob = job(strategy=strategy, earlier=stack, on=quiet, **names, **config)
        texts, targets = ([part[i] for i in rows] for part in OLD)
        found = before.objects if objects is None else objects
        return replace(
            made,
            replayed=(Replayed(texts, targets, LABELS, None, 66, before.head),),
            objects={role: [TaskFact(("a",), data)] for role, data in found.items()},
        )

    return make


def logits(model: Any, texts: Sequence[str]) -> Tensor:
    """One text at a time."""
    ids = [[0, *(4 + ord(letter) - ord("a") for letter in text.split()), 2] for text in texts]
    return torch.cat([model(input_ids=torch.tensor([row])).logits for row in ids])


def cross_entropies(found: Tensor, targets: Sequence[str]) -> Tensor:
    return F.cross_entropy(found.double(), torch.tensor([int(target) for target in targets]), reduction="none")


def old_rows(rows: Sequence[int] = KEPT) -> tuple[list[str], list[str]]:
    return [OLD[0][i] for i in rows], [OLD[1][i] for i in rows]


@torch.no_grad()
def loss_of(job: TrainJob, model: Any) -> Tensor:
    """The cross entropy of each of the new rows."""
    return cross_entropies(logits(model, job.texts), job.targets)


@pytest.mark.parametrize("strategy", ["olora-distil", "der"])
def test_what_is_recorded_is_what_the_model_answers(first, quiet, strategy: str) -> None:
    trained = first(strategy)
    answers, terms = answers_from_bytes(trained.objects["answers"])
    with torch.no_grad():
        expected = logits(plain_model(quiet, trained.head, trained.factors), old_rows()[0])
    assert terms.tolist() == [1, 1, 1]
    found = torch.empty(3, 3).scatter_(1, answers.choices, answers.logits)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_distilled_rows_are_compared_with_their_stored_answers(first, second, quiet, recorder) -> None:
    before = first("olora-distil")
    said = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0], [0.0, 0.0, 3.0]])
    stored = {"answers": answers_to_bytes(kept_answers(said, 64), torch.ones(3))}
    job = second("olora-distil", before, objects=stored, **STILL)
    trained = train_adapter(job, recorder())
    assert trained.metrics["rows_replayed"] == 3
    new = loss_of(job, plain_model(quiet, trained.head, before.factors))
    with torch.no_grad():
        now = logits(plain_model(quiet, before.head, before.factors), old_rows()[0]).double().log_softmax(-1)
    was = said.double().log_softmax(-1)
    old = (was.exp() * (was - now)).sum(-1)
    expected = torch.cat([new, old]).mean()
    assert trained.metrics["final_loss"] == pytest.approx(float(expected), abs=1e-6)


def test_der_adds_logits_and_labels_of_earlier_rows(first, second, quiet, recorder) -> None:
    before = first("der")
    said = torch.tensor([[1.0, 0.0, -1.0], [0.5, 2.0, 0.0], [0.0, 0.0, 3.0]])
    stored = {"answers": answers_to_bytes(kept_answers(said, 64), torch.ones(3))}
    job = second("der", before, objects=stored, **STILL)
    job = replace(job, strategy=replace(job.strategy, alpha=0.7, beta=0.3))
    trained = train_adapter(job, recorder())
    new = loss_of(job, plain_model(quiet, trained.head, before.factors)).mean()
    with torch.no_grad():
        now = logits(plain_model(quiet, before.head, before.factors), old_rows()[0]).double()
    expected = new + 0.7 * (now - said).square().mean() + 0.3 * cross_entropies(now, old_rows()[1]).mean()
    assert trained.metrics["final_loss"] == pytest.approx(float(expected), abs=1e-6)


def test_lwf_keeps_the_old_heads_answers_on_the_new_rows(first, second, quiet, recorder) -> None:
    """The loss of the second step is that of the model after the first one."""
    before = first("lwf")
    one = LEARNS | {"epochs": 1, "batch_size": 64, "lr_scheduler_type": "constant"}
    job = second("lwf", before, rows=(), **one)
    moved = train_adapter(job, recorder())
    twice = train_adapter(second("lwf", before, rows=(), work="twice", **(one | {"epochs": 2})), recorder())
    new = loss_of(job, plain_model(quiet, moved.head, moved.factors)).mean()
    with torch.no_grad():
        was, now = (
            (logits(plain_model(quiet, before.head, factors), job.texts).double() / 2).log_softmax(-1)
            for factors in (before.factors, moved.factors)
        )
    old = (was.exp() * (was - now)).sum(-1).mean()
    assert float(old) > 1e-4
    assert twice.metrics["final_loss"] == pytest.approx(float(new + old), abs=1e-6)


# ---------------------------------------------------------------------------------------------------------- gradients


def slopes(base: BaseModelRecord, factors: LoraFactors, head: Any, rows: tuple[list[str], list[str]]) -> Tensor:
    """The gradient of the mean loss of some rows with respect to A and B, site by site."""
    model = plain_model(base, head, factors)
    cross_entropies(logits(model, rows[0]), rows[1]).mean().backward()
    A, B = [], []
    for name, a in factors.A.items():
        slope, s = model.get_submodule(name).weight.grad, factors.scaling[name]
        A.append((s * factors.B[name].T @ slope).flatten())
        B.append((s * slope @ a.T).flatten())
    return torch.cat([*A, *B])


@pytest.mark.parametrize("strategy", ["gem", "agem"])
def test_the_step_takes_the_constrained_gradient(first, second, quiet, recorder, tmp_path, strategy: str) -> None:
    before = first(strategy)
    wrong = (old_rows()[0], [str((int(target) + 1) % 3) for target in old_rows()[1]])
    job = second(strategy, before, **(STILL | {"epochs": 2, "save_steps": 1, "max_grad_norm": 0.0}))
    head = train_adapter(second(strategy, before, work="still", **STILL), recorder()).head  # as training begins
    for targets in (old_rows()[1], wrong[1]):  # of one of the two the product is negative
        (task,) = job.replayed
        job = replace(job, replayed=(replace(task, targets=targets),))
        g = slopes(quiet, before.factors, head, (list(job.texts), list(job.targets)))
        r = slopes(quiet, before.factors, before.head, (old_rows()[0], targets))
        if float(g @ r) < 0:
            break
    assert float(g @ r) < 0
    needed = -float(g @ r) / float(r @ r)
    expected = g + (needed if strategy == "agem" else max(0.5, needed)) * r  # gem has one constraint
    with pytest.raises(KeyboardInterrupt):
        train_adapter(job, recorder(stop_after=2))
    stored = read_tensors(tmp_path / "work" / "checkpoint-1", "optimizer")
    moments = [10 * value for key, value in stored.items() if key.endswith(".exp_avg")]
    sizes = [a.numel() for a in before.factors.A.values()] + [b.numel() for b in before.factors.B.values()]
    for part in expected.split(sizes):
        nearest = min(float((m.flatten() - part).abs().max()) for m in moments if m.numel() == part.numel())
        assert nearest < 1e-6


def test_several_constraints_against_projected_descent() -> None:
    torch.manual_seed(0)
    for _ in range(5):
        g, G = torch.randn(7, dtype=torch.float64), torch.randn(3, 7, dtype=torch.float64)
        G[0] = -g + 0.1 * G[0]
        v = torch.full((3,), 0.2, dtype=torch.float64)
        for _ in range(20000):
            v = (v - 0.02 * (G @ (G.T @ v + g))).clamp(min=0.2)
        torch.testing.assert_close(constrained(g, G, 0.2), G.T @ v + g, rtol=0, atol=1e-6)
        assert bool((G @ constrained(g, G, 0.0) >= -1e-9).all())


def test_a_gradient_that_hurts_nothing_is_taken_as_it_is() -> None:
    g = torch.tensor([1.0, 2.0])
    assert constrained(g, torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 0.5) is g
    assert projected(g, torch.tensor([1.0, 0.0])) is g
    assert projected(g, torch.tensor([-1.0, 0.0])).tolist() == [0.0, 2.0]
