r"""InfLoRA (CVPR 2024, arXiv 2404.00228): the new A lies outside what earlier tasks fed into a module; only B trains.

The input of a module enters through its uncentred covariance ``C = 1/T sum_t x_t x_t^T [d_in, d_in]``. A memory of
orthonormal directions (GPM, arXiv 2103.09762) grows with each finished task:

    first task    the leading eigenvectors of C_1 whose share of the energy stays below the threshold, at least one
    task k        the leading left singular vectors of (I - M M^T) C_k, until those and M hold the threshold's share

and the new task starts from ``A = U_r^T / sqrt(3)``, U_r the r leading left singular vectors of ``(I - M M^T) C``,
``B = 0``. The rows of A are orthogonal to M, so whatever B becomes, an input within M's span passes unchanged.

As in the released code (liangyanshuo/InfLoRA), energy means the squared singular values of C, that is the squared
eigenvalues (``power=2``); GPM's own criterion is the eigenvalues themselves (``power=1``), which holds many more
directions where a few are very strong, as in language models. C of the new task is taken before it is trained (earlier
adapters active, B = 0), C of a finished one after.

Where this differs from the released code:

- The covariance of each task is stored and the memory is built from those, in order, instead of a running memory. The
  released DualGPM keeps the memory's complement once that is smaller, which saves storage and spans the same space
  (except after a first task that fills half the space or more: there the code takes the memory for its complement).
- The threshold does not rise with the task's number, because a bank does not know how many tasks will come.
- Directions in which the new task has no input at all get zero rows; the released code takes any vectors there, inside
  the memory too.
- Inputs of padding are left out. The adapter is scaled by s as every other, where the released code has s = 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

_TOLERANCE = 1e-6
"""Directions with less than this share of the covariance's norm count as empty."""
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
    """
    sums = _Sums(model, modules)
    hooks = [model.get_submodule(name).register_forward_pre_hook(sums.watch(name)) for name in modules]
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


def extend_memory(memory: Tensor, covariance: Tensor, *, threshold: float = 0.98, power: int = 2) -> Tensor:
    """Add the directions that a finished task needs.

    Args:
        memory: ``[d_in, Q]`` orthonormal columns; Q is 0 before the first task.
        covariance: ``[d_in, d_in]`` of the finished task.
        threshold: Share of the energy that the memory shall hold, in (0, 1].
        power: 2 for the released code's energy, 1 for GPM's.

    Returns:
        ``[d_in, Q']`` float64, the columns of ``memory`` first.
    """
    memory, C = memory.double(), _symmetric(covariance)
    energy = C @ C if power == 2 else C
    total = float(energy.trace())
    if total <= 0:
        return memory
    values, vectors = _outside(memory, energy, power)
    shares = values / total
    held = 1 - float(shares.sum())
    if memory.shape[1] == 0:
        count = max(1, int((shares.cumsum(0) < threshold).sum()))
    else:
        count = int((held + shares.cumsum(0) - shares < threshold).sum())
    return torch.cat([memory, vectors[:, :count]], dim=1)


def input_memory(earlier: Sequence[Tensor], *, threshold: float = 0.98, power: int = 2) -> Tensor:
    """The memory ``[d_in, Q]`` after earlier tasks, from their covariances (at least one) in sequence order."""
    memory = earlier[0].new_zeros(earlier[0].shape[0], 0)
    for covariance in earlier:
        memory = extend_memory(memory, covariance, threshold=threshold, power=power)
    return memory


def design_A(earlier: Sequence[Tensor], current: Tensor, r: int, *, threshold: float = 0.98, power: int = 2) -> Tensor:
    """The fixed A of a new task.

    Args:
        earlier: ``[d_in, d_in]`` covariances of finished tasks in sequence order; empty for the first task.
        current: ``[d_in, d_in]`` covariance of the new task.
        r: Rank.
        threshold: See `extend_memory`.
        power: See `extend_memory`.

    Returns:
        ``[r, d_in]`` float32: orthogonal rows of length 1/sqrt(3), orthogonal to the memory, the strongest direction
        of the new task first; zero rows where no direction is left.
    """
    C = _symmetric(current)
    memory = input_memory(earlier, threshold=threshold, power=power).to(C) if earlier else C.new_zeros(C.shape[0], 0)
    _, vectors = _outside(memory, C @ C, 2)
    A = C.new_zeros(r, C.shape[0])
    found = min(r, vectors.shape[1])
    A[:found] = vectors[:, :found].T / math.sqrt(3)
    return A.float()


def design_adapter(
    earlier: Sequence[InputCovariance],
    current: InputCovariance,
    modules: Sequence[str],
    r: int,
    *,
    threshold: float = 0.98,
    power: int = 2,
) -> dict[str, Tensor]:
    """`design_A` for every module; modules with the same inputs get the same A, computed once.

    A finished task that did not adapt a module says nothing of its inputs and is left out there.
    """
    done: dict[tuple[str | None, ...], Tensor] = {}
    designed = {}
    for module in modules:
        known = [task for task in earlier if module in task.shared]
        key = (current.shared[module], *(task.shared.get(module) for task in earlier))
        if key not in done:
            done[key] = design_A(
                [task.of(module) for task in known], current.of(module), r, threshold=threshold, power=power
            )
        designed[module] = done[key].clone()
    return designed


def _outside(memory: Tensor, energy: Tensor, power: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues (descending, positive) and eigenvectors ``[d, P]`` of the energy with the memory projected out.

    The energy is ``C^power``. With power 2 the eigenvectors are the left singular vectors of ``(I - M M^T) C``, the
    eigenvalues their squared singular values.
    """
    half = energy - memory @ (memory.T @ energy)
    values, vectors = torch.linalg.eigh(_symmetric(half - (half @ memory) @ memory.T))
    kept = values > _TOLERANCE**power * float(energy.diagonal().sum())
    values, vectors = values[kept].flip(0), vectors[:, kept].flip(1)
    # eigenvectors of small eigenvalues are only roughly orthogonal to the memory
    vectors = vectors - memory @ (memory.T @ vectors)
    q, upper = torch.linalg.qr(vectors)
    return values, q * upper.diagonal().sign()


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix.double() + matrix.double().T) / 2


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
            self._calls[name] = self._calls.get(name, 0) + 1
            source = next((source for tensor, source in self._recent if tensor is x), None)
            if source is None:
                source = f"{name} {self._calls[name]}"
                self._recent = [*self._recent[1 - _REMEMBERED :], (x, source)]
                self._add(source, x, self._real(name, x))
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
