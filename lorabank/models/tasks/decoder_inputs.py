"""What the decoder of an encoder-decoder reads: the targets, shifted by its start token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorabank.core.errors import IncompatibleError
from lorabank.models.tasks.encoding import in_block

NO_TOKEN = -100


def decoder_inputs(model: Any, targets: Tensor) -> Tensor:
    """What a decoder is passed so that it predicts ``targets``: the start token, then they without their last.

    Raises:
        IncompatibleError: The model says neither how it is done nor which token a decoder starts from.
    """
    if hasattr(model, "prepare_decoder_input_ids_from_labels"):
        own: Tensor = model.prepare_decoder_input_ids_from_labels(labels=targets.clone())  # FSMT writes into it
        return own
    shifted = torch.roll(targets, 1, -1)
    start = start_token(model)
    if start is None:
        raise IncompatibleError(
            f"{type(model).__name__} does not say which token its decoder starts from (decoder_start_token_id)",
            hint="choose another base model: --base",
            unchanged="nothing was changed",
        )
    shifted[:, 0] = start
    return shifted.masked_fill_(shifted < 0, model.config.pad_token_id)


def start_token(model: Any) -> int | None:
    """What a decoder starts from; older checkpoints say it in their configuration only."""
    own: int | None = model.generation_config.decoder_start_token_id
    return getattr(model.config, "decoder_start_token_id", None) if own is None else own


def pad_targets(completions: Sequence[list[int]]) -> Tensor:
    """Token ids int64 ``[n, longest]``, behind them -100."""
    return torch.from_numpy(in_block(completions, NO_TOKEN, left=False)[0])
