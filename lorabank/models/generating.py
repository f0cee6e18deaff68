"""What a language model answers when it always takes the likeliest token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lorabank.models.batches import Enter, check_prompts, evaluating, pad_left
from lorabank.models.encoding import pad_batch
from lorabank.models.finite import check_rows, log_total
from lorabank.models.label_rows import start_token
from lorabank.models.padding import prompt_batches, row_batches


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    enter: Enter,
) -> list[str]:
    """Greedy answers.

    Nothing but the model's own probabilities counts: what its ``generation_config`` says about sampling, beams,
    penalties, forced tokens or lengths is left aside; its end tokens and the tokenizer's both end an answer.

    Args:
        model: A causal or encoder-decoder language model of transformers.
        tokenizer: Its tokenizer, which has a pad token.
        prompts: Token ids of n prompts.
        max_new_tokens: Most tokens of an answer, at least 1.
        batch_size: Prompts of a forward pass; prompts of similar length go together, longest first,
            where the model lets them (`lorabank.models.padding`).
        enter: Called before every forward pass with the row number of each of its rows; a row whose answer has ended
            stays in its batch.

    Returns:
        n texts without special tokens and outer blanks.

    Raises:
        DataError: A prompt has no tokens.
        DivergedError: The model gives no finite probabilities.
    """
    check_prompts(prompts)
    texts, finite = [""] * len(prompts), np.ones(len(prompts), np.bool_)
    causal = not model.config.is_encoder_decoder
    lengths = [len(prompt) for prompt in prompts]
    batches = prompt_batches(model, lengths, batch_size) if causal else row_batches(model, lengths, batch_size)
    with evaluating(model), _greedy(model, tokenizer, max_new_tokens):
        for rows in batches:
            own = [prompts[i] for i in rows]
            inputs = pad_left(tokenizer, own, model.device) if causal else pad_batch(tokenizer, own)
            watch = _Finite()
            answers = _answer(model, inputs, rows, enter, watch)[:, inputs["input_ids"].shape[1] if causal else 1 :]
            for i, ids, whole in zip(rows, answers.tolist(), watch.steps(), strict=True):
                end = _end(ids, model.generation_config.eos_token_id)
                finite[i] = all(whole[: end + 1])
                texts[i] = _text(tokenizer, ids[:end])
    if not finite.all():
        check_rows(finite, [tokenizer.decode(prompt, skip_special_tokens=True) for prompt in prompts], "logits")
    return texts


class _Finite:
    """Sees the logits of each step, and changes none; what it finds stays on the device until the end."""

    def __init__(self) -> None:
        self._seen: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``scores [n, vocabulary]`` as they are."""
        self._seen.append(log_total(scores.float()).isfinite())
        return scores

    def steps(self) -> list[list[bool]]:
        """For each row, for each step, whether a token could be chosen."""
        found: list[list[bool]] = torch.stack(self._seen, -1).tolist()
        return found


def _answer(
    model: Any, inputs: dict[str, Tensor], rows: Sequence[int], enter: Enter, watch: Callable[..., Tensor]
) -> Tensor:
    """Token ids of one batch as ``model.generate`` gives them: prompt (or start token), answer, padding."""
    from transformers import LogitsProcessorList

    def before(*_: object) -> None:
        enter(rows)

    if model.config.is_encoder_decoder:
        enter(rows)  # the encoder is a module of its own: the hook does not see it
    hook = model.register_forward_pre_hook(before)
    try:
        # Positions are made from the mask there, step by step.
        ids = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
        answers: Tensor = model.generate(**ids, logits_processor=LogitsProcessorList([watch]))
        return answers
    finally:
        hook.remove()


@contextmanager
def _greedy(model: Any, tokenizer: Any, max_new_tokens: int) -> Iterator[None]:
    """Plain greedy decoding as the model's own settings for the length of a block.

    Settings given to ``model.generate`` would be filled up with the model's own, sampling and penalties included.
    """
    from transformers import GenerationConfig

    own = model.generation_config
    ends = end_tokens(model, tokenizer)
    model.generation_config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        bos_token_id=own.bos_token_id,
        eos_token_id=ends or None,
        pad_token_id=int(tokenizer.pad_token_id),
        decoder_start_token_id=start_token(model),
    )
    try:
        yield
    finally:
        model.generation_config = own


def end_tokens(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: those of the model's ``generation_config``, and the tokenizer's."""
    own = model.generation_config.eos_token_id
    ends = {*(own if isinstance(own, list) else [own]), tokenizer.eos_token_id} - {None}
    return sorted(int(token) for token in ends)


def _end(ids: Sequence[int], ends: Sequence[int] | None) -> int:
    """How many tokens stand before the first end token."""
    return next((k for k, token in enumerate(ids) if token in (ends or ())), len(ids))


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.strip()
