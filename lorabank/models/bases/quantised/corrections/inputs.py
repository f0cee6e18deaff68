"""How large the inputs of a base's linear layers are, over a text that lorabank brings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorabank.models.bases.body import pass_through

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXT = Path(__file__).with_name("calibration.txt")
"""Banks make their base of it: it must never change."""

_TOKENS = 256
"""Of a part of the text."""

_LEAST = 1e-4


@torch.no_grad()
def input_magnitudes(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, modules: Sequence[str]
) -> dict[str, Tensor]:
    """Of each module the largest mean magnitude ``[d_in]`` of each input over the parts of the text, as L2QER has it.

    Args:
        model: On the CPU, in eval mode.
        tokenizer: Its tokenizer.
        modules: Names of linear layers; those that no text goes through are left out.

    Returns:
        By name, float32, at least 1e-4, divided by the root of the product of the smallest and the largest.
    """
    found: dict[str, Tensor] = {}

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            x: Tensor = args[0]
            mean = x.float().abs().reshape(-1, x.shape[-1]).mean(0)
            found[name] = torch.maximum(found[name], mean) if name in found else mean

        return hook

    hooks = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in modules]
    try:
        encoded = tokenizer(TEXT.read_text(encoding="utf-8"), add_special_tokens=False, verbose=False)
        ids = torch.tensor(encoded["input_ids"])
        length = min(_TOKENS, getattr(model.config.get_text_config(), "max_position_embeddings", None) or _TOKENS)
        for part in ids.split(max(length - 2, 1)):
            pass_through(model, part[None])
    finally:
        for hook in hooks:
            hook.remove()
    least = {name: magnitudes.clamp_min(_LEAST) for name, magnitudes in found.items()}
    return {name: one / (one.min() * one.max()).sqrt() for name, one in least.items()}
