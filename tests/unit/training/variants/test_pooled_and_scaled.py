"""QA-LoRA against a layer that pools its input, and (IA)^3 against PEFT's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import peft
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.models.bases.sites import site_of
from lorabank.models.bases.targets import find_targets
from lorabank.training.layers.attaching import attach
from lorabank.training.layers.live import Live
from lorabank.training.methods import chosen_methods

R, S, D_IN, D_OUT = 3, 2.0, 24, 10
IDS = torch.arange(36).view(3, 12) * 7 % 30


def pooled(group: int, d_in: int = D_IN) -> tuple[nn.Linear, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(d_in, D_OUT))
    config = TrainConfig(r=R, lora_alpha=R * S, variant="qa-lora", strategy="isolated", set=(f"group={group}",))
    methods = chosen_methods(config)
    site = site_of(model, "0")
    context: Any = SimpleNamespace(sites=[site], targets=("0",), config=config, scaling=S, initial=None, number=0)
    return model[0], methods.variant.parametrize(context, methods.start).double()


@pytest.mark.parametrize("group", [1, 4, 8, 24])
def test_qa_lora_is_a_layer_behind_an_average_pool(group: int) -> None:
    """Forward and gradients as of ``lora_B(lora_A(AvgPool1d(L)(x))) * s``, which the authors compute."""
    layer, ours = pooled(group)
    weight = layer.weight.detach().double()
    A, B = (torch.randn(*shape, dtype=torch.float64) for shape in ((R, D_IN // group), (D_OUT, R)))
    with torch.no_grad():
        ours.A[0].copy_(A)
        ours.B[0].copy_(B)
    A.requires_grad_()
    B.requires_grad_()
    x = torch.randn(4, 7, D_IN, dtype=torch.float64)
    expected = x @ weight.mT + S * F.avg_pool1d(x, group) @ A.mT @ B.mT
    factors = ours.factors()
    found = x @ weight.mT + S * x @ factors.A["0"].mT @ factors.B["0"].mT
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    for output in (found, expected):
        output.square().sum().backward()
    for ours_, theirs in ((ours.A[0], A), (ours.B[0], B)):
        torch.testing.assert_close(ours_.grad, theirs.grad, rtol=1e-10, atol=1e-10)
    columns = ours.fold().delta("0").view(D_OUT, -1, group)
    torch.testing.assert_close(columns, columns[..., :1].expand_as(columns), rtol=0, atol=0)


def test_zero_points_take_qa_lora_without_loss() -> None:
    """A weight ``scale (q - zero)`` with one scale and zero for each group of inputs of a row."""
    _, ours = pooled(8)
    with torch.no_grad():
        ours.B[0].normal_()
    q = torch.randint(0, 16, (D_OUT, D_IN // 8, 8)).double()
    scale, zero = torch.rand(D_OUT, D_IN // 8, 1).double() + 0.1, torch.rand(D_OUT, D_IN // 8, 1).double() * 8
    delta = S * ours.B[0] @ ours.A[0] / 8  # [d_out, groups], as the authors' merge
    merged = scale * (q - (zero - delta[..., None] / scale))
    expected = (scale * (q - zero)).view(D_OUT, D_IN) + ours.fold().delta("0")
    torch.testing.assert_close(merged.view(D_OUT, D_IN).detach(), expected.detach(), rtol=1e-10, atol=1e-10)


def test_a_pooled_start_has_the_variance_of_a_layer_of_as_many_inputs() -> None:
    """kaiming_uniform(a=sqrt(5)) over d_in / L inputs: a variance of L / (3 d_in)."""
    _, ours = pooled(16, 16 * 2000)
    assert float(ours.A[0].detach().var()) == pytest.approx(1 / (3 * 2000), rel=0.1)


def test_inputs_that_are_no_multiple_of_the_group_are_refused() -> None:
    with pytest.raises(ConfigError, match="has 24 inputs, which is not a multiple of the group of 32") as caught:
        pooled(32)
    assert "qa-lora.group" in str(caught.value.hint)


# --------------------------------------------------------------------------------------------------------------- ia3

TARGETS = ("k_proj", "v_proj", "up_proj")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, save_language_model) -> str:
    return str(save_language_model(tmp_path_factory.mktemp("llama"), initializer_range=0.1))


def llama(folder: str) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval().requires_grad_(False)


def loss(model: nn.Module) -> Tensor:
    return -(model(input_ids=IDS).logits.float() / 10).log_softmax(-1)[..., 1].mean()


@pytest.mark.parametrize("ours_of", ["the same modules", "inputs of down_proj"])
def test_ia3_is_that_of_peft(folder: str, ours_of: str) -> None:
    """Ten steps, with outputs of up_proj scaled in both, and where PEFT scales down_proj's inputs."""
    model = llama(folder)
    config = TrainConfig(r=R, variant="ia3", strategy="isolated", target_modules=",".join(TARGETS), lora_dropout=0.0)
    methods = chosen_methods(config)
    sites = find_targets(model, config.target_modules, ()).sites
    context: Any = SimpleNamespace(model=model, sites=sites, config=config, earlier=None, earlier_by_site=None)
    attached = attach(context, methods.variant.parametrize(context, methods.start))
    live = Live(model, attached.layers, attached.parametrization)
    down = ours_of != "the same modules"
    modules = [*TARGETS[:2], "down_proj" if down else "up_proj"]
    theirs = peft.get_peft_model(
        llama(folder), peft.IA3Config(target_modules=modules, feedforward_modules=modules[2:] if down else [])
    ).eval()
    ours_step = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    their_step = torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=1.0)
    first = float(loss(model).detach())
    for _ in range(10):
        for one, optimizer in ((model, ours_step), (theirs, their_step)):
            optimizer.zero_grad()
            loss(one).backward()
        live.pull()
        for site, layer in attached.layers.items():
            name = site.replace("up_proj", "down_proj") if down else site
            peer = theirs.get_submodule(f"base_model.model.{name}").ia3_l["default"]
            torch.testing.assert_close(layer.lora_gain.grad, peer.grad.flatten(), atol=1e-5, rtol=1e-4)
        ours_step.step()
        their_step.step()
        live.refresh()
        torch.testing.assert_close(model(input_ids=IDS).logits, theirs(input_ids=IDS).logits, atol=1e-4, rtol=1e-4)
    assert float(loss(model).detach()) < first - 1e-3
    fold = attached.parametrization.fold()
    plain = llama(folder)
    with torch.no_grad():
        for site in sites:
            one = LoraFactors(fold.A, fold.B, fold.scaling, fold.gain)
            layer = plain.get_submodule(site.name)
            layer.weight += one.delta(site.name, layer.weight.detach().clone())
    torch.testing.assert_close(plain(input_ids=IDS).logits, model(input_ids=IDS).logits, atol=1e-4, rtol=1e-4)
