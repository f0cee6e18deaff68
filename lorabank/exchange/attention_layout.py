r"""Adapters on the layers of torch's attention, in the two pairs of tensors that PEFT has for such a module.

PEFT adapts ``in_proj_weight [3 d, d]`` by one pair, under the module's own name, and ``out_proj`` by another, always
both and of one rank and scaling. Adapters of query, key and value, ``A_i [r_i, d]`` and ``B_i [d, r_i]``, are so

    A = [A_q; A_k; A_v]  [3 R, d],        B = block_diag(B_q, B_k, B_v)  [3 d, 3 R]

with R the largest of the r_i and zeros behind a smaller one. What is not adapted is 0. The scaling s of the largest
magnitude is that of the module; other ones go into B as ``s_i / s``. ``rank_pattern`` and ``alpha_pattern`` name the
single layers too, which PEFT does not look for: by them the ranks without the zeros are known when the folder is read.

PEFT 0.21.2 adds its adapter on ``out_proj`` twice in each pass (github.com/huggingface/peft/pull/3774), and where
torch computes a whole `torch.nn.TransformerEncoderLayer` by one kernel in evaluation, it asks no adapter of PEFT's at
all. Such adapters are trained and answered here, and not exported to PEFT, nor is one on ``out_proj`` imported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lorabank.exchange.peft_folder import scaling_of
from lorabank.exchange.stored_factors import OF_ATTENTION, PREFIX, StoredFactors
from lorabank.models.bases.kinds.attention import INPUTS, OUTPUT, is_attention

TWICE = "PEFT adds an adapter on out_proj of torch.nn.MultiheadAttention twice in each pass"
"""Why one is neither exported nor imported."""


def attention_of(shell: nn.Module, names: Collection[str]) -> dict[str, nn.MultiheadAttention]:
    """Torch's attention of which layers are adapted, by name.

    Args:
        shell: The base model's modules, as transformers makes them.
        names: Of the adapted layers, such as ``layers.0.self_attn.q_proj``.
    """
    parts = (*INPUTS, OUTPUT)
    named = ((name, module) for name, module in shell.named_modules() if is_attention(module))
    return {name: module for name, module in named if any(f"{name}.{part}" in names for part in parts)}


def not_in_peft(stem: str, module: nn.MultiheadAttention, names: Collection[str], *, gained: bool) -> str | None:
    """Why PEFT would compute another thing with the adapters on a module's layers; None where it would not.

    Args:
        stem: The module's name.
        module: Of the base, without memory for its weights perhaps.
        names: Of the adapted layers.
        gained: Whether the adapter is stored as DoRA.
    """
    if module.in_proj_weight is None:
        return "PEFT adapts no torch.nn.MultiheadAttention whose keys or values have a width of their own"
    if f"{stem}.{OUTPUT}" in names:
        return TWICE
    return "PEFT knows no DoRA on torch.nn.MultiheadAttention" if gained else None


def passed_by_kernels(shell: nn.Module, names: Collection[str]) -> Iterator[str]:
    """The adapted layers that PEFT's model does not ask in evaluation, because torch computes around them."""
    for stem, module in shell.named_modules():
        if isinstance(module, nn.TransformerEncoderLayer) and _has_kernel(module):
            yield from (name for name in sorted(names) if name.startswith(f"{stem}."))


def _has_kernel(layer: nn.TransformerEncoderLayer) -> bool:
    """Whether torch has one: what the forward pass of `torch.nn.TransformerEncoderLayer` asks of the layer itself."""
    own, known = layer.self_attn, layer.activation_relu_or_gelu
    fits = is_attention(own) and own.batch_first and own.in_proj_bias is not None and own.num_heads % 2 == 0
    return bool(fits and known and layer.norm1.eps == layer.norm2.eps)


def stack_attention(
    stem: str,
    factors: Mapping[str, StoredFactors],
    tensors: dict[str, Tensor],
    config: Mapping[str, Any],
    fields: Mapping[str, Any],
) -> dict[str, Any]:
    """Put the factors of one module's layers into PEFT's two pairs.

    Args:
        stem: The module's name.
        factors: Layer to where its factors are.
        tensors: Of the folder, by name; changed in place.
        config: Of the folder, as it is.
        fields: Those of its fields that have changed already.

    Returns:
        The config's fields that change.
    """
    own = {part: factors[f"{stem}.{part}"] for part in INPUTS if f"{stem}.{part}" in factors}
    pairs = {part: (one.A(tensors), one.B(tensors)) for part, one in own.items()}
    ranks = {part: len(A) for part, (A, _) in pairs.items()}
    scaling = {part: scaling_of(config, f"{stem}.{part}", r) for part, r in ranks.items()}
    s, R, count = max(scaling.values(), key=abs), max(ranks.values()), len(INPUTS)
    like = next(iter(pairs.values()))[0]
    d = like.shape[1]
    A, B = like.new_zeros(count, R, d), like.new_zeros(count, d, count, R)
    for part, (a, b) in pairs.items():
        i = INPUTS.index(part)
        A[i, : len(a)], B[i, :, i, : len(a)] = a, b * (scaling[part] / s)
    for one in own.values():
        tensors.pop(one.a, None), tensors.pop(one.b, None)
    whole = (stem, A.flatten(0, 1), B.flatten(2).flatten(0, 1))
    out = (f"{stem}{OF_ATTENTION}", like.new_zeros(count * R, d), like.new_zeros(d, count * R))
    for name, a, b in (whole, out):
        tensors[f"{PREFIX}{name}.lora_A.weight"], tensors[f"{PREFIX}{name}.lora_B.weight"] = a, b
    kept = {f"{stem}.{part}": r for part, r in ranks.items()} | {stem: count * R}
    power = 0.5 if config.get("use_rslora") else 1.0
    targets = {*fields.get("target_modules", config["target_modules"]), stem}
    return {
        "target_modules": sorted(targets - {f"{stem}.{part}" for part in own}),
        "rank_pattern": {**fields["rank_pattern"], **kept},
        "alpha_pattern": {**fields["alpha_pattern"], **{name: s * r**power for name, r in kept.items()}},
    }
