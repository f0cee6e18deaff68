"""The biases that a stranger's folder brings, which PEFT puts in the place of the base's, as what they add to these.

With ``bias="lora_only"`` PEFT saves the biases of the layers that it adapts, with ``bias="all"`` those of the whole
model. A bias that is the base's is left out, wherever it stands.
"""

from __future__ import annotations

from dataclasses import replace

from torch import equal

from lorabank.algebra.biases import ENDING, with_biases
from lorabank.core.errors import IncompatibleError
from lorabank.exchange.untrusted_adapter import ForeignAdapter
from lorabank.models.bases.loading import LoadedBase
from lorabank.models.bases.sites import bias_site


def with_added(adapter: ForeignAdapter, base: LoadedBase) -> ForeignAdapter:
    """The adapter with what its biases add to the base's among its factors.

    Raises:
        IncompatibleError: A bias that differs from the base's is none of its linear layers and layer norms outside of
            the head, or has another size.
    """
    found = {}
    own = dict(base.model.named_parameters()) | dict(base.model.named_buffers())
    heads = tuple(f"{head}." for head in base.head_modules)
    for name, bias in adapter.biases.items():
        there = own.get(name)
        if there is not None and there.shape == bias.shape and equal(there.to(bias), bias):
            continue
        site = None if name.startswith(heads or "/") else bias_site(base.model, name.removesuffix(ENDING))
        if site is None or (site.d_out,) != tuple(bias.shape):
            raise IncompatibleError(
                f"the adapter does not fit this bank's base model: its {name[:200]!r} {list(bias.shape)} is not the "
                "bias of a linear layer or a layer norm of the base",
                hint="train it with bias='none'",
                unchanged="nothing was changed",
            )
        found[name] = (bias.double().cpu() - site.weight().squeeze(1).double().cpu()).float()
    return replace(adapter, factors=with_biases(adapter.factors, found)) if found else adapter
