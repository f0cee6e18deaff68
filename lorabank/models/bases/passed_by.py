"""Layers whose weight a model reads without ever calling them: an adapter on them would do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

from lorabank.core.commands import Command
from lorabank.core.errors import IncompatibleError
from lorabank.models.bases.sites import WrappedLinear


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
    layers = {name: _Watched(model.get_submodule(name)) for name in names}
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
