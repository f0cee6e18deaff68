"""Texts that are of no task as a model's inputs: what is measured is what they feed into its modules."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor

from lorabank.models.tasks.decoder_inputs import pad_targets
from lorabank.models.tasks.encoding import encode_texts, pad_batch
from lorabank.models.tasks.padding import row_batches


def passages(
    model: Any, tokenizer: Any, texts: Sequence[str], *, max_length: int, batch_size: int
) -> Iterable[dict[str, Tensor]]:
    """Texts in batches in which none changes what another one gives, on the model's device.

    The batches are planned at once, before anything watches the model's passes.

    Args:
        model: Reads them; the decoder of an encoder-decoder reads what its encoder reads.
        tokenizer: A transformers tokenizer.
        texts: The texts; those without a token are left out.
        max_length: Maximum tokens of a text; longer ones are cut.
        batch_size: Maximum texts of a batch.

    Returns:
        Batches of ``input_ids`` and ``attention_mask`` int64 ``[n, longest]``, padded on the right; for an
        encoder-decoder ``labels`` of the same tokens.
    """
    ids = [row for row in encode_texts(tokenizer, texts, max_length).ids if row]
    both = bool(getattr(model.config, "is_encoder_decoder", False))
    planned = row_batches(model, [len(row) for row in ids], batch_size)

    def made() -> Iterator[dict[str, Tensor]]:
        for numbers in planned:
            rows = [ids[i] for i in numbers]
            batch = pad_batch(tokenizer, rows) | ({"labels": pad_targets(rows)} if both else {})
            yield {name: tensor.to(model.device) for name, tensor in batch.items()}

    return made()
