r"""The experts of a mixture as linear layers, one for each matrix of each expert.

transformers keeps the experts of a layer in parameters of three dimensions, ``gate_up_proj [E, 2 f, d]`` and
``down_proj [E, d, f]``, and multiplies by ``gate_up_proj[e]`` in one kernel for all experts. `Experts` is put in the
place of such a module and has an `torch.nn.Linear` over each of those matrices as a submodule, ``gate_up_proj.3``. So
adapters find, train and mix them as all linear layers, in every mode: what an expert reads are the tokens that were
sent to it.

While nothing has changed those layers, and no hook watches one, the module itself answers, by its kernel. Otherwise
its class's own loop over the experts does, which in all of them says ``linear(x, self.gate_up_proj[e])`` or
``x @ self.gate_up_proj[e]``: there it finds the layers.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.models.bases.kinds.base import Parts


def unroll_experts(model: nn.Module) -> None:
    """Put `Experts` in the place of all experts of transformers; their tensors stay where they are."""
    for name, module in list(model.named_modules()):
        if matrices := matrices_of(module):
            model.set_submodule(name, Experts(module, matrices))


def matrices_of(module: nn.Module) -> tuple[str, ...]:
    """The names of the parameters that hold a matrix for each expert; none of any other module.

    transformers' decorator of experts says how they lie (``is_transposed``).
    """
    if isinstance(module, Experts) or not hasattr(module, "num_experts") or not hasattr(module, "is_transposed"):
        return ()
    own = ((name, p) for name, p in module.named_parameters(recurse=False) if p.is_floating_point())
    return tuple(name for name, p in own if p.dim() == 3 and len(p) == module.num_experts)


def matrices_in(model: nn.Module) -> set[str]:
    """The full names of the layers over single experts."""
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, Experts))
    return {
        f"{name}.{matrix}.{e}"
        for name, module in found
        for matrix in module.matrices
        for e in range(len(module.base.get_parameter(matrix)))
    }


def stored_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """A model's parameters by name, each once: the layers over single experts have views of the experts' own."""
    views = {f"{name}.weight" for name in matrices_in(model)}
    return ((name, parameter) for name, parameter in model.named_parameters() if name not in views)


class Experts(Parts):
    """Experts with a linear layer for each of their matrices.

    Args:
        base: The experts, of a class that `transformers.integrations.moe.use_experts_implementation` decorates.
        matrices: The names of their parameters.

    Attributes:
        matrices: As given.
    """

    def __init__(self, base: nn.Module, matrices: Iterable[str]) -> None:
        super().__init__(base)
        self.matrices = tuple(matrices)
        for name in self.matrices:
            stacked = base.get_parameter(name)
            layers = nn.ModuleList(_linear(self._matrix(stacked, e)) for e in range(len(stacked)))
            setattr(self, name, layers)  # `add_module` would find the parameter of the experts themselves

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """As the experts' own forward pass."""
        if self._untouched():
            out: Tensor = self.base(*args, **kwargs)
            return out
        loop: Callable[..., Tensor] = inspect.unwrap(type(self.base).forward)
        shell = copy.copy(self.base)
        shell._parameters = {name: p for name, p in self.base._parameters.items() if name not in self.matrices}
        for name in self.matrices:
            vars(shell)[name] = _Stacked(self.get_submodule(name), transposed=self._transposed)
        return loop(shell, *args, **kwargs)

    @property
    def _transposed(self) -> bool:
        """Whether the parameters are ``[E, d_in, d_out]``."""
        return bool(self.base.is_transposed)

    def _matrix(self, stacked: Tensor, e: int) -> Tensor:
        """``[d_out, d_in]`` of one expert, as a view."""
        return stacked[e].T if self._transposed else stacked[e]

    def _untouched(self) -> bool:
        """Whether every layer is the linear one that it began as, over the experts' own numbers, and without hooks."""
        for name in self.matrices:
            stacked = self.base.get_parameter(name)
            first, step = stacked.data_ptr(), stacked.stride(0) * stacked.element_size()
            layers: Any = self.get_submodule(name)
            for e, layer in enumerate(layers):
                if type(layer) is not nn.Linear or layer.weight.data_ptr() != first + e * step:
                    return False
                if layer._forward_hooks or layer._forward_pre_hooks:  # the kernel would pass them by
                    return False
        return True


def _linear(matrix: Tensor) -> nn.Linear:
    """A linear layer without a bias over a matrix."""
    layer = nn.Linear(1, 1, bias=False, device="meta")
    layer.out_features, layer.in_features = matrix.shape
    layer.weight = nn.Parameter(matrix.detach(), requires_grad=False)
    return layer


class _Stacked:
    """What stands in the place of a parameter: its matrices by the experts' numbers."""

    def __init__(self, layers: Any, *, transposed: bool) -> None:
        self._layers, self._transposed = layers, transposed

    def __getitem__(self, e: Any) -> _Matrix:
        return _Matrix(self._layers[int(e)])


class _Matrix:
    """What stands in the place of one matrix: torch asks it when something is multiplied by it."""

    def __init__(self, layer: nn.Module) -> None:
        self._layer = layer

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function in (F.linear, torch.matmul, Tensor.matmul, Tensor.__matmul__) and isinstance(args[1], cls):
            out = args[1]._layer(args[0])
            bias = (args[2:] or ((kwargs or {}).get("bias"),))[0]
            return out if bias is None else out + bias
        raise TypeError(f"experts are multiplied by their matrices, not {function}")
