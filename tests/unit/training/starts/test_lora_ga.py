"""LoRA-GA against its equation, its code's scales, and PEFT."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn

from lorabank.models.bases.sites import site_of
from tests.unit.training.starts.test_starts import ALPHA, NAMES, R, S, begun, context_of, inputs, same_rows


def gradients_of(model: nn.Module, names: Any = NAMES) -> dict[str, Tensor]:
    """The mean over the batches, by autograd through the weights themselves."""
    weights = [model.get_submodule(name).weight.requires_grad_(True) for name in names]
    batches = [inputs(range(first, min(first + 3, 8))) for first in range(0, 8, 3)]
    losses = torch.stack([model(**batch).loss for batch in batches])
    return dict(zip(names, torch.autograd.grad(losses.mean(), weights), strict=True))


@pytest.mark.parametrize(
    ("direction", "of_A", "of_B"),
    [("ArB2r", [0, 1, 2], [3, 4, 5]), ("A2rBr", [3, 4, 5], [0, 1, 2]), ("ArBr", [1, 3, 5], [0, 2, 4])],
)
def test_lora_ga_begins_along_the_gradient(model, direction: str, of_A: list[int], of_B: list[int]) -> None:
    found = begun(context_of(model, start="lora-ga", set=(f"direction={direction}", "gamma=9")))
    for name, gradient in gradients_of(model).items():
        U, _, V = torch.linalg.svd(gradient.double(), full_matrices=False)
        A, B, _ = found[name]
        c = len(gradient) ** 0.25 / 3
        same_rows(A, c * V[of_A], 1e-3)
        same_rows(B.mT, c * U[:, of_B].mT, 1e-3)


@pytest.mark.parametrize("scale", ["gd", "unit", "weightS"])
def test_lora_ga_scales_as_the_papers_code(model, scale: str) -> None:
    found = begun(context_of(model, start="lora-ga", set=(f"scale={scale}",)))
    for name, (A, B, _) in found.items():
        values = torch.linalg.svdvals(site_of(model, name).weight().detach().double())
        length = {"gd": 1 / S, "unit": 1.0, "weightS": float((values[:R] / S).sqrt().mean())}[scale]
        torch.testing.assert_close(A @ A.mT, length**2 * torch.eye(R, dtype=A.dtype), atol=1e-5, rtol=0)
        torch.testing.assert_close(B.mT @ B, length**2 * torch.eye(R, dtype=A.dtype), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore:Full backward hook is firing")
def test_lora_ga_spans_what_peft_spans(model) -> None:
    """PEFT has another scale: A is as long as 1, B as c times the gradient's singular values."""
    from peft.tuners.lora import LoraGAConfig, preprocess_loraga

    found = begun(context_of(model, start="lora-ga"))
    gradients = gradients_of(model)
    model.requires_grad_(False)
    config = peft.LoraConfig(
        r=R, lora_alpha=ALPHA, target_modules=NAMES, init_lora_weights="lora_ga", lora_ga_config=LoraGAConfig()
    )

    def step() -> None:
        for first in range(0, 8, 3):
            model(**inputs(range(first, min(first + 3, 8)))).loss.backward()

    dropout = [module for module in model.modules() if isinstance(module, nn.Dropout)]
    for module in dropout:  # PEFT measures in training mode
        module.p = 0.0
    preprocess_loraga(model, config, step)
    theirs = peft.get_peft_model(model, config)
    for name in NAMES:
        peer = theirs.get_submodule(f"base_model.model.{name}")
        A, B, _ = found[name]
        values, c = torch.linalg.svdvals(gradients[name].double()), len(B) ** 0.25 / 4
        same_rows(peer.lora_A["default"].weight.detach().double(), A / c, 1e-2)
        same_rows(peer.lora_B["default"].weight.detach().double().mT, (B * values[R : 2 * R]).mT, 1e-2)
