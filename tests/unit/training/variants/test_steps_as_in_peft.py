"""Variants that freeze or share factors take the steps of PEFT's tuners."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import peft
import peft.optimizers.lorafa
import pytest
import torch
from torch import Tensor, nn

from lorabank.training.variants.base import Step
from tests.unit.training.variants.test_variants import ALPHA, IDS, Q_V, RATE, STEPS, R, Trial, close, load, loss

S = ALPHA / R


def wrapped(model: nn.Module, kind: str, config: Any) -> nn.Module:
    config.target_modules, config.fan_in_fan_out = set(Q_V[kind]), kind == "gpt2"
    return peft.get_peft_model(model, config).eval()


def steps_agree(
    trial: Trial, theirs: nn.Module, pairs: list[tuple[Tensor, Tensor]], less: Callable[[], None], rate: float = RATE
) -> None:
    """Ten steps of SGD: answers, the gradients of all pairs of parameters, and values at the end.

    Args:
        trial: Ours.
        theirs: PEFT's model, which begins where ours does.
        pairs: Parameters of ours and theirs.
        less: Called once before the first step.
        rate: Learning rate.
    """
    less()
    ours = trial.optimizer(torch.optim.SGD, rate)
    other = torch.optim.SGD([{"params": [peer], "lr": _rate(ours, own)} for own, peer in pairs], lr=rate)
    values = []
    for _ in range(STEPS):
        close(trial.model(input_ids=IDS).logits, theirs(input_ids=IDS).logits)
        ours.zero_grad()
        other.zero_grad()
        values.append(trial.backward().item())
        loss(theirs).backward()
        for own, peer in pairs:
            torch.testing.assert_close(own.grad, peer.grad.view_as(own), atol=1e-5, rtol=1e-4)
        ours.step()
        other.step()
        trial.live.refresh()
    assert values[-1] < values[0] - 1e-3  # it is worth comparing
    for own, peer in pairs:
        close(own, peer.view_as(own))


def _rate(optimizer: torch.optim.Optimizer, parameter: Tensor) -> float:
    return next(g["lr"] for g in optimizer.param_groups if any(parameter is one for one in g["params"]))


def peers(trial: Trial, theirs: nn.Module) -> list[nn.Module]:
    return [theirs.get_submodule(f"base_model.model.{name}") for name in trial.attached.layers]


def nothing() -> None:
    """Both begin at the base."""


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
def test_vera_steps_as_in_peft(bases, kind: str) -> None:
    trial = Trial(load(bases, kind), ",".join(Q_V[kind]), variant="vera")
    theirs = wrapped(load(bases, kind), kind, peft.VeraConfig(r=R, d_initial=0.1, vera_dropout=0.0))
    p: Any = trial.parametrization
    with torch.no_grad():
        theirs.base_model.vera_A["default"].copy_(p.A)
        theirs.base_model.vera_B["default"].copy_(p.B)
    layers = peers(trial, theirs)
    pairs = [(d, peer.vera_lambda_d["default"]) for d, peer in zip(p.d, layers, strict=True)]
    pairs += [(b, peer.vera_lambda_b["default"]) for b, peer in zip(p.b, layers, strict=True)]
    steps_agree(trial, theirs, pairs, nothing, rate=2.0)


def test_vera_is_drawn_as_in_peft(bases) -> None:
    """The spread of both matrices, at a rank and size where it can be told."""
    trial = Trial(load(bases, "bert"), "all-linear", variant="vera")
    theirs = wrapped(load(bases, "bert"), "bert", peft.VeraConfig(r=R))
    p: Any = trial.parametrization
    assert p.A.shape == (R, 48)
    assert p.B.shape == (48, R)
    for ours, fan, peer in ((p.A, 48, theirs.base_model.vera_A), (p.B, R, theirs.base_model.vera_B)):
        assert 0.9 * math.sqrt(6 / fan) < float(ours.abs().max()) <= math.sqrt(6 / fan)
        assert float(peer["default"].abs().max()) <= math.sqrt(6 / (32 if fan == 48 else R))


@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_vb_lora_steps_as_in_peft(bases, kind: str) -> None:
    """PEFT begins away from the base by its first product, which is taken out of its weights for this."""
    settings = ("num_vectors=6", "vector_length=8", "bound=0.5", "deviation=1.0", "ratio=3")
    trial = Trial(load(bases, kind), ",".join(Q_V[kind]), variant="vb-lora", set=settings)
    config = peft.VBLoRAConfig(r=R, num_vectors=6, vector_length=8, topk=2)
    theirs = wrapped(load(bases, kind), kind, config)
    p: Any = trial.parametrization
    layers, bank = peers(trial, theirs), theirs.base_model.vblora_vector_bank["default"]
    pairs = [(p.bank, bank)]
    pairs += [(own, peer.vblora_logits_A["default"]) for own, peer in zip(p.logits_A, layers, strict=True)]
    pairs += [(own, peer.vblora_logits_B["default"]) for own, peer in zip(p.logits_B, layers, strict=True)]

    @torch.no_grad()
    def begin() -> None:
        for own, peer in pairs:
            peer.copy_(own)
        for layer in layers:
            layer.base_layer.weight.sub_(layer.get_delta_weight("default"))

    steps_agree(trial, theirs, pairs, begin)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_trilora_steps_as_adalora_without_its_penalty(bases, kind: str) -> None:
    trial = Trial(load(bases, kind), ",".join(Q_V[kind]), variant="trilora")
    alpha = ALPHA * (1 + 1e-5 / R)  # PEFT divides by R + 1e-5
    config = peft.AdaLoraConfig(init_r=R, target_r=1, lora_alpha=alpha, lora_dropout=0.0, total_step=1000)
    theirs = wrapped(load(bases, kind), kind, config)
    p: Any = trial.parametrization
    pairs = []
    for k, peer in enumerate(peers(trial, theirs)):
        pairs += [(p.A[k], peer.lora_A["default"]), (p.B[k], peer.lora_B["default"]), (p.e[k], peer.lora_E["default"])]

    @torch.no_grad()
    def begin() -> None:
        for own, peer in pairs:
            peer.copy_(own.view_as(peer))

    steps_agree(trial, theirs, pairs, begin, rate=0.5)


def frozen_A(bases: dict[str, str], *settings: str) -> tuple[Trial, nn.Module]:
    """Ours, and PEFT's plain LoRA with the same A."""
    trial = Trial(load(bases, "llama"), "q_proj,v_proj", variant="lora-fa", set=settings)
    theirs = wrapped(load(bases, "llama"), "llama", peft.LoraConfig(r=R, lora_alpha=ALPHA))
    with torch.no_grad():
        for layer, peer in zip(trial.attached.layers.values(), peers(trial, theirs), strict=True):
            peer.lora_A["default"].weight.copy_(layer.lora_A)
            peer.lora_A["default"].weight.requires_grad_(False)
    return trial, theirs


