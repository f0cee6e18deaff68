"""Layers that read one tensor, with one mask and one product: what autograd makes of them with that mask."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.training.layers.layer import LoraLinear
from lorabank.training.layers.shared_input import share_inputs
from tests.unit.training.plain import plain_layers

WIDTHS = {"q": 24, "k": 16, "v": 20}
SCALE, SEED = 1.5, 7


class Block(nn.Module):
    """Three layers of one input, and one behind them that has another of the same width."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        for name, width in WIDTHS.items():
            self.add_module(name, nn.Linear(40, width, bias=name != "k"))
        self.o = nn.Linear(60, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.o(torch.cat([self.q(x), self.k(x), self.v(x)], -1)) + x


def made(p: float) -> tuple[Block, dict[str, LoraLinear]]:
    model = Block().bfloat16()
    layers = plain_layers(model, [*WIDTHS, "o"], r=4, lora_alpha=4 * SCALE, dropout=p)
    for layer in layers.values():
        nn.init.normal_(layer.lora_B, std=0.1)
    share_inputs(layers.values(), lambda: model.eval()(torch.randn(2, 40).bfloat16()))
    return model.train(), layers


def test_only_layers_of_one_input_share_it() -> None:
    _, layers = made(0.0)
    assert {name for name, layer in layers.items() if layer.shared is not None} == set(WIDTHS)


def reference(x: Tensor, model: Block, layers: dict[str, LoraLinear], p: float) -> tuple[Tensor, dict[str, Tensor]]:
    """In float64 from the same values, with the mask that the seed draws for the shared input, then for the last."""
    torch.manual_seed(SEED)
    step = round(2**16 * p) / 2**16
    shapes = (x, x.new_empty(*x.shape[:-1], 60))
    masks = [torch.native_dropout(one.reshape(-1, one.shape[-1]), step, True)[1] if p else 1.0 for one in shapes]
    factors: dict[str, Tensor] = {}

    def linear(name: str, x: Tensor, mask: Tensor | float) -> Tensor:
        base, layer = layers[name].base, layers[name]
        for part, leaf in (("A", layer.lora_A), ("B", layer.lora_B)):
            factors[f"{name}.{part}"] = leaf.detach().double().requires_grad_()
        kept = x * (mask.reshape(x.shape) if isinstance(mask, Tensor) else mask) / (1 - step)
        bias = None if base.bias is None else base.bias.double()
        low = F.linear(F.linear(kept, factors[f"{name}.A"]), factors[f"{name}.B"])
        return F.linear(x, base.weight.double(), bias) + SCALE * low

    wide = x.detach().double().requires_grad_()
    out = linear("o", torch.cat([linear(name, wide, masks[0]) for name in WIDTHS], -1), masks[1]) + wide
    factors["x"] = wide
    return out, factors


@pytest.mark.parametrize(("shape", "p"), list(itertools.product([(9,), (3, 5)], [0.0, 0.3])))
def test_output_and_gradients_are_those_of_autograd_with_one_mask(shape: tuple[int, ...], p: float) -> None:
    model, layers = made(p)
    x = torch.randn(*shape, 40, generator=torch.Generator().manual_seed(1)).bfloat16().requires_grad_()
    slope = torch.randn(*shape, 40, generator=torch.Generator().manual_seed(2)).bfloat16()
    torch.manual_seed(SEED)
    out = model(x)
    out.backward(slope)
    exact, leaves = reference(x, model, layers, p)
    exact.backward(slope.double())
    found = {"x": x.grad} | {f"{n}.{k}": getattr(layer, f"lora_{k}").grad for n, layer in layers.items() for k in "AB"}
    pairs = [(out.detach(), exact.detach()), *((found[name], leaf.grad) for name, leaf in leaves.items())]
    for ours, expected in pairs:
        assert ours is not None
        assert float((ours.double() - expected).norm() / expected.norm()) < 2**-6
    assert all(found[name].dtype == torch.float32 for name in found if name != "x")


def test_each_factor_can_rest() -> None:
    model, layers = made(0.3)
    layers["q"].lora_A.requires_grad_(False)
    layers["k"].lora_B.requires_grad_(False)
    model(torch.randn(4, 40).bfloat16()).sum().backward()
    factors = {f"{name}.{part}": getattr(one, f"lora_{part}") for name, one in layers.items() for part in "AB"}
    got = {name for name, factor in factors.items() if factor.grad is not None}
    assert got == {"q.B", "k.A", "v.A", "v.B", "o.A", "o.B"}


@torch.no_grad()
def test_another_tensor_begins_anew() -> None:
    model, layers = made(0.0)
    first, second = torch.randn(3, 40).bfloat16(), torch.randn(3, 40).bfloat16()
    alone = {name: Block().bfloat16().get_submodule(name) for name in layers}

    def expected(name: str, x: Tensor) -> Tensor:
        low = SCALE * (x.double() @ layers[name].lora_A.double().mT) @ layers[name].lora_B.double().mT
        return alone[name](x).double() + low

    calls = [("q", first), ("k", second), ("k", first), ("q", second), ("v", second), ("v", second)]
    for name, x in calls:
        torch.testing.assert_close(model.get_submodule(name)(x).double(), expected(name, x), rtol=2e-2, atol=2e-2)
    found = model.q(second)
    second += 1  # the same tensor, with other values
    torch.testing.assert_close(model.k(second).double(), expected("k", second), rtol=2e-2, atol=2e-2)
    assert found.shape == (3, 24)


def test_one_mask_is_kept_for_all_and_one_input() -> None:
    model, _ = made(0.3)
    x = torch.randn(50, 40).bfloat16()
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outs = [model.get_submodule(name)(x) for name in WIDTHS]
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes = sorted(size for place, size in kept.items() if place not in own)
    copies = [2 * 4 * width for width in WIDTHS.values()]  # of B, and of the stacked A
    assert sizes == sorted([50 * 40, 2 * 50 * 40, 2 * 50 * 12, 2 * 12 * 40, *copies])
    assert len(outs) == 3
