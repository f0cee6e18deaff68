"""What stands in the place of a linear layer behaves as one; which layers can be replaced; and layers passed by."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from lorabank.core.commands import Command
from lorabank.core.errors import IncompatibleError


class WrappedLinear(nn.Module):
    """A module in the place of a linear one.

    Models do more with a linear layer than call it: they read its weight's dtype, add its bias elsewhere, or look at
    its sizes. Whatever the wrapper does not have itself is the wrapped module's.

    Args:
        base: The module that is wrapped.

    Attributes:
        called: Whether a forward pass went through the wrapper.
        weight_read: Whether anybody asked for its weight.
    """

    base: nn.Linear

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.called = False
        self.weight_read = False

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base":  # it is not set yet
                raise
            return getattr(self.base, name)

    @property
    def weight(self) -> Tensor:
        """The weight that answers, as far as one matrix does; the base's otherwise."""
        self.weight_read = True
        return self._weight()

    def _weight(self) -> Tensor:
        return self.base.weight

    def _mark_called(self) -> None:
        if not self.called:  # setting an attribute of a module costs more than looking at it
            self.called = True


def is_linear(module: nn.Module) -> bool:
    """Whether a module computes what `torch.nn.Linear` does, so that an adapter can stand in its place.

    A subclass with a forward pass of its own may compute the same (Falcon's does) or not (Llama 4's router): it is
    tried on random weights and inputs.
    """
    if not isinstance(module, nn.Linear):
        return False
    own = type(module).forward is not nn.Linear.forward or "forward" in vars(module)
    return not own or _computes_a_product(module)


@torch.no_grad()
def _computes_a_product(module: nn.Linear) -> bool:
    dice = torch.Generator().manual_seed(0)
    trial = copy.copy(module)  # with weights of its own: the module's may lie nowhere, or on a GPU
    trial._parameters = {
        name: None if value is None else nn.Parameter(torch.randn(value.shape, generator=dice))
        for name, value in module._parameters.items()
    }
    x = torch.randn(2, 3, module.in_features, generator=dice)
    expected = functional.linear(x, trial.weight, trial.bias)
    try:
        found = trial(x)
    except Exception:  # whatever it asks for, it is not a linear layer's input
        return False
    same = isinstance(found, Tensor) and found.shape == expected.shape
    return same and torch.allclose(found, expected, rtol=1e-3, atol=1e-3)


class _Watched(WrappedLinear):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self._mark_called()
        return self.base(*args, **kwargs)


def passed_by(model: nn.Module, names: Iterable[str], run: Callable[[], object]) -> tuple[str, ...]:
    """Of some linear layers of a model, those whose weight is read in a forward pass that never calls them.

    Fused kernels (Mamba's on a GPU) and single lines of code (its step sizes) compute with a layer's weight, so that
    what an adapter adds to the layer would be lost without a word.

    Args:
        model: Left as it was.
        names: Full names of the layers.
        run: Makes the forward pass.
    """
    layers = {name: _Watched(model.get_submodule(name)) for name in names}  # type: ignore[arg-type]
    try:
        for name, layer in layers.items():
            model.set_submodule(name, layer)
        run()
    finally:
        for name, layer in layers.items():
            model.set_submodule(name, layer.base)
    return tuple(name for name, layer in layers.items() if layer.weight_read and not layer.called)


def check_called(
    layers: Mapping[str, WrappedLinear], hint: str | None = None, commands: Sequence[Command] = ()
) -> None:
    """Refuse adapters that the model's code passed by (`passed_by`) in all forward passes so far.

    Args:
        layers: Module name to its wrapper.
        hint: What to do.
        commands: What to type.

    Raises:
        IncompatibleError: The weight of a layer was read, and the layer was never called.
    """
    passed = [name for name, layer in layers.items() if layer.weight_read and not layer.called]
    if passed:
        raise IncompatibleError(
            f"the model's code reads the weight of {passed[0]!r} and never calls it, so that an adapter on it does "
            f"nothing ({len(passed)} of {len(layers)} adapted modules)",
            hint=hint,
            commands=commands,
            unchanged="nothing was changed",
        )