def test_lora_fa_steps_as_lora_with_a_frozen_A(bases) -> None:
    trial, theirs = frozen_A(bases)
    layers = list(trial.attached.layers.values())
    A = [layer.lora_A.detach().clone() for layer in layers]
    pairs = [
        (b, peer.lora_B["default"].weight)
        for b, peer in zip(trial.parametrization.B, peers(trial, theirs), strict=True)
    ]
    steps_agree(trial, theirs, pairs, nothing)
    for begun, layer in zip(A, layers, strict=True):
        assert torch.equal(begun, layer.lora_A.detach())
        assert layer.lora_A.grad is None


def test_lora_fa_takes_the_gradient_that_pefts_optimizer_takes(bases, monkeypatch) -> None:
    """What enters its average in each of ten steps, in float32: PEFT computes it in bfloat16 wherever there is one."""
    monkeypatch.setattr(peft.optimizers.lorafa, "is_bf16_available", lambda: False)
    trial, theirs = frozen_A(bases, "projected=true")
    p: Any = trial.parametrization
    other: Any = peft.optimizers.lorafa.create_lorafa_optimizer(theirs, r=R, lora_alpha=ALPHA, lr=1e-2)
    names = [f"base_model.model.{name}.lora" for name in trial.attached.layers]
    before = [torch.zeros_like(b) for b in p.B]
    for number in range(1, STEPS + 1):
        other.zero_grad()
        for b in p.B:
            b.grad = None
        trial.backward()
        trial.parametrization.before_step(Step(number, STEPS))
        loss(theirs).backward()
        other.step()
        for k, (b, peer) in enumerate(zip(p.B, peers(trial, theirs), strict=True)):
            average = other.state[names[k]]["exp_avg_B"]
            taken = (average - 0.9 * before[k]) / 0.1
            scale = float(taken.abs().max())
            torch.testing.assert_close(b.grad / scale, taken / scale, atol=1e-4, rtol=1e-4)
            before[k] = average.clone()
            b.data.copy_(peer.lora_B["default"].weight)
        trial.live.refresh()
