"""A batch of generated answers that others join while it runs: continuous batching over one cache.

Each row has its keys and values in one cache, padded on the left, so that all rows end in the same column. Prompts
that join are read in a pass of their own, and their part of the cache is put beside the rest; a row whose answer has
ended is taken out, with the columns that only it needed. In between, one pass gives a token to every row. A row gets
what it gets alone, as far as rounding lets it: its prompt, its positions and its choice of tokens are its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor

from lorabank.models.answering.generating import end_tokens
from lorabank.models.answering.replies import GenerationRequest, Reply, decoded
from lorabank.models.answering.sampling import Choice
from lorabank.models.finite import check_rows, log_total
from lorabank.models.tasks.batches import check_prompts, forward, pad_left, takes_positions
from lorabank.models.tasks.padding import padding_of, same_numbers
from lorabank.models.tasks.probing import can_be_probed, random_rows, undisturbed

K = TypeVar("K")

_LENGTHS, _STEPS = (9, 5, 12), 4


class CachedRows:
    """Rows of tokens and what a causal language model keeps of them.

    Args:
        model: The model; `rolls` says whether it can.
        pads: Has a ``pad_token_id``.
    """

    def __init__(self, model: Any, pads: Any) -> None:
        self._model, self._pads = model, pads
        self._cache: Any = None
        self._mask = torch.zeros(0, 0, dtype=torch.long, device=model.device)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and columns that are kept of each."""
        return self._mask.shape[0], self._mask.shape[1]

    def read(self, prompts: Sequence[list[int]]) -> Tensor:
        """Add rows behind the others; gives the logits ``[n, vocabulary]`` of what follows each, float32."""
        inputs = pad_left(self._pads, prompts, self._model.device)
        output = forward(self._model, 1, **inputs, use_cache=True)
        cache, mask = output.past_key_values, inputs["attention_mask"]
        _check_layers(cache)
        if self._cache is None:
            self._cache, self._mask = cache, mask
        else:
            width = max(mask.shape[1], self._mask.shape[1])
            for own, new in zip(self._cache.layers, cache.layers, strict=True):
                own.keys = torch.cat([_widened(own.keys, width), _widened(new.keys, width)])
                own.values = torch.cat([_widened(own.values, width), _widened(new.values, width)])
            self._mask = torch.cat([F.pad(one, (width - one.shape[1], 0)) for one in (self._mask, mask)])
        return output.logits[:, -1].to(torch.float32, copy=True)  # type: ignore[no-any-return]

    def follow(self, tokens: Sequence[int]) -> Tensor:
        """Add a token to every row; gives the logits ``[n, vocabulary]`` of the next ones, float32."""
        ids = torch.tensor(tokens, device=self._mask.device)[:, None]
        self._mask = F.pad(self._mask, (0, 1), value=1)
        output = forward(
            self._model,
            1,
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=self._mask.sum(-1, keepdim=True) - 1,
            past_key_values=self._cache,
            use_cache=True,
        )
        return output.logits[:, -1].to(torch.float32, copy=True)  # type: ignore[no-any-return]

    def keep(self, rows: Sequence[int]) -> None:
        """Forget all other rows, and the columns that are padding in those that stay."""
        if not rows:
            self._cache, self._mask = None, self._mask[:0, :0]
            return
        chosen = torch.tensor(rows, device=self._mask.device)
        mask = self._mask[chosen]
        first = int(mask.any(0).to(torch.uint8).argmax())
        self._mask = mask[:, first:]
        for layer in self._cache.layers:
            layer.keys = layer.keys[chosen, :, first:]
            layer.values = layer.values[chosen, :, first:]


@dataclass(eq=False)
class _Row(Generic[K]):
    key: K
    ids: list[int]
    reply: Reply
    choice: Choice | None


