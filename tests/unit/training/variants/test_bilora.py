"""BiLoRA's two levels: each part of the update learns from its own rows, and from no others."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from lorabank.core.config import TrainConfig
from lorabank.models.bases.targets import find_targets
from lorabank.training.layers.attaching import attach
from lorabank.training.layers.live import Live
from lorabank.training.methods import chosen_methods
from lorabank.training.planning import rows_apart
from lorabank.training.variants.base import Step

R, ALPHA, S = 3, 6.0, 2.0
IDS = torch.arange(72).view(6, 12) * 7 % 30
APART = (1, 4)
PASSED = [0, 2, 3, 5]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_language_model) -> str:
    return str(save_language_model(tmp_path_factory.mktemp("llama"), initializer_range=0.1))


def llama(folder: str) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)


def loss(model: Any, ids: Tensor) -> Tensor:
    return -(model(input_ids=ids).logits.float() / 10).log_softmax(-1)[..., 1].mean()


class Levels:
    def __init__(self, model: nn.Module, apart: tuple[int, ...] = APART, **settings: Any) -> None:
        given = tuple(f"bilora.{key}={value}" for key, value in settings.items())
        config = TrainConfig(r=R, lora_alpha=ALPHA, lora_dropout=0.0, variant="bilora", strategy="isolated", set=given)
        methods, self.model = chosen_methods(config), model
        self.sites = find_targets(model, "auto", ()).sites
        names = tuple(site.name for site in self.sites)
        context: Any = SimpleNamespace(
            model=model, sites=self.sites, targets=names, config=config, scaling=S, initial=None, earlier=None,
            earlier_by_site=None, apart=apart, inputs=lambda rows: {"input_ids": IDS[list(rows)]},
            loss=lambda model, inputs: loss(model, inputs["input_ids"]),
        )  # fmt: skip
        context.without_past = lambda: context
        torch.manual_seed(3)
        self.trained: Any = methods.variant.parametrize(context, methods.start)
        attached = attach(context, self.trained)
        with torch.no_grad():
            for e in self.trained.e:
                e.normal_()
        self.live = Live(model, attached.layers, self.trained)

    def gradients(self, number: int, rows: list[int] = PASSED) -> None:
        """As the trainer makes them, of the loss on some rows and of the variant's own term."""
        loss(self.model, IDS[rows]).backward()
        self.trained.after_loss(Step(number, 20))
        self.live.pull()
        self.trained.loss(Step(number, 20)).backward()
        self.trained.before_step(Step(number, 20))

    def expected(self, folder: str, rows: list[int]) -> dict[str, list[Tensor]]:
        """Gradients of the loss on these rows, of a model whose weights are ``W + s P diag(e) Q``."""
        plain = llama(folder)
        parts = {part: [t.detach().clone().requires_grad_() for t in getattr(self.trained, part)] for part in "PQe"}
        weights = {
            f"{site.name}.weight": plain.get_submodule(site.name).weight + S * (P * e) @ Q
            for site, P, Q, e in zip(self.sites, parts["P"], parts["Q"], parts["e"], strict=True)
        }
        value = loss(lambda input_ids: functional_call(plain, weights, (), {"input_ids": input_ids}), IDS[rows])
        found = torch.autograd.grad(value, [t for part in parts.values() for t in part])
        n = len(self.sites)
        return {part: list(found[k * n : (k + 1) * n]) for k, part in enumerate(parts)}


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_directions_learn_from_one_part_of_the_rows_and_sizes_from_the_other(folder: str) -> None:
    levels = Levels(llama(folder), gamma=0.0)
    levels.gradients(1)
    of_passed, of_apart = levels.expected(folder, PASSED), levels.expected(folder, list(APART))
    for k in range(len(levels.sites)):
        close(levels.trained.P[k].grad, of_passed["P"][k])
        close(levels.trained.Q[k].grad, of_passed["Q"][k])
        close(levels.trained.e[k].grad, of_apart["e"][k])
        assert float((of_apart["e"][k] - of_passed["e"][k]).abs().max()) > 1e-5  # else it shows nothing


@pytest.mark.parametrize("every", [1, 3])
def test_sizes_take_the_first_of_every_few_steps(folder: str, every: int) -> None:
    levels = Levels(llama(folder), every=every)
    for number in range(1, 8):
        levels.trained.zero_grad()
        levels.live.refresh()
        levels.gradients(number)
        assert all((e.grad is not None) == ((number - 1) % every == 0) for e in levels.trained.e)
        assert all(p.grad is not None for p in levels.trained.P)


def test_the_penalty_is_the_distance_from_orthonormal(folder: str) -> None:
    levels = Levels(llama(folder), gamma=0.7)
    assert float(levels.trained.loss(Step(1, 2)).detach()) < 1e-9  # where it begins
    with torch.no_grad():
        for p in levels.trained.P:
            p.add_(torch.randn(p.shape) * 0.1)
    total = 0.0
    for p, q in zip(levels.trained.P, levels.trained.Q, strict=True):
        p, q = p.detach().double(), q.detach().double()
        total += float((p.T @ p - torch.eye(R)).norm() ** 2 + (q @ q.T - torch.eye(R)).norm() ** 2)
    assert float(levels.trained.loss(Step(1, 2)).detach()) == pytest.approx(0.7 * total, rel=1e-5)


def test_a_task_of_one_row_has_no_second_part(folder: str) -> None:
    levels = Levels(llama(folder), (), gamma=0.0)
    levels.gradients(1, [0])
    for found, expected in zip(levels.trained.e, levels.expected(folder, [0])["e"], strict=True):
        close(found.grad, expected)


def test_rows_are_set_apart_by_seed_and_number() -> None:
    config = TrainConfig(variant="bilora", set=("upper=0.3",))
    rows = rows_apart(40, config, 3)
    assert len(set(rows)) == 12
    assert rows == sorted(rows) == rows_apart(40, config, 3)
    assert rows != rows_apart(40, config, 4)
    assert rows_apart(40, TrainConfig(), 3) == []
    assert [len(rows_apart(n, config, 0)) for n in (1, 2, 3)] == [0, 1, 1]


def test_an_epoch_leaves_out_what_is_set_apart(train) -> None:
    """22 rows in batches of 4: six steps, and five of the 18 that are left."""
    assert train(variant="lora", epochs=1).steps == 6
    assert train(variant="bilora", epochs=1).steps == 5
