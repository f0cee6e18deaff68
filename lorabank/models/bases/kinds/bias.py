r"""The bias of a module as a matrix of its own, so that an adapter can change it as it changes a weight.

A bias b ``[d_out]`` is the matrix ``W = b [d_out, 1]`` of a module that reads the constant 1, and an adapter of it is
a sum of columns, ``b + s B A`` with ``B [d_out, r]`` and ``A [r, 1]``. Its name is the parameter's: ``NAME.bias``.

`Biased` is put in the place of the module NAME. It gives what the module answers, whatever is wrapped around that,
to a layer around `Bias`, which adds to it what the adapters change of the bias; b itself is added by the module as
always, so that without an adapter nothing is computed otherwise.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lorabank.algebra.biases import ENDING
from lorabank.models.bases.kinds.base import InPlaceOf, SiteKind


class Bias(nn.Module):
    """The bias of a module; what it reads are the module's answers ``[..., d_out]``, which have the bias already.

    Args:
        owner: The module.

    Attributes:
        owner: The module, which is kept outside of the submodules, since its numbers stay its own.
    """

    def __init__(self, owner: nn.Module) -> None:
        super().__init__()
        self._owner = (owner,)

    @property
    def owner(self) -> nn.Module:
        """The module."""
        return self._owner[0]

    @property
    def weight(self) -> Tensor:
        """The bias ``[d_out]``, the owner's parameter."""
        bias: Tensor = self.owner.bias  # type: ignore[assignment]
        return bias

    def forward(self, answer: Tensor) -> Tensor:
        """The answer as it is."""
        return answer


class Biased(InPlaceOf):
    """A module whose answers get what adapters change of its bias.

    Args:
        base: The module, wrapped or not.
        added: A layer around its `Bias`.
    """

    def __init__(self, base: nn.Module, added: nn.Module) -> None:
        super().__init__(base)
        self.added = added

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if name == "bias":  # who computes with it must call the module too (`passed_by`)
            self.added.weight_read = True  # type: ignore[assignment]
        return found

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """``[..., d_out]``."""
        out: Tensor = self.added(self.base(*args, **kwargs))
        return out


class OfBias(SiteKind):
    """A matrix of one column, whose input is 1 for each row of the answers.

    It is looked up, as a table of one row would be: the numbers of its input are not read.
    """

    plain: ClassVar[bool] = False
    indexed: ClassVar[bool] = True

    def fits(self, kind: type[nn.Module]) -> bool:
        """That of the module above alone."""
        return issubclass(kind, Bias)

    def sizes(self, module: nn.Module) -> tuple[int, int]:
        """One column."""
        assert isinstance(module, Bias)
        return len(module.weight), 1

    def matrix(self, module: nn.Module, kept: Tensor) -> Tensor:
        """As a column."""
        return kept.unsqueeze(1)

    def kept(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """As a vector again."""
        return matrix.squeeze(1)

    def put(self, module: nn.Module, weight: nn.Parameter) -> None:
        """The owner's."""
        assert isinstance(module, Bias)
        module.owner.bias = weight

    def call(self, module: nn.Module, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        """The answer with another bias in the place of the one that is in it."""
        assert isinstance(module, Bias)
        return x + (matrix.squeeze(1) - module.weight)

    def read(self, module: nn.Module, rows: Tensor, A: Tensor) -> Tensor:
        """The column A for each row, which the caller may change."""
        return A.squeeze(1).expand(*rows.shape[:-1], -1).clone(memory_format=torch.contiguous_format)

    def outer(self, module: nn.Module, u: Tensor, rows: Tensor) -> Tensor:
        """The sum of u."""
        return u.sum(-2).unsqueeze(-1)

    def inputs(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Ones."""
        return torch.ones(len(rows), 1, device=rows.device)

    def down(self, module: nn.Module, x: Tensor, A: Tensor, p: float) -> Tensor:
        """As `read`: a constant is not dropped."""
        return self.read(module, x, A)


def put_in_place(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put a layer in the place of a module, or of the bias of one by its name, whatever else is around either.

    Args:
        model: Changed in place.
        name: Of a module, or of a bias.
        layer: Wraps the module; of a bias a layer around its `Bias`.
    """
    owner = name.removesuffix(ENDING)
    there = model.get_submodule(owner)
    if owner == name and isinstance(there, Biased):
        there.base = layer
    elif owner == name:
        model.set_submodule(name, layer)
    elif isinstance(there, Biased):
        there.added = layer
    else:
        model.set_submodule(owner, Biased(there, layer))


def take_out(model: nn.Module, name: str, original: nn.Module) -> None:
    """Undo `put_in_place`: the module stands in its place again, with what else is around it.

    Args:
        model: Changed in place.
        name: Of a module, or of a bias.
        original: What the layer was made around.
    """
    owner = name.removesuffix(ENDING)
    if owner == name:
        put_in_place(model, name, original)
    else:
        model.set_submodule(owner, inside(model.get_submodule(owner)))


def layer_at(model: nn.Module, name: str) -> nn.Module:
    """What `put_in_place` has put there, or the module of the name."""
    there = model.get_submodule(name.removesuffix(ENDING))
    if name.endswith(ENDING):
        assert isinstance(there, Biased)
        return there.added
    return inside(there)


def inside(module: nn.Module) -> nn.Module:
    """What stands in the place of a module beside its bias: the module, wrapped or not."""
    return module.base if isinstance(module, Biased) else module


def owner_of(module: nn.Module) -> nn.Module:
    """The module itself, without anything that is wrapped around it; of a `Bias` the module whose bias it is."""
    while isinstance(module, InPlaceOf):
        module = module.base
    return module.owner if isinstance(module, Bias) else module


def is_norm(module: nn.Module) -> bool:
    """Whether a module is torch's layer norm; a subclass may have its channels elsewhere than last."""
    return isinstance(module, nn.LayerNorm) and type(module).forward is nn.LayerNorm.forward


def vector_of(module: nn.Module) -> Tensor | None:
    """The bias ``[d_out]`` of a module, None where it keeps none of floats."""
    bias = module._parameters.get("bias")
    return bias if bias is not None and bias.dim() == 1 and bias.is_floating_point() else None
