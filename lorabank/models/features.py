"""Features of the frozen base model, by which prototype composition recognises a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize
from torch.nn.utils.rnn import pad_sequence

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@torch.inference_mode()
def extract_features(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int,
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """Mean of the last hidden state over a text's tokens, scaled to length 1.

    Texts are sorted by length, so that a batch holds little padding, and the result is put back in order.

    Args:
        model: The base model with no adapter active; its body is used, its head is not.
        tokenizer: Its tokenizer, which has a pad token.
        texts: n texts.
        max_length: Tokens of a text; longer ones are cut.
        batch_size: Texts of a forward pass.

    Returns:
        float32 [n, hidden]; rows have length 1 (0 for a text without any token).

    Source:
        Mean pooling as sentence-transformers does it; L2-normalised features of the frozen backbone route in
        CoLoR (arXiv 2311.17601).
    """
    training = model.training
    model.train(False)
    body: Any = model.base_model
    if model.config.is_encoder_decoder:
        body = body.get_encoder()
    features = np.zeros((len(texts), model.config.get_text_config().hidden_size), np.float32)
    encoded = tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"] if texts else []
    # A text without tokens has nothing to look at: its feature stays 0.
    order = sorted((i for i, ids in enumerate(encoded) if ids), key=lambda i: len(encoded[i]))
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        tokens = [torch.tensor(encoded[i]) for i in rows]
        ids = pad_sequence(tokens, batch_first=True, padding_value=tokenizer.pad_token_id).to(model.device)
        lengths = torch.tensor([len(t) for t in tokens], device=model.device)
        mask = torch.arange(ids.shape[1], device=model.device) < lengths[:, None]
        hidden = body(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        features[rows] = normalize(masked_mean(hidden.float(), mask), dim=-1).cpu().numpy()
    model.train(training)
    return features


def masked_mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over the tokens that the mask keeps.

    Args:
        hidden: [n, s, h], floating.
        mask: [n, s], bool.

    Returns:
        [n, h].
    """
    kept = hidden.masked_fill(~mask[..., None], 0.0)
    return kept.sum(1) / mask.sum(1, keepdim=True).clamp(min=1)
