"""HydraLoRA: the layer's equation in float64, token by token, and training, storing and answering with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lorabank.algebra.factors import FactorShape
from lorabank.algebra.stack import AdapterStack
from lorabank.core.errors import ConfigError, DataError, IncompatibleError
from lorabank.models.mixing.mixture import Mixture
from lorabank.models.tuners.hydra import HydraFactors, hydra_factors
from lorabank.models.tuners.state import TunerState
from lorabank.training.kernels.low_rank import keep_mask, rounded
from lorabank.training.variants.hydralora import HydraLinear
from tests.unit.training.variants.test_variants import ALPHA, IDS, RATE, R, Trial, load

S = ALPHA / R


def factors(d_out: int, d_in: int, heads: int, seed: int = 3) -> HydraFactors:
    dice = torch.Generator().manual_seed(seed)
    shapes = (R, d_in), (d_out, heads * R), (heads, d_in)
    return HydraFactors(*(torch.randn(shape, generator=dice, dtype=torch.float64) for shape in shapes), scaling=S)


def dense(x: Tensor, W: Tensor, b: Tensor, A: Tensor, B: Tensor, router: Tensor, seen: Tensor) -> Tensor:
    """``(W + s sum_i w_i B_i A) x + b`` of every token by a matrix of its own; A reads ``seen`` in the place of x."""
    found = []
    for token, read in zip(x.flatten(0, -2), seen.flatten(0, -2), strict=True):
        scores = torch.stack([row.dot(token) for row in router]).exp()
        delta = sum(w / scores.sum() * B[:, i * R : (i + 1) * R] @ A for i, w in enumerate(scores))
        found.append(W @ token + b + S * delta @ read)
    return torch.stack(found).view(*x.shape[:-1], len(b))


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("kind", ["linear", "conv1d"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_outputs_and_gradients_are_those_of_one_dense_matrix_for_each_token(
    kind: str, heads: int, dropout: float
) -> None:
    torch.manual_seed(0)
    d_in, d_out = 6, 5
    base = (nn.Linear(d_in, d_out) if kind == "linear" else Conv1D(d_out, d_in)).double()
    nn.init.normal_(base.bias)
    layer = HydraLinear(base, factors(d_out, d_in, heads), dropout).train()
    x = torch.randn(2, 4, d_in, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(7)
    found = layer(x)
    torch.manual_seed(7)
    drawn = keep_mask(x.detach().view(8, d_in), dropout) if dropout else torch.ones(8, d_in)
    kept = drawn.view_as(x).double() / (1 - rounded(dropout))
    assert bool((kept == 0).any()) == (dropout > 0)
    W = (base.weight if kind == "linear" else base.weight.T).detach()
    own = [one.detach().clone().requires_grad_() for one in (layer.hydra_A, layer.hydra_B, layer.hydra_router)]
    again = x.detach().clone().requires_grad_()
    wanted = dense(again, W, base.bias.detach(), *own, again * kept)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    up = torch.randn_like(found)
    found.backward(up)
    wanted.backward(up)
    pairs = zip((x, layer.hydra_A, layer.hydra_B, layer.hydra_router), (again, *own), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=0, atol=1e-10)
    assert base.weight.grad is None
    assert bool((layer.hydra_router.grad != 0).any()) == (heads > 1)
    torch.testing.assert_close(layer.eval()(x), dense(x, W, base.bias, *own, x), rtol=0, atol=1e-10)


def test_one_head_takes_the_steps_of_plain_lora(bases: Mapping[str, str]) -> None:
    hydra = Trial(load(bases, "bert"), "auto", variant="hydralora", strategy="isolated", set=("heads=1",))
    lora = Trial(load(bases, "bert"), "auto", variant="lora", strategy="isolated")
    ours, theirs = (one.optimizer(torch.optim.AdamW) for one in (hydra, lora))
    for _ in range(5):
        found, wanted = hydra.step(ours), lora.step(theirs)
        assert float(found.detach()) == pytest.approx(float(wanted.detach()), abs=1e-6)
    adapter, folded = hydra_factors(hydra.parametrization.tuned()), lora.folded()
    assert adapter.keys() == folded.A.keys()
    for name, one in adapter.items():
        torch.testing.assert_close(one.A, folded.A[name], rtol=0, atol=1e-5)
        torch.testing.assert_close(one.B, folded.B[name], rtol=0, atol=1e-5)
        assert one.scaling == folded.scaling[name]


BLOCKS = {"q": slice(0, 32), "k": slice(32, 64), "v": slice(64, 96)}
"""Rows of GPT-2's fused matrix at a width of 32."""


