r"""An adapter for programs that quantise the base but do not correct it: the correction becomes a part of it.

Over ``W = Q + B_0 A_0`` an adapter is ``(diag(g) - 1) W + s B A``. Over Q alone the same function is

    (diag(g) - 1) Q + [diag(g) B_0, s B] [A_0; A]

exactly, of the rank of both together, on the adapted modules; on all others it is the correction.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import IncompatibleError
from lorabank.core.records import BaseModelRecord
from lorabank.exchange.peft_folder import combined_files, read_adapter
from lorabank.exchange.safe_folders import in_folder
from lorabank.models.bases.loading import load_base
from lorabank.models.bases.quantised.linear import QuantisedLinear
from lorabank.models.bases.quantised.recipe import is_ours, read_recipe
from lorabank.models.bases.sites import site_of


def is_corrected(base: BaseModelRecord) -> bool:
    """Whether what stands for the base in the bank has a correction."""
    return is_ours(base.quantisation) and read_recipe(str(base.quantisation)).correction is not None


def with_correction(files: Mapping[str, bytes], base: BaseModelRecord) -> dict[str, bytes]:
    """PEFT's files of an adapter over the corrected base, as they are over the quantised base alone.

    Args:
        files: By name, as the bank stores them.
        base: A base with a correction.

    Raises:
        IncompatibleError: The correction changes what the quantiser keeps, which no other program has then.
    """
    correction = read_recipe(str(base.quantisation)).correction
    if correction is not None and not correction.plain:
        raise IncompatibleError(
            f"the quantised weights of {base.quantisation} are made for their correction: no other program has them",
            hint="export from a bank whose correction leaves the quantised weights as they are",
            unchanged="nothing was written",
        )
    with in_folder(files) as folder:
        factors, head, config = read_adapter(folder)
    model = load_base(base).model
    layers = {name: module for name, module in model.named_modules() if isinstance(module, QuantisedLinear)}
    parts = {name: _beside(layer) for name, layer in layers.items()}

    def weight(module: str) -> Tensor:
        own = site_of(model, module).weight()
        A, B = parts.get(module, (None, None))
        return own if A is None or B is None else own - B @ A

    return combined_files(
        over_uncorrected(factors, parts),
        head,
        base_model=base.name,
        task_type=config["task_type"],
        head_modules=config["modules_to_save"] or (),
        weight=weight,
    )


def over_uncorrected(factors: LoraFactors, parts: Mapping[str, tuple[Tensor, Tensor]]) -> LoraFactors:
    """An adapter over corrected weights as one over the uncorrected ones, with s = 1.

    Args:
        factors: By module.
        parts: A_0 ``[r, d_in]`` and B_0 ``[d_out, r]`` by module.
    """
    A = {module: factors.A[module].float() for module in factors.A}
    B = {module: factors.scaled(module).float() for module in factors.A}
    for module, (before_A, before_B) in parts.items():
        gain = factors.gain.get(module)
        own = before_B if gain is None else gain[:, None].float() * before_B
        A[module] = torch.cat([before_A, A[module]]) if module in A else before_A
        B[module] = torch.cat([own, B[module]], dim=1) if module in B else own
    return LoraFactors(A, B, dict.fromkeys(A, 1.0), factors.gain)


def _beside(layer: QuantisedLinear) -> tuple[Tensor, Tensor]:
    A, B, _ = layer.beside
    assert A is not None
    assert B is not None
    return A.detach().float(), B.detach().float()
