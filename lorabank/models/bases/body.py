"""The body of a model: the part under its head, which makes the hidden states."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def body_of(model: PreTrainedModel) -> PreTrainedModel:
    """The part of a model that its head stands on; the model itself where it has no head.

    A class may name another attribute than the one that holds its body (Llama 4's text model does): then the body is
    the child that is a model of its own.
    """
    from transformers import PreTrainedModel

    own = model.base_model
    if own is not model or model.config.is_encoder_decoder:
        return own  # type: ignore[return-value]
    return next((child for child in model.children() if isinstance(child, PreTrainedModel)), model)


def encoder_of(model: PreTrainedModel) -> Any:
    """What reads a text: the body, or its encoder where a decoder answers."""
    body: Any = body_of(model)
    return body.get_encoder() if model.config.is_encoder_decoder else body


def pass_through(model: PreTrainedModel, ids: torch.Tensor) -> None:
    """One forward pass of the body over token ids ``[n, s]``; the decoder of an encoder-decoder reads the same ids."""
    given = {"decoder_input_ids": ids} if model.config.is_encoder_decoder else {}
    with same_attention(model):
        body_of(model)(input_ids=ids, **given)


@contextmanager
def same_attention(model: PreTrainedModel) -> Iterator[None]:
    """A block whose texts do not decide how later ones are read.

    BigBird gives its sparse attention up for good when it sees a short text.
    """
    body: Any = body_of(model)
    attention = getattr(body, "attention_type", None)
    try:
        yield
    finally:
        if attention is not None:
            body.set_attention_type(attention)
