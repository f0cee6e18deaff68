"""Adapters of plain LoRA on small models, put there as a training does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.config import TrainConfig
from lorabank.core.records import BaseModelRecord
from lorabank.models.bases.sites import site_of
from lorabank.training.context import TrainContext
from lorabank.training.layers.attaching import attach
from lorabank.training.layers.layer import LoraLinear
from lorabank.training.starts.kaiming import Kaiming
from lorabank.training.variants.base import Parametrization
from lorabank.training.variants.lora import Lora


def context_of(
    model: Any, names: Sequence[str], *, dropout: float = 0.0, initial: LoraFactors | None = None, **config: Any
) -> TrainContext:
    """What there is when an adapter on these sites begins, without rows; ``config`` are settings of a training."""
    nothing: Any = {"earlier": None, "objects": {}, "batches": lambda: (), "loss": None, "inputs": None, "mean": None}
    sites, settings = [site_of(model, name) for name in names], TrainConfig(lora_dropout=dropout, **config)
    return TrainContext(model=model, sites=sites, config=settings, number=0, initial=initial, **nothing)


def plain(context: TrainContext) -> Parametrization:
    """What is trained of LoRA, with its usual start."""
    return Lora().parametrize(context, Kaiming())


def plain_layers(model: nn.Module, names: Sequence[str], **settings: Any) -> dict[str, LoraLinear]:
    """The layers on some sites of a model, by their names; ``settings`` as for `context_of`."""
    context = context_of(model, names, **settings)
    return attach(context, plain(context)).layers


def plain_layer(linear: nn.Module, r: int, scaling: float, dropout: float = 0.0) -> LoraLinear:
    """The layer around one linear module."""
    return plain_layers(nn.ModuleDict({"it": linear}), ["it"], r=r, lora_alpha=r * scaling, dropout=dropout)["it"]


def plain_model(base: BaseModelRecord, head: dict[str, torch.Tensor], *adapters: LoraFactors) -> Any:
    """transformers' own classifier with a head and the adapters in its weights."""
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(
        base.name, num_labels=len(head["classifier.bias"])
    ).eval()
    model.classifier.load_state_dict({name.rpartition(".")[2]: value for name, value in head.items()})
    with torch.no_grad():
        for factors in adapters:
            for name, a in factors.A.items():
                model.get_submodule(name).weight += factors.scaling[name] * (factors.B[name] @ a)
    return model
