"""Features of the frozen base model, by which prototype composition recognises a task."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from lorabank.core.errors import IncompatibleError
from lorabank.models.bases.body import encoder_of
from lorabank.models.finite import check_rows
from lorabank.models.tasks.batches import takes
from lorabank.models.tasks.encoding import pad_batch
from lorabank.models.tasks.padding import sorted_batches
from lorabank.models.tasks.token_rows import TokenRows, blocks
from lorabank.models.tasks.transfer import Results, sent

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

    Texts are sorted by length, so that a batch holds little padding (none where padding would change a feature), and
    the result is put back in order.

    Args:
        model: The base model with no adapter active; its body is used, its head is not.
        tokenizer: Its tokenizer, which has a pad token.
        texts: n texts.
        max_length: Tokens of a text; longer ones are cut.
        batch_size: Texts of a forward pass.

    Returns:
        float32 [n, width of the last hidden state]; rows have length 1 (0 for a text without any token).

    Raises:
        IncompatibleError: The model's body gives no last hidden state.
        DivergedError: A feature is not finite.

    Source:
        Mean pooling as sentence-transformers does it; L2-normalised features of the frozen backbone route in
        CoLoR (arXiv 2311.17601).
    """
    training = model.training
    model.train(False)
    options = {"truncation": True, "max_length": max_length, "return_attention_mask": False}
    encoded = TokenRows()
    for block in blocks(len(texts)):
        for row in tokenizer(list(texts[block]), **options)["input_ids"]:
            encoded.append(row)
    sizes = encoded.lengths
    # A text without tokens has nothing to look at: its feature stays 0.
    order = sorted((i for i, size in enumerate(sizes) if size), key=sizes.__getitem__)
    features = np.zeros((len(texts), feature_width(model, tokenizer)), np.float32)
    results = Results(features)
    for rows in sorted_batches(model, order, sizes, batch_size):
        inputs = sent(pad_batch(tokenizer, [encoded[i] for i in rows]), model.device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        results.put(rows, normalize(masked_mean(_hidden(model, ids, mask).float(), mask), dim=-1))
    results.read()
    model.train(training)
    check_rows(np.isfinite(features.sum(-1)), texts, "features")
    return features


@torch.inference_mode()
def feature_width(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Entries of a feature, which need not be the ``hidden_size`` of the config (OPT-350m, Reformer); seen once."""
    if model not in _WIDTHS:
        one = torch.full((1, _SOME), int(tokenizer.pad_token_id), device=model.device)
        _WIDTHS[model] = _hidden(model, one, torch.ones_like(one)).shape[-1]
    return _WIDTHS[model]


_SOME = 16
"""Tokens that any body can read."""

_WIDTHS: WeakKeyDictionary[PreTrainedModel, int] = WeakKeyDictionary()


def _hidden(model: PreTrainedModel, ids: Tensor, mask: Tensor) -> Tensor:
    """The body's last hidden state ``[n, s, h]``."""
    encoder = encoder_of(model)
    uncached = {"use_cache": False} if takes(encoder, "use_cache") else {}
    output = encoder(input_ids=ids, attention_mask=mask.long(), **uncached)
    hidden: Tensor | None = getattr(output, "last_hidden_state", None)
    # Funnel pools neighbours: padding cannot be told from words then.
    if hidden is None or hidden.shape[:2] != ids.shape:
        raise IncompatibleError(
            f"the body of {type(model).__name__} gives no last hidden state of every token, which routing needs",
            hint="another base model: --base",
            unchanged="nothing was changed",
        )
    return hidden


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
