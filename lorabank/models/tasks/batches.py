"""Batches of prompts for a language model: left padding, and no more logits than needed.

Left padding happens here and nowhere else: prompts of different length end in the same column, so that what follows
them (label tokens, generated tokens) stands in the same columns for every row.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorabank.core.errors import DataError
from lorabank.models.finite import log_total
from lorabank.models.tasks.encoding import in_block
from lorabank.models.tasks.transfer import sent

Enter = Callable[[Sequence[int]], None]
"""Called before every forward pass with the row number of each row of the batch (repeated where one is expanded)."""

# 512 MiB in float32; a language model's logits are its largest tensor by far.
_MOST_LOGITS = 2**27


@contextmanager
def evaluating(model: Any) -> Iterator[None]:
    """No gradients and no dropout for the length of a block."""
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        model.train(training)


def takes(model: Any, argument: str) -> bool:
    """Whether the model's forward pass has an argument of this name."""
    return argument in inspect.signature(model.forward).parameters


def takes_positions(model: Any) -> bool:
    """Whether the model can be told each token's position, counted from 0.

    RoBERTa's relatives count from their padding token's number on, which their embeddings do for themselves.
    """
    own = any(hasattr(module, "create_position_ids_from_input_ids") for module in model.modules())
    return takes(model, "position_ids") and not own


def check_prompts(prompts: Sequence[list[int]]) -> None:
    """Refuse prompts without any token.

    Raises:
        DataError: There is one; nothing can be predicted from it.
    """
    empty = next((i for i, prompt in enumerate(prompts) if not prompt), None)
    if empty is not None:
        raise DataError(
            f"the prompt of row {empty + 1} has no tokens: there is nothing to answer from",
            hint="give it a text, or a prompt template with words of its own",
            unchanged="nothing was changed",
        )


def split_batch(model: Any, rows: Sequence[int], keep: int, width: int) -> Iterator[Sequence[int]]:
    """Parts of a batch whose logits stay within 512 MiB (or that hold one row).

    Args:
        model: A language model.
        rows: Row numbers.
        keep: Tokens per row whose logits are needed.
        width: Tokens per row; a model without ``logits_to_keep`` makes logits for all of them.
    """
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    tokens = keep if takes(model, "logits_to_keep") else width
    size = max(1, _MOST_LOGITS // max(1, tokens * vocabulary))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def pad_left(tokenizer: Any, prompts: Sequence[list[int]], device: torch.device) -> dict[str, Tensor]:
    """``input_ids``, ``attention_mask`` and ``position_ids``, each int64 ``[n, longest]``, padded on the left.

    Positions count a prompt's own tokens from 0; those of the padding are 0.
    """
    rows, own = in_block(prompts, int(tokenizer.pad_token_id), left=True)
    mask = own.astype(np.int64)
    padded = {"input_ids": rows, "attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clip(min=0)}
    return sent({name: torch.from_numpy(array) for name, array in padded.items()}, device)


def forward(model: Any, keep: int, **inputs: Any) -> Any:
    """One forward pass; ``logits [n, keep, vocabulary]`` of the last ``keep`` tokens.

    Arguments that the model does not know (``position_ids``, ``logits_to_keep``) are left out.
    """
    known = set(inspect.signature(model.forward).parameters)
    if not takes_positions(model):
        known.discard("position_ids")
    given = {name: value for name, value in (inputs | {"logits_to_keep": keep}).items() if name in known}
    output = model(**given, return_dict=True)
    output.logits = output.logits[:, -keep:]
    return output


def log_probabilities(logits: Tensor, targets: Tensor) -> Tensor:
    """The log-probability of one token per place, in float32 from the logits on.

    Args:
        logits: ``[..., vocabulary]``, any float.
        targets: int64 ``[...]``; a negative one stands for no token.

    Returns:
        float64 ``[...]``, 0 where there is no token.
    """
    logits = logits.float()
    picked = logits.gather(-1, targets.clamp(min=0)[..., None])[..., 0] - log_total(logits)
    return picked.masked_fill(targets < 0, 0.0).double()
