r"""How much each entry of an adapter matters: the diagonal of the empirical Fisher information.

    F_i = 1/N sum_n ( d l_n / d theta_i )^2,   l_n = -log p(y_n | x_n) of example n

(Kirkpatrick et al. 2017, with the data's own labels: the empirical Fisher.) The square stands inside the sum: squaring
the gradient of a batch gives another quantity, near zero at an optimum.

Gradients per example come from one backward pass of the batch. Examples of a batch do not see each other, so the
gradient g_n [T, d_out] that arrives at a LoRA layer's output for row n is that of l_n alone, and with ``y = s B A x``

    d l_n / d A = s (g_n B)^T x_n,     d l_n / d B = s g_n^T (x_n A^T)

summed over the T tokens of the row, and over all calls where one module is used several times in a forward pass. This
is exact and costs what the ordinary weight gradient costs. A batch in which some layer sees an input that is not split
by rows (relative positions, tokens sorted by expert) is passed row by row instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.models.bases.sites import answer_rows, kind_of, rows_of, wrapped_by


class Adapted(Protocol):
    """A layer ``y = W x + s B A x``, in which some parameter requires gradients."""

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    scaling: float

    def register_forward_hook(self, hook: Any) -> Any:
        """As of any module."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """As of any module."""


SummedLoss = Callable[[nn.Module, dict[str, Tensor]], Tensor]
"""The sum of l_n over the rows of a batch."""


def summed(mean: Callable[[nn.Module, dict[str, Tensor]], Tensor]) -> SummedLoss:
    """A mean loss times the number of its terms: the rows of a classifier, the labelled tokens of a language model."""

    def loss(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        return mean(model, inputs) * (inputs["labels"] != -100).sum()

    return loss


@dataclass(frozen=True)
class Importance:
    """Non-negative weights of an adapter's entries, float32.

    Attributes:
        A: Module name to ``[r, d_in]``.
        B: Module name to ``[d_out, r]``.
    """

    A: Mapping[str, Tensor]
    B: Mapping[str, Tensor]


@dataclass(frozen=True)
class Anchor:
    """What holds an adapter that continues training: its factors after the last task, and their importance."""

    factors: LoraFactors
    importance: Importance


def diagonal_fisher(
    model: nn.Module,
    layers: Mapping[str, Adapted],
    batches: Iterable[dict[str, Tensor]],
    loss: SummedLoss,
    size: Callable[[Tensor], Tensor] = torch.square,
) -> Importance:
    """The diagonal empirical Fisher of ``lora_A`` and ``lora_B``, without dropout.

    Args:
        model: Holds the layers; its mode and gradients are as before afterwards.
        layers: The adapter by module name; each must have a parameter that requires gradients.
        batches: Tensors whose first dimension counts the rows, one row for each example.
        loss: The sum over the rows; see `SummedLoss`.
        size: What of each example's gradient is averaged, entry by entry: by default its square.

    Returns:
        Means over all rows, float32, on the CPU.
    """
    squares = _Squares(layers, size)
    hooks = [layer.register_forward_hook(squares.watch(name)) for name, layer in layers.items()]
    training = model.training
    model.eval()
    try:
        for batch in batches:
            squares.add(model, batch, loss)
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    return squares.mean()


def accumulated(previous: Importance | None, new: Importance, gamma: float = 1.0) -> Importance:
    """Online EWC: ``gamma * previous + new``; ``previous`` counts as zero where it has no such module."""
    if previous is None:
        return new
    return Importance(
        {name: gamma * previous.A[name] + value if name in previous.A else value for name, value in new.A.items()},
        {name: gamma * previous.B[name] + value if name in previous.B else value for name, value in new.B.items()},
    )


def fisher_to_bytes(importance: Importance) -> bytes:
    """Safetensors with the keys ``A:<module>`` and ``B:<module>``."""
    named = {f"A:{name}": value for name, value in importance.A.items()}
    named |= {f"B:{name}": value for name, value in importance.B.items()}
    data: bytes = save_tensors({name: value.contiguous() for name, value in named.items()})
    return data


def fisher_from_bytes(data: bytes) -> Importance:
    """What `fisher_to_bytes` wrote."""
    kinds: dict[str, dict[str, Tensor]] = {"A": {}, "B": {}}
    for key, value in load_tensors(data).items():
        kind, _, name = key.partition(":")
        kinds[kind][name] = value
    return Importance(kinds["A"], kinds["B"])


class _NotByRows(Exception):
    """A layer's input has another first dimension than the batch."""


