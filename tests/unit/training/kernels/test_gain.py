"""A row gain as one node of the graph, against the same layer written out for autograd."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lorabank.training.kernels.gain import gained_linear
from lorabank.training.kernels.low_rank import keep_mask

D_IN, D_OUT, RANK, SCALE, PAST = 40, 24, 4, 1.7, 6


def reference(x, weight, bias, gain, A, B, past, p: float) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    dropped = x * keep_mask(rows, p).reshape(x.shape) / (1 - round(2**16 * p) / 2**16) if p else x
    out = F.linear(x, weight) * gain + SCALE * F.linear(F.linear(dropped, A), B)
    if past is not None:
        out = out + x @ past[0].mT @ past[1].mT
    return out if bias is None else out + bias


def given(shape, bias: bool, past: bool) -> list:
    dice = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=dice)

    trained = [
        t.requires_grad_() for t in (normal(*shape, D_IN), normal(D_OUT), normal(RANK, D_IN), normal(D_OUT, RANK))
    ]
    x, gain, A, B = trained
    beside = (normal(PAST, D_IN), normal(D_OUT, PAST)) if past else None
    return [x, normal(D_OUT, D_IN), normal(D_OUT) if bias else None, gain, A, B, beside]


@pytest.mark.parametrize(
    ("shape", "bias", "past", "p"),
    list(itertools.product([(), (9,), (2, 3, 5)], [True, False], [True, False], [0.0, 0.3])),
)
def test_output_and_gradients_are_those_of_autograd(shape, bias: bool, past: bool, p: float) -> None:
    outs, grads = [], []
    for form in (lambda *a: gained_linear(*a, SCALE, p), lambda *a: reference(*a, p)):
        inputs = given(shape, bias, past)
        torch.manual_seed(7)
        out = form(*inputs)
        out.mul_(1.5)  # as models do with what a linear layer gives
        (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
        outs.append(out.detach())
        grads.append([inputs[k].grad for k in (0, 3, 4, 5)])
    torch.testing.assert_close(*outs, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(*grads, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=2e-4)


def test_a_gain_of_zero_has_its_gradient() -> None:
    x, weight, _, gain, A, B, _ = given((7,), bias=False, past=False)
    with torch.no_grad():
        gain[3] = 0
    gained_linear(x, weight, None, gain, A, B, None, SCALE, 0.0)[:, 3].sum().backward()
    torch.testing.assert_close(gain.grad[3], F.linear(x, weight)[:, 3].sum().detach())


def test_the_gain_itself_is_not_rounded_to_bfloat16() -> None:
    """1.003 would be 1.0039 there, in every entry; the rounding of the products leaves their mean where it belongs."""
    x, weight, _, _, A, _, _ = given((400,), bias=False, past=False)
    x = x.detach()
    gain, B = torch.full((D_OUT,), 1.003, requires_grad=True), torch.zeros(D_OUT, RANK)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = gained_linear(x, weight, None, gain, A, B, None, SCALE, 0.0)
    assert out.dtype == torch.bfloat16
    moved = (out.detach().double() / F.linear(x.bfloat16(), weight.bfloat16()).double()).mean()
    assert float(moved) == pytest.approx(1.003, abs=5e-4)
    out.sum().backward()
    assert gain.grad.dtype == torch.float32
    expected = F.linear(x, weight).detach().sum(0)
    assert float((gain.grad - expected).norm() / expected.norm()) < 0.02


def test_gradients_of_a_gain_are_not_rounded_to_bfloat16() -> None:
    """Its own is a float32 sum; that of the inputs has g times 1.003, where the gain in bfloat16 would be 1."""
    x, weight, _, gain, A, B, _ = given((64,), bias=False, past=False)
    x, weight = x.detach().requires_grad_(), torch.eye(D_IN)[:D_OUT]
    with torch.no_grad():
        gain.fill_(1.003)
        B.zero_()
    slope = torch.randn(64, D_OUT, generator=torch.Generator().manual_seed(3)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gained_linear(x, weight, None, gain, A, B, None, SCALE, 0.0).backward(slope)
    z = x.detach().bfloat16().double() @ weight.double().mT
    torch.testing.assert_close(gain.grad.double(), (slope.double() * z).sum(0), rtol=1e-5, atol=1e-5)
    assert torch.equal(x.grad[:, :D_OUT], (slope.float() * 1.003).bfloat16().float())  # the weight is an identity
