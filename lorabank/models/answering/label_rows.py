"""Labels behind prompts as n x L rows: for encoder-decoders, and for causal models that take no tree.

The prompt is still passed once: its keys and values, or the encoder's output, are expanded over the labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lorabank.models.tasks.batches import Enter, forward, log_probabilities, pad_left
from lorabank.models.tasks.decoder_inputs import decoder_inputs, pad_targets
from lorabank.models.tasks.encoding import pad_batch


def cached_log_likelihoods(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    labels: Sequence[list[int]],
    rows: Sequence[int],
    enter: Enter,
) -> Tensor:
    """Log-likelihood of every label behind every prompt, float64 ``[n, L]``, from two forward passes.

    Args:
        model: A causal model with a cache of keys and values.
        tokenizer: Its tokenizer, which has a pad token.
        prompts: n prompts; of one length where the model takes no ``position_ids``.
        labels: L labels.
        rows: The prompts' row numbers for ``enter``.
        enter: Called before the pass over the prompts, and before the one over n x L rows.
    """
    n, size = len(prompts), len(labels)
    inputs = pad_left(tokenizer, prompts, model.device)
    enter(rows)
    output = forward(model, 1, use_cache=True, **inputs)
    targets = pad_targets(labels).to(model.device)
    first = log_probabilities(output.logits.expand(-1, size, -1), targets[:, 0].expand(n, -1))
    width = targets.shape[1] - 1
    if not width:
        return first
    each = torch.arange(n, device=model.device).repeat_interleave(size)
    cache = output.past_key_values
    cache.reorder_cache(each)
    passed = targets[:, 1:] >= 0  # a label's last token predicts nothing
    tokens = torch.where(passed, targets[:, :-1], int(tokenizer.pad_token_id)).repeat(n, 1)
    lengths = inputs["attention_mask"].sum(-1, keepdim=True)[each]
    enter(repeated(rows, size))
    output = forward(
        model,
        width,
        input_ids=tokens,
        attention_mask=torch.cat([inputs["attention_mask"][each], passed.long().repeat(n, 1)], 1),
        position_ids=lengths + torch.arange(width, device=model.device),
        past_key_values=cache,
        use_cache=True,
    )
    rest = log_probabilities(output.logits, targets[:, 1:].repeat(n, 1)).sum(-1)
    return first + rest.view(n, size)


def decoded_log_likelihoods(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    labels: Sequence[list[int]],
    rows: Sequence[int],
    enter: Enter,
) -> Tensor:
    """Log-likelihood of every label after every prompt, float64 ``[n, L]``.

    One encoder pass over the prompts, one decoder pass over n x L rows. The arguments are those of
    `cached_log_likelihoods`; the model is an encoder-decoder.
    """
    n, size = len(prompts), len(labels)
    inputs = {name: tensor.to(model.device) for name, tensor in pad_batch(tokenizer, prompts).items()}
    enter(rows)
    encoded = model.get_encoder()(**inputs, return_dict=True)
    encoded.last_hidden_state = encoded.last_hidden_state.repeat_interleave(size, 0)
    targets = pad_targets(labels).to(model.device).repeat(n, 1)
    enter(repeated(rows, size))
    output = forward(
        model,
        targets.shape[1],
        # FSMT hides from its decoder what follows only where it is given the prompt beside its encoding.
        input_ids=inputs["input_ids"].repeat_interleave(size, 0),
        encoder_outputs=encoded,
        attention_mask=inputs["attention_mask"].repeat_interleave(size, 0),
        decoder_input_ids=decoder_inputs(model, targets),
        use_cache=False,
    )
    return log_probabilities(output.logits, targets).sum(-1).view(n, size)


def repeated(rows: Sequence[int], times: int) -> list[int]:
    """Each row number as often as its row was expanded."""
    return [row for row in rows for _ in range(times)]