def by_hooks(model: Any, state: TunerState) -> None:
    """Add ``s sum_i w_i B_i A x`` behind the modules of a plain model, from the stored tensors."""
    heads, tensors = state.config["heads"], state.tensors
    for key in tensors:
        if not key.endswith(".hydra_A"):
            continue
        site = key.removesuffix(".hydra_A")
        block = BLOCKS.get(site.rpartition(".")[2]) if "c_attn" in site else None
        A, B, router = (tensors[f"{site}.hydra_{one}"] for one in ("A", "B", "router"))

        def add(_: Any, inputs: Any, out: Tensor, A=A, B=B, router=router, block=block) -> Tensor:
            w = torch.einsum("...i,ni->...n", inputs[0], router).softmax(-1)
            each = B.view(len(B), heads, R)
            added = S * torch.einsum("...n,onr,ri,...i->...o", w, each, A, inputs[0])
            if block is None:
                return out + added
            whole = torch.zeros_like(out)
            whole[..., block] = added
            return out + whole

        model.get_submodule(site.rpartition(".")[0] if block else site).register_forward_hook(add)


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
@torch.no_grad()
def test_training_begins_at_the_base_and_what_is_stored_answers_as_the_trained_model(
    bases: Mapping[str, str], kind: str
) -> None:
    base, plain, model = (load(bases, kind) for _ in range(3))
    targets = "c_attn.q,c_attn.v,c_proj" if kind == "gpt2" else "auto"
    trial = Trial(model, targets, variant="hydralora", strategy="isolated", use_rslora=False)
    before = base(input_ids=IDS).logits
    torch.testing.assert_close(model(input_ids=IDS).logits, before, rtol=0, atol=1e-6)
    with torch.enable_grad():
        optimizer = trial.optimizer(torch.optim.AdamW, RATE)
        for _ in range(3):
            trial.step(optimizer)
    wanted, state = model(input_ids=IDS).logits, trial.parametrization.tuned()
    assert float((wanted - before).abs().max()) > 1e-2
    by_hooks(plain, state)
    torch.testing.assert_close(plain(input_ids=IDS).logits, wanted, rtol=0, atol=1e-5)
    shapes = {site.module_name: (base.get_submodule(site.module_name), site) for site in trial.sites}
    none = {name: FactorShape(0, site.d_in, 96 if "c_attn" in name else site.d_out, 1.0)
            for name, (_, site) in shapes.items()}  # fmt: skip
    mixture = Mixture(base, AdapterStack.reserve({"hydra": none}, device="cpu", dtype=torch.float32))
    mixture.answer_alone(hydra_factors(state))
    torch.testing.assert_close(base(input_ids=IDS).logits, wanted, rtol=0, atol=1e-5)
    mixture.check_called()
    mixture.off()
    assert torch.equal(base(input_ids=IDS).logits, before)
    other = {name: replace(one, A=one.A[:, :-1]) for name, one in hydra_factors(state).items()}
    with pytest.raises(IncompatibleError, match="the adapter is not of this base model"):
        mixture.answer_alone(other)
    assert torch.equal(base(input_ids=IDS).logits, before)


def test_the_router_begins_within_the_bounds_of_a_linear_layer(bases: Mapping[str, str]) -> None:
    trial = Trial(load(bases, "bert"), "auto", variant="hydralora", strategy="isolated", start="orthogonal")
    for one in hydra_factors(trial.parametrization.tuned()).values():
        bound = 1 / math.sqrt(one.router.shape[1])
        assert one.router.shape[0] == 3
        assert 0.5 * bound < float(one.router.abs().max()) <= bound
        assert not one.B.any()
        torch.testing.assert_close(one.A @ one.A.T, one.A.square().sum(1).diag(), rtol=0, atol=1e-5)


def test_stored_tensors_that_do_not_fit_are_named() -> None:
    config = {"r": 2, "heads": 3, "lora_alpha": 4.0, "use_rslora": False}
    good = {"m.hydra_A": torch.ones(2, 4), "m.hydra_B": torch.ones(5, 6), "m.hydra_router": torch.ones(3, 4)}
    assert hydra_factors(TunerState(config, good))["m"].scaling == 2.0
    for name in good:
        with pytest.raises(DataError, match=f"lacks the tensor '{name}'"):
            hydra_factors(TunerState(config, {key: value for key, value in good.items() if key != name}))
        with pytest.raises(DataError, match="shapes are not those of 3 heads of rank 2"):
            hydra_factors(TunerState(config, good | {name: torch.ones(7, 7)}))


def test_modules_that_are_not_linear_layers_are_refused(bases: Mapping[str, str]) -> None:
    trial = Trial(load(bases, "bert"), "auto", variant="hydralora", strategy="isolated")
    from lorabank.models.bases.targets import find_targets
    from lorabank.training.methods import chosen_methods

    (site, *_) = find_targets(load(bases, "bert"), "word_embeddings", ()).sites
    refused = chosen_methods(trial.config).variant.refusal(site, 2, 0)
    assert isinstance(refused, ConfigError)
    assert "word_embeddings is of the class Embedding" in refused.message
