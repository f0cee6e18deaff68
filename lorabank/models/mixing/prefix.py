r"""The frozen lower layers of a model, computed once for all of its states.

Where every adapter lies in layer N or above, layers 0 to N - 1 are the base's in each state, so with x the batch and s
the state

    logits(x, s) = upper_s(h(x)),   h = layer_{N-1} o ... o layer_0 o embed

and h(x) is the same tensor for all s. It is kept for each batch, and where the batch comes again, layers 0 to N - 1
are not computed: the model's own code runs, embeddings, masks and rotary angles as always, but each of those layers
gives h(x) back. The result is that of the full pass, bit for bit; with half of the layers frozen, T states cost
(1 + T) / 2T of the full passes.

Only plain scoring is cut short: no gradient, not in training mode, tensors and plain values alone as arguments (no key
and value cache), and neither a cache nor the layers' outputs in the result. All else runs in full. No model is trusted
to have no way around its layers: the first batch that comes again is computed both ways, and where they differ nothing
is reused from then on.

What is kept stays until `PREFIX_BYTES` are full; then new batches are not kept. States go over the same batches in the
same order, and giving up the oldest batch for the newest would lose each one just before it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from hashlib import sha256
from typing import Any

import torch
from torch import Tensor, nn

from lorabank.models.bases.sites import layer_of

PREFIX_BYTES = 1 << 30
_UNUSUAL = ("past_key_values", "hidden_states", "attentions")


class FrozenPrefix:
    """Stands in front of a model's lower layers, for as long as the model lives.

    Args:
        model: A model of transformers; its frozen layers' ``forward`` is replaced. What it computes stays the same.
        adapted: Full names of all modules that may differ from the base.
    """

    def __init__(self, model: nn.Module, adapted: Iterable[str]) -> None:
        self._stored: dict[bytes, Tensor | tuple[Any, ...]] = {}
        self._free = PREFIX_BYTES
        self._checked = False
        self._rest()
        layers = frozen_layers(model, adapted)
        self._on = bool(layers)
        for layer in layers:
            layer.forward = partial(self._layer, layer.forward, layer is layers[-1])
        if layers:
            model.register_forward_pre_hook(self._begin, with_kwargs=True)
            model.register_forward_hook(self._end, with_kwargs=True, always_call=True)

    def _rest(self) -> None:
        self._key: bytes | None = None
        self._found: Tensor | tuple[Any, ...] | None = None
        self._fresh: Tensor | tuple[Any, ...] | None = None

    def _begin(self, model: nn.Module, args: tuple[Any, ...], inputs: Mapping[str, Any]) -> None:
        self._rest()
        if self._on and not (args or model.training or torch.is_grad_enabled()):
            self._key = _digest(inputs)
            self._found = self._stored.get(self._key) if self._key else None

    def _layer(self, forward: Callable[..., Any], last: bool, *args: Any, **kwargs: Any) -> Any:
        if self._found is not None:  # what a lower layer gives is not looked at by the next
            return _copy(self._found) if last else self._found
        output = forward(*args, **kwargs)
        if last and self._key is not None and 0 < _size(output) <= self._free:
            self._fresh = _copy(output)
        return output

    def _end(self, model: nn.Module, args: tuple[Any, ...], inputs: Mapping[str, Any], output: Any) -> Any:
        key, found, fresh = self._key, self._found, self._fresh
        self._rest()
        plain = isinstance(output, Mapping) and all(output.get(name) is None for name in _UNUSUAL)
        if plain and key and fresh is not None:
            self._stored[key] = fresh
            self._free -= _size(fresh)
        if found is None or self._checked or output is None:
            return None
        self._checked, self._on = True, False
        full = model(**inputs)
        self._on = torch.equal(full.logits, output.logits)
        if not self._on:
            self._stored.clear()
        return full


def frozen_layers(model: nn.Module, adapted: Iterable[str]) -> list[nn.Module]:
    """The transformer layers below all adapted modules; none where a module lies outside them, or in two stacks."""
    config: Any = model.config
    places = {layer_of(model, name) for name in adapted}
    stacks = {place[0] if place else None for place in places}
    if config.is_encoder_decoder or len(stacks) != 1 or None in stacks:
        return []
    ((stack, lowest), *_) = sorted(place for place in places if place)
    layers: Any = model.get_submodule(stack)
    return list(layers[:lowest])


def _digest(inputs: Mapping[str, Any]) -> bytes | None:
    """SHA-256 of a batch with everything that is asked of it, None where an argument is no plain value."""
    digest = sha256()
    for name, value in sorted(inputs.items()):
        if isinstance(value, Tensor):
            digest.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
            flat = value.detach().cpu().reshape(-1).clone(memory_format=torch.contiguous_format)
            digest.update(flat.view(torch.uint8).numpy().tobytes())
        elif value is None or isinstance(value, bool | int | float | str):
            digest.update(f"{name} {value!r};".encode())
        else:
            return None
    return digest.digest()


def _size(output: Any) -> int:
    """Bytes of what a layer gives: hidden states, alone or first in a tuple with nothing else; 0 for other things."""
    if isinstance(output, tuple) and not any(rest is not None for rest in output[1:]):
        output = output[0]
    return output.numel() * output.element_size() if isinstance(output, Tensor) else 0


def _copy(output: Any) -> Any:
    """A copy, because a model may write into its hidden states."""
    return output.clone() if isinstance(output, Tensor) else (output[0].clone(), *output[1:])
