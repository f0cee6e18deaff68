"""InfLoRA (CVPR 2024, arXiv 2404.00228): A is fixed outside what earlier tasks fed into the module, only B trains.

The mathematics stand in `lorabank.training.input_subspace`; each task records the covariances of its inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lorabank.models.facts.inputs import InputCovariance, collect_inputs
from lorabank.training.input_subspace import design_adapter
from lorabank.training.strategies.base import Begun, Start, Strategy

ROLE = "inputs"


@dataclass(frozen=True)
class _InfLoRA(Strategy):
    def begin(self, start: Start) -> Begun:
        """The designed A, frozen, and B = 0."""
        begun = super().begin(start)
        current = collect_inputs(start.model, start.targets, start.batches(), start.loss)
        earlier = [InputCovariance.from_bytes(recorded.data) for recorded in start.objects.get(ROLE, ())]
        designed = design_adapter(earlier, current, start.targets, start.config.r)
        with torch.no_grad():
            for name, layer in begun.layers.items():
                layer.lora_A.copy_(designed[name])
                layer.lora_A.requires_grad_(False)
        return begun

    def finish(self, start: Start, begun: Begun) -> dict[str, bytes]:
        """What the task feeds into its modules now that it is learnt."""
        return {ROLE: collect_inputs(start.model, start.targets, start.batches(), start.loss).to_bytes()}


INFLORA = _InfLoRA(
    "inflora",
    "active",
    needs=(ROLE,),
    about="A new adapter whose A is fixed outside what earlier tasks fed into the module; only B is trained.",
    paper="InfLoRA, arXiv 2404.00228",
)
