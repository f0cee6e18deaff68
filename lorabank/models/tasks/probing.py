"""Short passes through a model, which show what it does with the rows of a batch.

What padding reaches, and where a batch's rows stand inside a model, is seen in what it computes and not in its name or
its config. A pass leaves nothing behind: modes, chosen heads and the global random state are as before.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lorabank.models.bases.body import same_attention
from lorabank.models.tasks.batches import pad_left, takes, takes_positions
from lorabank.models.tasks.encoding import pad_batch
from lorabank.models.tasks.heads import HeadSwitch

_SPECIAL = ("token_id", "token_index")
_MOST_WORDS = 4096


def can_be_probed(model: Any) -> bool:
    """Whether this is a model of transformers, and not some module around one."""
    return hasattr(model, "config") and hasattr(model, "get_input_embeddings")


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Eval mode in the weights' own precision, the first head, no gradients; all as before after the block."""
    modes = [(module, module.training) for module in model.modules()]
    heads = {module.selection for module in model.modules() if isinstance(module, HeadSwitch)}
    kind = model.device.type
    devices = [model.device] if kind == "cuda" else []
    with (
        ExitStack() as stack,
        torch.random.fork_rng(devices=devices),
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(kind, enabled=False),
        same_attention(model),
    ):
        model.eval()
        for head in heads:
            stack.enter_context(head.chosen(0))
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode


def random_rows(model: Any, lengths: Sequence[int], seed: int) -> list[list[int]]:
    """Token ids of ordinary words; those of an encoder-decoder end as its texts do."""
    config = model.config.get_text_config()
    named = [value for key, value in config.to_dict().items() if key.endswith(_SPECIAL) and value is not None]
    special = {token for value in named for token in (value if isinstance(value, list) else [value])}
    size = min(getattr(config, "vocab_size", None) or _MOST_WORDS, _MOST_WORDS)
    words = torch.tensor([token for token in range(size) if token not in special] or list(range(size)))
    generator = torch.Generator().manual_seed(seed)
    rows = [words[torch.randint(len(words), (length,), generator=generator)].tolist() for length in lengths]
    end = getattr(config, "eos_token_id", None)
    return [[*row[:-1], end] for row in rows] if model.config.is_encoder_decoder and isinstance(end, int) else rows


def outputs(model: Any, rows: Sequence[list[int]], side: str, answers: Sequence[list[int]]) -> list[Tensor]:
    """What one pass over the rows, padded on one side, computes.

    Args:
        model: A model of transformers, undisturbed.
        rows: n rows of token ids.
        side: ``"left"`` or ``"right"``.
        answers: What the decoder of an encoder-decoder language model reads, n rows; others read none.

    Returns:
        Logits and last hidden states, as far as the model gives them, each with n rows.
    """
    pads = SimpleNamespace(pad_token_id=model.config.get_text_config().pad_token_id or 0)
    inputs = pad_left(pads, rows, model.device) if side == "left" else pad_batch(pads, rows)
    if model.config.is_encoder_decoder and model.can_generate():
        inputs["decoder_input_ids"] = pad_batch(pads, answers)["input_ids"]
    if not takes_positions(model):
        inputs.pop("position_ids", None)
    given = {name: tensor.to(model.device) for name, tensor in inputs.items() if takes(model, name)}
    plain = {name: value for name, value in (("use_cache", False),) if takes(model, name)}
    found = model(**given, **plain, output_hidden_states=True, return_dict=True)
    hidden = found.get("hidden_states") or found.get("encoder_hidden_states") or (None,)
    last = [found.get("logits"), hidden[-1], found.get("encoder_last_hidden_state")]
    return [tensor for tensor in last if isinstance(tensor, Tensor) and len(tensor) == len(rows)]
