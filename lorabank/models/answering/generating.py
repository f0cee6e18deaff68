"""What a language model says behind prompts: the likeliest token again and again, or draws."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from lorabank.core.config import SamplingConfig
from lorabank.models.answering.replies import Following, GenerationRequest, Reply, Written
from lorabank.models.answering.sampling import Choice
from lorabank.models.finite import check_rows, log_total
from lorabank.models.tasks.batches import Enter, check_prompts, evaluating, pad_left, takes, takes_positions
from lorabank.models.tasks.decoder_inputs import start_token
from lorabank.models.tasks.encoding import pad_batch
from lorabank.models.tasks.padding import prompt_batches, row_batches, same_numbers
from lorabank.models.tasks.probing import can_be_probed, random_rows, undisturbed

_LONG, _SHORT, _STEPS = 9, 5, 3


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    *,
    max_new_tokens: int,
    batch_size: int,
    enter: Enter,
    strip: bool = True,
) -> list[str]:
    """Greedy answers: the texts that `write` gives where nothing is drawn and every answer may be as long."""
    requests = [GenerationRequest(SamplingConfig(max_new_tokens=max_new_tokens))] * len(prompts)
    found = write(model, tokenizer, prompts, requests, batch_size=batch_size, enter=enter, strip=strip)
    return [one.text for one in found]


def write(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[list[int]],
    requests: Sequence[GenerationRequest],
    *,
    batch_size: int,
    enter: Enter,
    strip: bool = True,
) -> list[Written]:
    """Answers to prompts, each as its own request has it.

    Nothing but the model's own probabilities counts: what its ``generation_config`` says about sampling, beams,
    penalties, forced tokens or lengths is left aside; its end tokens and the tokenizer's both end an answer.

    Args:
        model: A causal or encoder-decoder language model of transformers.
        tokenizer: Its tokenizer, which has a pad token.
        prompts: Token ids of n prompts.
        requests: How each of the n answers is chosen (`lorabank.models.answering.sampling`), where it ends, and who
            hears it; those of a batch may differ.
        batch_size: Prompts of a forward pass; prompts of similar length go together, longest first,
            where the model lets them (`lorabank.models.tasks.padding`).
        enter: Called before every forward pass with the row number of each of its rows; a row whose answer has ended
            stays in its batch.
        strip: Take outer blanks away.

    Returns:
        n answers.

    Raises:
        DataError: A prompt has no tokens.
        DivergedError: The model gives no finite probabilities.
    """
    check_prompts(prompts)
    found: dict[int, Reply] = {}
    causal = not model.config.is_encoder_decoder
    ends = end_tokens(model, tokenizer)
    with evaluating(model):
        for rows in _batches(model, [len(prompt) for prompt in prompts], batch_size):
            own = [prompts[i] for i in rows]
            inputs = pad_left(tokenizer, own, model.device) if causal else pad_batch(tokenizer, own)
            width = inputs["input_ids"].shape[1]
            settings = [requests[i].sampling for i in rows]
            replies = [Reply(tokenizer, requests[i], ends, len(prompts[i]), strip=strip) for i in rows]
            watch, choice = _Finite(), Choice(settings, [width - len(prompt) if causal else 1 for prompt in own])
            with _greedy(model, tokenizer, max(one.max_new_tokens for one in settings)):
                _answer(model, inputs, rows, enter, (watch, choice), Following(replies, watch.newest))
            found |= dict(zip(rows, replies, strict=True))
    every = [found[i] for i in range(len(prompts))]
    if not all(reply.finite for reply in every):
        finite = np.array([reply.finite for reply in every])
        check_rows(finite, [tokenizer.decode(prompt, skip_special_tokens=True) for prompt in prompts], "logits")
    return [reply.written() for reply in every]


def _batches(model: Any, lengths: Sequence[int], batch_size: int) -> list[list[int]]:
    """Prompts that may be answered together."""
    make = row_batches if model.config.is_encoder_decoder else prompt_batches
    batches = make(model, lengths, batch_size)
    if all(len(rows) == 1 for rows in batches) or reads_on(model):
        return batches
    return [[row] for rows in batches for row in rows]


_reads_on: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def reads_on(model: Any) -> bool:
    """Whether rows that read a prompt together go on, token by token behind it, as each would alone.

    It is measured once, in the adapters' present state. RWKV's steps mix the rows of a batch, and some models keep
    something else of a padded prompt than of the prompt.
    """
    if model not in _reads_on:
        _reads_on[model] = not can_be_probed(model) or _agrees_with_single_rows(model)
    return _reads_on[model]


def _agrees_with_single_rows(model: Any) -> bool:
    rows = random_rows(model, (_LONG, _SHORT), seed=4)
    make = row_batches if model.config.is_encoder_decoder else prompt_batches
    if len(make(model, (_LONG, _SHORT), 2)) > 1:
        rows = random_rows(model, (_LONG, _LONG), seed=4)
    with undisturbed(model):
        try:
            together = _steps(model, rows)
            alone = [_steps(model, [row])[0] for row in rows]
        except Exception:  # whatever a model raises that cannot go on from these rows
            return False
    eps = torch.finfo(model.dtype).eps
    return all(same_numbers(found, here, eps=eps) for found, here in zip(together, alone, strict=True))


def _steps(model: Any, rows: Sequence[list[int]]) -> list[Tensor]:
    """The logits of the tokens behind each row, float32 ``[steps, vocabulary]``; all rows go on with the same ones."""
    pads = SimpleNamespace(pad_token_id=model.config.get_text_config().pad_token_id or 0, eos_token_id=None)
    inputs = pad_batch(pads, rows) if model.config.is_encoder_decoder else pad_left(pads, rows, model.device)
    ahead = torch.tensor(random_rows(model, (_STEPS + 1,), seed=5)[0], device=model.device)
    seen: list[Tensor] = []

    def choose(input_ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(scores.float())
        return torch.zeros_like(scores).index_fill_(1, ahead[len(seen) - 1 : len(seen)], 1.0)

    with _greedy(model, pads, _STEPS):
        _answer(model, inputs, range(len(rows)), lambda rows: None, (choose,))
    return list(torch.stack(seen, 1))


class _Finite:
    """Sees the logits of each step, and changes none."""

    _seen: Tensor

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """``scores [n, vocabulary]`` as they are."""
        self._seen = log_total(scores.float()).isfinite()
        return scores

    def newest(self) -> Tensor:
        """Whether a token of the newest step could be chosen, bool ``[n]``."""
        return self._seen


def _answer(
    model: Any,
    inputs: dict[str, Tensor],
    rows: Sequence[int],
    enter: Enter,
    choose: Sequence[Callable[..., Tensor]],
    follow: Callable[..., Tensor] | None = None,
) -> None:
    """Let ``model.generate`` continue one batch.

    Args:
        model: A language model.
        inputs: The batch's prompts.
        rows: Their row numbers for ``enter``.
        enter: Called before every forward pass.
        choose: What becomes of each step's logits, one after the other.
        follow: Gets each step's tokens, and says which rows have ended.
    """
    from transformers import LogitsProcessorList, StoppingCriteriaList

    def before(*_: object) -> None:
        enter(rows)

    if model.config.is_encoder_decoder:
        enter(rows)  # the encoder is a module of its own: the hook does not see it
    own_positions = takes(model, "position_ids") and not takes_positions(model)
    hook = model.register_forward_pre_hook(before)
    if own_positions:  # transformers counts them from 0 for every model
        without = model.register_forward_pre_hook(_without_positions, with_kwargs=True)
    try:
        # Positions are made from the mask there, step by step.
        ids = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
        ends = StoppingCriteriaList([follow] if follow else [])
        model.generate(**ids, logits_processor=LogitsProcessorList(choose), stopping_criteria=ends)
    finally:
        hook.remove()
        if own_positions:
            without.remove()


def _without_positions(model: Any, args: tuple[Any, ...], inputs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """A model that counts positions itself is told none."""
    return args, {name: value for name, value in inputs.items() if name != "position_ids"}


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