class Rolling(Generic[K]):
    """Answers that are generated together.

    Args:
        model: A language model that `rolls`, in eval mode, without gradients.
        tokenizer: Its tokenizer, which has a pad token.
        enter: Called before every pass with the key of each of its rows.
        passed: Called after every pass, before anything is heard of it.
    """

    def __init__(
        self, model: Any, tokenizer: Any, enter: Callable[[Sequence[K]], None], passed: Callable[[], object]
    ) -> None:
        self._tokenizer, self._enter, self._passed = tokenizer, enter, passed
        self._ends = end_tokens(model, tokenizer)
        self._cached = CachedRows(model, tokenizer)
        self._rows: list[_Row[K]] = []

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, int]:
        """Rows, and columns of the cache that are kept of each."""
        return self._cached.shape

    def join(self, prompts: Sequence[list[int]], requests: Sequence[GenerationRequest], keys: Sequence[K]) -> None:
        """Read prompts and give each its first token.

        Args:
            prompts: Token ids of n prompts.
            requests: How each is answered.
            keys: What `enter` is called with for each.

        Raises:
            DataError: A prompt has no tokens.
            DivergedError: The model gives no finite probabilities.
        """
        check_prompts(prompts)
        self._enter(keys)
        logits = self._cached.read(prompts)
        self._passed()
        new = [
            _Row(
                key,
                list(prompt),
                Reply(self._tokenizer, request, self._ends, len(prompt), strip=True),
                _chosen(request),
            )
            for prompt, request, key in zip(prompts, requests, keys, strict=True)
        ]
        self._rows += new
        self._take(new, logits)

    def step(self) -> None:
        """Give every row its next token; raises as `join`."""
        self._enter([row.key for row in self._rows])
        logits = self._cached.follow([row.ids[-1] for row in self._rows])
        self._passed()
        self._take(self._rows, logits)

    def _take(self, rows: Sequence[_Row[K]], logits: Tensor) -> None:
        """Choose a token for some rows, and let those go whose answer has ended."""
        finite = log_total(logits).isfinite().cpu().numpy()
        if not finite.all():
            check_rows(finite, [decoded(self._tokenizer, row.ids) for row in rows], "logits")
        for i, row in enumerate(rows):
            if row.choice is not None:
                logits[i] = row.choice(torch.tensor([row.ids], device=logits.device), logits[i : i + 1])[0]
        for row, token in zip(rows, logits.argmax(-1).tolist(), strict=True):
            row.ids.append(token)
            row.reply.add(token, finite=True)
        going = [i for i, row in enumerate(self._rows) if row.reply.finish is None]
        if len(going) < len(self._rows):
            self._cached.keep(going)
            self._rows = [self._rows[i] for i in going]


def _chosen(request: GenerationRequest) -> Choice | None:
    """How a row that is not greedy chooses."""
    sampling = request.sampling
    greedy = sampling.temperature == 0 and sampling.repetition_penalty == 1
    return None if greedy else Choice([sampling], [0])


def _widened(states: Tensor, width: int) -> Tensor:
    """Keys or values ``[n, heads, s, d]`` with padding in front, ``[n, heads, width, d]``."""
    return F.pad(states, (0, 0, width - states.shape[2], 0))


def _check_layers(cache: Any) -> None:
    """Refuse a cache that is more than the keys and values of each token.

    Raises:
        TypeError: A layer forgets old tokens, or keeps another state.
    """
    from transformers.cache_utils import DynamicLayer

    if not all(type(layer) is DynamicLayer and layer.is_initialized for layer in cache.layers):
        raise TypeError("a layer of the cache keeps another state than keys and values of all tokens")


_rolls: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def rolls(model: Any) -> bool:
    """Whether rows can join others, and leave them, and get what each gets alone.

    It is measured once, in the adapters' present state: by three rows, one of which joins the others late.
    """
    if model not in _rolls:
        causal = can_be_probed(model) and not model.config.is_encoder_decoder and takes_positions(model)
        _rolls[model] = causal and padding_of(model).left and padding_of(model).beside and _joins(model)
    return _rolls[model]


def _joins(model: Any) -> bool:
    pads = SimpleNamespace(pad_token_id=model.config.get_text_config().pad_token_id or 0)
    rows, ahead = random_rows(model, _LENGTHS, seed=6), random_rows(model, (_STEPS,) * len(_LENGTHS), seed=7)
    with undisturbed(model):
        try:
            alone = []
            for row, tokens in zip(rows, ahead, strict=True):
                own = CachedRows(model, pads)
                alone.append(torch.cat([own.read([row]), *(own.follow([token]) for token in tokens)]))
            together = _joined_late(CachedRows(model, pads), rows, ahead)
        except Exception:  # whatever a model raises that keeps something else of what it read
            return False
    eps = torch.finfo(model.dtype).eps
    return all(same_numbers(found, own[: len(found)], eps=eps) for found, own in zip(together, alone, strict=True))


def _joined_late(cached: CachedRows, rows: Sequence[list[int]], ahead: Sequence[list[int]]) -> list[Tensor]:
    """The logits of each row: two begin, the third joins behind their first token, and the first goes early."""
    found = [[one] for one in cached.read(rows[:2])]
    for i, logits in enumerate(cached.follow([ahead[0][0], ahead[1][0]])):
        found[i].append(logits)
    found += [[one] for one in cached.read(rows[2:])]
    for i, logits in enumerate(cached.follow([ahead[0][1], ahead[1][1], ahead[2][0]])):
        found[i].append(logits)
    cached.keep([1, 2])
    for step in range(2, _STEPS):
        for i, logits in enumerate(cached.follow([ahead[1][step], ahead[2][step - 1]]), start=1):
            found[i].append(logits)
    return [torch.stack(one) for one in found]