class _Squares:
    """Sums of squared gradients per example, or of another size of theirs."""

    def __init__(self, layers: Mapping[str, Adapted], size: Callable[[Tensor], Tensor]) -> None:
        self._layers = layers
        self._size = size
        self._parameters = [p for layer in layers.values() for p in layer.parameters() if p.requires_grad]
        self._A = {name: torch.zeros_like(layer.lora_A, requires_grad=False) for name, layer in layers.items()}
        self._B = {name: torch.zeros_like(layer.lora_B, requires_grad=False) for name, layer in layers.items()}
        self._calls: dict[str, int] = {}
        self._pending: dict[str, tuple[Tensor, Tensor]] = {}
        self._rows = 0
        self._examples = 0

    def add(self, model: nn.Module, batch: dict[str, Tensor], loss: SummedLoss) -> None:
        """One batch, at once where every layer's input is split by rows."""
        rows = next(iter(batch.values())).shape[0]
        try:
            self._pass(model, batch, loss, rows)
        except _NotByRows:
            for i in range(rows):
                self._pass(model, {name: value[i : i + 1] for name, value in batch.items()}, loss, 1)
        self._examples += rows

    def mean(self) -> Importance:
        count = max(1, self._examples)
        return Importance(
            {name: (value / count).cpu() for name, value in self._A.items()},
            {name: (value / count).cpu() for name, value in self._B.items()},
        )

    def watch(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        """A forward hook that takes the gradient of the layer's output when it arrives."""

        def hook(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            x = args[0].detach()
            if self._rows != 1 and x.shape[0] != self._rows:
                raise _NotByRows
            x = rows_of(module, x)
            self._calls[name] = self._calls.get(name, 0) + 1
            out.register_hook(lambda gradient: self._take(name, x, gradient))

        return hook

    def _pass(self, model: nn.Module, batch: dict[str, Tensor], loss: SummedLoss, rows: int) -> None:
        self._rows, self._calls, self._pending = rows, {}, {}
        with torch.enable_grad():
            total = loss(model, batch)
            # the parameters' own gradients are dropped: asking for them is what sends a gradient through every layer
            torch.autograd.grad(total, self._parameters, allow_unused=True)
        for name in list(self._pending):  # a call whose output the loss does not depend on never reports back
            self._square(name)

    def _take(self, name: str, x: Tensor, gradient: Tensor) -> None:
        layer = self._layers[name]
        with torch.no_grad():
            x = x.reshape(self._rows, -1, x.shape[-1])
            module: Any = layer
            gradient = answer_rows(module, gradient)
            g = layer.scaling * gradient.reshape(self._rows, -1, gradient.shape[-1]).to(layer.lora_B.dtype)
            kind, base = kind_of(module), wrapped_by(module)
            if kind is None or kind.plain:
                x = x.to(layer.lora_A.dtype)
                of_A, h = (g @ layer.lora_B).mT @ x, F.linear(x, layer.lora_A)
            else:
                x = x if kind.indexed else x.to(layer.lora_A.dtype)
                of_A, h = kind.outer(base, g @ layer.lora_B, x), kind.read(base, x, layer.lora_A)
            of_B = g.mT @ h
            if name in self._pending:
                of_A, of_B = self._pending[name][0] + of_A, self._pending[name][1] + of_B
            self._pending[name] = of_A, of_B
            self._calls[name] -= 1
            if self._calls[name] == 0:
                self._square(name)

    def _square(self, name: str) -> None:
        of_A, of_B = self._pending.pop(name)
        self._A[name] += self._size(of_A).sum(0)
        self._B[name] += self._size(of_B).sum(0)
