"""Features of the frozen base model, by which a router recognises a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
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
    from torch.utils.hooks import RemovableHandle
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAST = 0
"""The number of what the body gives at its end; its layers are numbered from 1."""


def extract_features(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int,
    batch_size: int = 64,
) -> NDArray[np.float32]:
    """Features ``[n, width]`` of the last hidden state; see `extract_layers`."""
    return extract_layers(model, tokenizer, texts, (LAST,), max_length=max_length, batch_size=batch_size)[0]


@torch.inference_mode()
def extract_layers(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    layers: Sequence[int],
    *,
    max_length: int,
    batch_size: int = 64,
    whole: bool = False,
) -> list[NDArray[np.float32]]:
    """Mean of hidden states over a text's tokens, scaled to length 1, from one pass for all layers.

    Texts are sorted by length, so that a batch holds little padding (none where padding would change a feature), and
    the result is put back in order. The pass ends behind the deepest layer that is asked for.

    Args:
        model: The base model with no adapter active; its body is used, its head is not.
        tokenizer: Its tokenizer, which has a pad token.
        texts: n texts.
        layers: Numbers of layers from 1, or `LAST`.
        max_length: Tokens of a text; longer ones are cut.
        batch_size: Texts of a forward pass.
        whole: Let every pass run to its end.

    Returns:
        Of each layer float32 [n, width]; rows have length 1 (0 for a text without any token).

    Raises:
        IncompatibleError: The model's body gives no last hidden state, or has no such layer.
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
    features = [np.zeros((len(texts), width), np.float32) for width in _widths(model, tokenizer, layers)]
    results = Results(*features)
    for rows in sorted_batches(model, order, sizes, batch_size):
        inputs = sent(pad_batch(tokenizer, [encoded[i] for i in rows]), model.device)
        ids, mask = inputs["input_ids"], inputs["attention_mask"].bool()
        hidden = _hidden_of(model, ids, mask, layers, whole)
        results.put(rows, *(normalize(masked_mean(one.float(), mask), dim=-1) for one in hidden))
    results.read()
    model.train(training)
    for found in features:
        check_rows(np.isfinite(found.sum(-1)), texts, "features")
    return features


def routing_layers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The layers whose features are kept for routing: at a third and two thirds of the depth.

    Domain and form of a text lie lower than its meaning, which the last layer was trained for. Where the layers of a
    model cannot be told, its last hidden state stands for them.
    """
    depth = len(_seen(model, tokenizer).widths)
    return tuple(sorted({max(1, round(depth * share / 3)) for share in (1, 2)})) if depth else (LAST,)


class _Seen(NamedTuple):
    """What one pass shows of a body.

    Attributes:
        last: Width of its last hidden state.
        stack: Name of the list of its layers.
        widths: Of what each layer gives; empty where no list was found whose entries give all tokens' hidden states.
    """

    last: int
    stack: str
    widths: tuple[int, ...]


_SOME = 16
"""Tokens that any body can read."""

_SEEN: WeakKeyDictionary[PreTrainedModel, _Seen] = WeakKeyDictionary()


@torch.inference_mode()
def _seen(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> _Seen:
    """Of the outermost lists of modules the longest whose entries each give the hidden states of all tokens once."""
    if model not in _SEEN:
        training = model.training
        model.train(False)
        one = torch.full((1, _SOME), int(tokenizer.pad_token_id), device=model.device)
        stacks = dict(_stacks(encoder_of(model)))
        with _watching(model, [layer for stack in stacks.values() for layer in stack]) as given:
            last = _hidden(model, one, torch.ones_like(one)).shape[-1]
        model.train(training)
        widths = {name: [_width(given[layer], one) for layer in stack] for name, stack in stacks.items()}
        chains = {name: tuple(each) for name, each in widths.items() if all(each)}
        stack = max(chains, key=lambda name: len(chains[name]), default="")
        _SEEN[model] = _Seen(last, stack, chains.get(stack, ()))
    return _SEEN[model]


def _stacks(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.ModuleList]]:
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield prefix + name, child
        else:
            yield from _stacks(child, f"{prefix}{name}.")


@contextmanager
def _watching(
    model: PreTrainedModel, modules: Sequence[nn.Module], *, end: bool = False
) -> Iterator[dict[nn.Module, list[Any]]]:
    """A block in which what modules give in one pass of the body is put into lists.

    Args:
        model: The model.
        modules: Parts of its body, the deepest last.
        end: End the pass behind the last of them, by `_Deep`.
    """
    given: dict[nn.Module, list[Any]] = {module: [] for module in modules}
    hooks: list[RemovableHandle] = []

    def see(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        given[module].append(output)
        if end and module is modules[-1]:
            raise _Deep

    def rest(*_: Any) -> None:  # a pass that begins in the body's own hooks is another one
        for hook in hooks:
            hook.remove()

    hooks += [module.register_forward_hook(see) for module in given]
    hooks.append(encoder_of(model).register_forward_hook(rest, prepend=True))
    try:
        yield given
    finally:
        rest()


def _width(given: list[Any], ids: Tensor) -> int:
    """The width of the hidden states in a layer's one output; 0 where it gives none of every token."""
    states = _states(given[0]) if len(given) == 1 else None
    return states.shape[-1] if states is not None and states.ndim == 3 and states.shape[:2] == ids.shape else 0


def _states(output: Any) -> Tensor | None:
    """The hidden states in what a layer gives: alone, or first in a tuple."""
    first = output[0] if isinstance(output, tuple) and output else output
    return first if isinstance(first, Tensor) and first.is_floating_point() else None


def _widths(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, layers: Sequence[int]) -> list[int]:
    """Entries of features, which need not be the ``hidden_size`` of the config (OPT-350m, Reformer)."""
    seen = _seen(model, tokenizer)
    for layer in layers:
        if layer > len(seen.widths):
            depth = f"has {len(seen.widths)} layers" if seen.widths else "does not show its layers one by one"
            raise IncompatibleError(
                f"the body of {type(model).__name__} {depth}, so features of layer {layer} cannot be computed",
                hint="--set layer=0 takes the last hidden state",
                unchanged="nothing was changed",
            )
    return [seen.widths[layer - 1] if layer else seen.last for layer in layers]


class _Deep(Exception):
    """The deepest layer that is asked for was computed."""


def _hidden_of(model: PreTrainedModel, ids: Tensor, mask: Tensor, layers: Sequence[int], whole: bool) -> list[Tensor]:
    """The hidden states ``[n, s, h]`` of each layer."""
    numbers = sorted({layer for layer in layers if layer})
    stack: Any = encoder_of(model).get_submodule(_SEEN[model].stack) if numbers else ()
    modules = [stack[layer - 1] for layer in numbers]
    last: list[Tensor] = []
    with _watching(model, modules, end=not whole and LAST not in layers) as given, suppress(_Deep):
        last = [_hidden(model, ids, mask)]
    # A body may pad its rows further; what stands behind the text's own tokens is not looked at.
    lower = {layer: given[module][0] for layer, module in zip(numbers, modules, strict=True)}
    states = [_states(lower[layer]) if layer else last[0] for layer in layers]
    return [one[:, : ids.shape[1]] for one in states if one is not None]


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
            hint="choose another base model: --base",
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
