"""What a task feeds into the adapted modules: the uncentred covariance of each module's input over the real tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from lorabank.core.errors import ConfigError
from lorabank.models.bases.kinds.bias import layer_at
from lorabank.models.bases.sites import kind_of, rows_of, sizes_of

_REMEMBERED = 8
"""Distinct inputs that are compared with a module's input to see that it is the same tensor."""


@dataclass(frozen=True)
class InputCovariance:
    """What a task fed into the adapted modules.

    Attributes:
        sums: ``sum_t x_t x_t^T [d_in, d_in]`` float32, under the name of the first module that has this input.
        tokens: Number of tokens in each sum.
        shared: Module name to its key in ``sums``; query, key and value projections share one.
    """

    sums: Mapping[str, Tensor]
    tokens: Mapping[str, int]
    shared: Mapping[str, str]

    def of(self, module: str) -> Tensor:
        """The covariance ``[d_in, d_in]`` of one module's input."""
        key = self.shared[module]
        return self.sums[key] / max(1, self.tokens[key])

    def to_bytes(self) -> bytes:
        """Safetensors: ``sum:<key>`` (upper triangle by rows), ``tokens:<key>``, and which module has which key."""
        keys = list(self.sums)
        named: dict[str, Tensor] = {}
        for key, total in self.sums.items():
            rows, columns = torch.triu_indices(*total.shape)
            named[f"sum:{key}"] = total[rows, columns].contiguous()
            named[f"tokens:{key}"] = torch.tensor([self.tokens[key]])
        named |= {f"shared:{module}": torch.tensor([keys.index(key)]) for module, key in self.shared.items()}
        named |= {f"number:{key}": torch.tensor([i]) for i, key in enumerate(keys)}
        data: bytes = save_tensors(named)
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> InputCovariance:
        """What `to_bytes` wrote."""
        kinds: dict[str, dict[str, Tensor]] = {"sum": {}, "tokens": {}, "shared": {}, "number": {}}
        for name, value in load_tensors(data).items():
            kind, _, rest = name.partition(":")
            kinds[kind][rest] = value
        keys = {int(i): key for key, i in kinds["number"].items()}
        return cls(
            {keys[i]: _square(kinds["sum"][keys[i]]) for i in sorted(keys)},
            {keys[i]: int(kinds["tokens"][keys[i]]) for i in sorted(keys)},
            {module: keys[int(i)] for module, i in kinds["shared"].items()},
        )


def collect_inputs(
    model: nn.Module,
    modules: Sequence[str],
    batches: Iterable[dict[str, Tensor]],
    forward: Callable[[nn.Module, dict[str, Tensor]], object] | None = None,
) -> InputCovariance:
    """Sum the outer products of the modules' inputs over the real tokens of all batches, without dropout.

    Args:
        model: In the state whose inputs are wanted; its mode is as before afterwards.
        modules: Full names of the modules.
        batches: Model inputs. ``attention_mask`` (and for an encoder-decoder ``decoder_attention_mask``, or labels
            that are not -100) tells the real tokens; without it all count.
        forward: Runs the model; by default ``model(**batch)``, without labels unless it is an encoder-decoder.

    Returns:
        Sums on the CPU.

    Raises:
        ConfigError: A module is a table of embeddings.
    """
    sums = _Sums(model, modules)
    hooks = [layer_at(model, name).register_forward_pre_hook(sums.watch(name)) for name in modules]
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            for batch in batches:
                sums.begin(batch)
                (forward or _forward)(model, batch)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return sums.result()


def _no_covariance(name: str) -> ConfigError:
    return ConfigError(
        f"{name} is a table of embeddings, whose inputs have a covariance of tokens by tokens, which is not kept",
        hint="--target-modules without it, or a method that keeps no covariances",
        unchanged="nothing was changed",
    )


def _square(triangle: Tensor) -> Tensor:
    d = (math.isqrt(8 * triangle.numel() + 1) - 1) // 2
    full = triangle.new_zeros(d, d)
    rows, columns = torch.triu_indices(d, d)
    full[rows, columns] = triangle
    full[columns, rows] = triangle
    return full


def _encoder_decoder(model: nn.Module) -> bool:
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def _forward(model: nn.Module, batch: dict[str, Tensor]) -> object:
    drop = () if _encoder_decoder(model) else ("labels",)
    return model(**{name: value for name, value in batch.items() if name not in drop})


class _Sums:
    """Running sums, one for each distinct input of a forward pass, and which of them each module saw."""

    def __init__(self, model: nn.Module, modules: Sequence[str]) -> None:
        self._two = _encoder_decoder(model)
        self._seen: dict[str, dict[str, None]] = {name: {} for name in modules}
        self._sums: dict[str, Tensor] = {}
        self._tokens: dict[str, int] = {}
        self._calls: dict[str, int] = {}
        self._recent: list[tuple[Tensor, str]] = []
        self._masks: tuple[Tensor | None, Tensor | None] = (None, None)

    def begin(self, batch: Mapping[str, Tensor]) -> None:
        """A new batch: its masks; tensors of the last one are forgotten."""
        labels, decoder = batch.get("labels"), batch.get("decoder_attention_mask")
        if self._two and decoder is None and labels is not None:
            decoder = labels != -100
        self._masks = batch.get("attention_mask"), decoder if self._two else None
        self._recent, self._calls = [], {}

    def watch(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """A hook that adds a module's input, unless another module with the same input has done so."""

        def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            x = args[0]
            kind = kind_of(module)
            if kind is not None and kind.indexed:
                if sizes_of(module)[1] > 1:
                    raise _no_covariance(name)
                x = x.new_ones(*x.shape[:-1], 1)  # a bias
            self._calls[name] = self._calls.get(name, 0) + 1
            source = next((source for tensor, source in self._recent if tensor is x), None)
            if source is None:
                source = f"{name} {self._calls[name]}"
                self._recent = [*self._recent[1 - _REMEMBERED :], (x, source)]
                rows = rows_of(module, x)
                self._add(source, rows, self._real(name, rows))
            self._seen[name][source] = None

        return hook

    def result(self) -> InputCovariance:
        """Modules that saw the same inputs, in however many calls, share the sum over all of them."""
        first: dict[tuple[str, ...], str] = {}
        shared = {name: first.setdefault(tuple(sources), name) for name, sources in self._seen.items() if sources}
        sums = {name: torch.stack([self._sums[source] for source in of]).sum(0).cpu() for of, name in first.items()}
        tokens = {name: sum(self._tokens[source] for source in of) for of, name in first.items()}
        return InputCovariance(sums, tokens, shared)

    def _add(self, source: str, x: Tensor, real: Tensor | None) -> None:
        tokens = (x.reshape(-1, x.shape[-1]) if real is None else x[real]).float()
        if source not in self._sums:
            self._sums[source] = tokens.new_zeros(x.shape[-1], x.shape[-1])
            self._tokens[source] = 0
        self._sums[source] += tokens.T @ tokens
        self._tokens[source] += tokens.shape[0]

    def _real(self, name: str, x: Tensor) -> Tensor | None:
        encoder, decoder = self._masks
        crossing = ("EncDecAttention" in name or "encoder_attn" in name) and name.rpartition(".")[2].startswith(
            ("k", "v")
        )
        first, second = (decoder, encoder) if "decoder" in name.split(".") and not crossing else (encoder, decoder)
        fitting = [mask for mask in (first, second) if mask is not None and mask.shape == x.shape[:-1]]
        return fitting[0].bool() if fitting else None
