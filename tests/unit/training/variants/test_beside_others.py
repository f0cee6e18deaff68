"""Variants beside what else a training has: tables and convolutions, penalties, savings, strategies, processes."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.core.shelves import VARIANTS
from lorabank.models.bases.sites import site_of
from lorabank.training.layers.layer import attach_factors
from lorabank.training.layers.live import Live
from lorabank.training.methods import chosen_methods
from lorabank.training.variants import dense_gradients
from lorabank.training.variants.base import Step
from lorabank.training.variants.dense_gradients import DenseGradients
from tests.unit.training.variants.test_variants import Trial, load
from tests.unit.training.variants.test_windows import Run, loss, same

# ------------------------------------------------------------------------------------------ tables and convolutions

TOKENS = torch.tensor([[4, 0, 2, 2], [1, 3, 3, 3]])


class Mixed(nn.Module):
    """A table, a convolution over its rows, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv, self.top = nn.Embedding(5, 6), nn.Conv1d(6, 4, 3, stride=1, padding=1), nn.Linear(4, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        found: Tensor = self.top(torch.tanh(self.conv(self.table(tokens).mT)).mT)
        return found


def attached(variant: str) -> tuple[Mixed, Any, Live]:
    torch.manual_seed(0)
    model = Mixed().requires_grad_(False)
    config = TrainConfig(r=2, lora_alpha=4.0, variant=variant, strategy="isolated")
    sites = [site_of(model, name) for name in ("table", "conv", "top")]
    context: Any = SimpleNamespace(sites=sites, config=config, scaling=2.0, initial=None)
    context.targets = [site.name for site in sites]
    methods = chosen_methods(config)
    own = methods.variant.parametrize(context, methods.start)
    with torch.no_grad():
        for b in own.B:
            b.normal_()
    return model, own, Live(model, attach_factors(model, own.factors(), 0.0), own)


def inputs(model: Mixed) -> list[Tensor]:
    """The rows that each matrix multiplies, by plain torch."""
    seen: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda _, x, name=name: seen.update({name: x[0].detach()}))
        for name, module in (("conv", model.conv), ("top", model.top))
    ]
    model(TOKENS)
    for hook in hooks:
        hook.remove()
    windows = F.unfold(seen["conv"][:, :, None], (1, 3), padding=(0, 1)).mT.flatten(0, 1)
    return [F.one_hot(TOKENS.flatten(), 5).float(), windows, seen["top"].flatten(0, -2)]


def test_prilora_reads_the_rows_of_tables_and_convolutions() -> None:
    model, own, _ = attached("prilora")
    expected = [rows.square().sum(0) for rows in inputs(model)]
    own._read.clear()
    model(TOKENS).sum().backward()
    own.after_loss(Step(1, 9))
    for k, squares in enumerate(expected):
        torch.testing.assert_close(own.get_buffer(f"squares_{k}"), squares)


def test_lora_drop_measures_the_outputs_of_tables_and_convolutions() -> None:
    model, own, live = attached("lora-drop")
    rows = inputs(model)
    own.resume(Step(2, 9), torch.optim.SGD(own.parameters(), lr=0.1))
    live.refresh()
    model(TOKENS).sum().backward()
    own.after_loss(Step(2, 9))
    for k, x in enumerate(rows):
        whole = (2.0 * x.double() @ own.A[k].double().mT @ own.B[k].double().mT).square().sum()
        expected = torch.stack([whole.detach(), whole.new_tensor(len(x)).detach()])
        torch.testing.assert_close(own.outputs[:, k], expected, rtol=1e-5, atol=0)  # outputs are made in float32


# --------------------------------------------------------------------------------------------- penalties, processes


def test_penalties_on_A_are_not_divided_by_what_delta_lora_multiplies_B_with() -> None:
    run = Run("delta-lora", 9, ratio=2.0, after=0)
    run.begin()
    run.step()

    def gradients(*, penalised: bool) -> list[Tensor]:
        run.optimizer.zero_grad()
        run.live.refresh()
        loss(run.model, 1).backward()
        run.parametrization.after_loss(Step(2, 9))
        if penalised:
            sum(run.model.get_submodule(f"layers.{k}").lora_A.sum() for k in range(3)).backward()
        run.live.pull()
        return [a.grad.clone() for a in run.parametrization.A]

    for one, other in zip(gradients(penalised=True), gradients(penalised=False), strict=True):
        same(one - other, torch.ones_like(one))


def test_processes_exchange_the_same_gradients_whatever_each_has_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here one has no text for two of the layers; the mean of what is read stands for another process that has."""
    run = Run("galore", 4)
    layers = {name: run.model.get_submodule(name) for name in ("layers.0", "layers.1", "layers.2")}

    def exchanged(*read: str) -> list[tuple[torch.Size, torch.dtype]]:
        dense, calls = DenseGradients(layers), []
        dense.open = True
        for name in read:
            layers[name](torch.ones(2, layers[name].in_features).double()).sum().backward()

        def averaged(tensor: Tensor) -> Tensor:
            calls.append((tensor.shape, tensor.dtype))
            return tensor if tensor.dim() == 2 else torch.full_like(tensor, 0.5)

        monkeypatch.setattr(dense_gradients, "averaged", averaged)
        found = dense.taken()
        assert list(found) == list(layers)
        assert all(bool((found[name] != 0).any()) == (name in read) for name in layers)
        return calls

    assert exchanged("layers.1") == exchanged("layers.2", "layers.0", "layers.1")


# ------------------------------------------------------------------------------------------- savings and strategies


@pytest.mark.parametrize("variant", ["galore", "prilora", "lora-drop"])
def test_what_measures_its_layers_is_refused_with_dropbp(variant: str) -> None:
    with pytest.raises(ConfigError, match=f"variant '{variant}' and saving 'dropbp' do not go together"):
        chosen_methods(TrainConfig(variant=variant, strategy="isolated", savings=("dropbp",)))
    assert chosen_methods(TrainConfig(variant=variant, strategy="isolated", savings=("gradient-checkpointing",)))


@pytest.mark.parametrize("variant", ["dora-dynamic", "lora-drop"])
@pytest.mark.parametrize("strategy", ["olora-projected", "inflora"])
def test_what_scores_or_shares_A_is_refused_where_the_strategy_makes_it(variant: str, strategy: str) -> None:
    with pytest.raises(ConfigError, match="the strategy makes A anew"):
        chosen_methods(TrainConfig(variant=variant, strategy=strategy))


# ------------------------------------------------------------------------------------------------- rows and ranks


def test_alora_scores_by_rows_that_are_drawn(bases) -> None:
    context = Trial(load(bases, "bert"), "query", variant="alora").context

    def rows(number: int) -> list[int]:
        asked: list[int] = []
        own: Any = replace(context, rows=100, number=number, inputs=lambda rows, head=None: asked.extend(rows) or {})
        VARIANTS.load("alora")().parametrize(own, chosen_methods(own.config).start)
        return asked

    one = rows(0)
    assert len(set(one)) == len(one) == 32
    assert set(one) <= set(range(100))
    assert one == rows(0)
    assert set(one) not in (set(rows(1)), set(range(32)))


def test_prilora_has_no_rank_above_the_one_that_is_planned() -> None:
    """``1.82 r`` is 45.5: the sum of the first rank and all steps would be rounded up, and the product down."""
    variant = VARIANTS.load("prilora")(spread=0.82)
    sites: Any = [SimpleNamespace(depth=k, d_in=3, d_out=5) for k in range(4)]
    assert max(variant._ranks(sites, 25)) == variant.rank(25)
