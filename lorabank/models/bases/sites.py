r"""Sites: the matrices that an adapter can change, and the only place that touches the weight of a model's module.

An adapter sees a matrix ``W [d_out, d_in]``, whatever the module keeps:

| kind     | module                                         | W here                                      |
| -------- | ---------------------------------------------- | ------------------------------------------- |
| `SITES`  | as `lorabank.models.bases.kinds` says          | a view of its weight                        |
| block    | q, k or v of a fused matrix (`fused`)          | some rows of one, a view if side by side    |
| packed   | one whose weight is not such a matrix          | cannot be read: no adapter                  |

A block is trained as a linear layer of its own (`Split`). What is stored is an adapter on the whole matrix
(`lorabank.models.bases.blocks`), so that everything after training, PEFT included, knows whole modules only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lorabank.core.errors import IncompatibleError
from lorabank.core.shelves import SITES
from lorabank.models.bases.fused import Rows, blocks_of
from lorabank.models.bases.kinds.base import SiteKind

PACKED = "packed"
"""The kind of a site whose weight cannot be read."""

M = TypeVar("M", bound=nn.Module)


def kind_of(module: nn.Module) -> SiteKind | None:
    """How a module keeps its matrix; None where it has none that an adapter can change."""
    of: Any = type(module)
    return module.kind if isinstance(module, WrappedLinear) else _kind_of(of)


@cache
def _kind_of(of: Any) -> SiteKind | None:
    """Of a class of modules; the layers of a model ask in every forward pass."""
    kinds: Iterator[SiteKind] = (entry() for _, entry in SITES.items())
    return next((kind for kind in kinds if kind.fits(of)), None)


def matrix_of(module: nn.Module) -> Tensor:
    """``W [d_out, d_in]`` of a module that is a site in its own dtype, without a copy."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    kind = kind_of(module)
    return weight if kind is None else kind.matrix(weight)


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias ``[d_out]`` of a module that is a site, None where it has none."""
    return module.bias  # type: ignore[return-value]


def as_kept(module: nn.Module, matrix: Tensor) -> Tensor:
    """A matrix ``[d_out, d_in]`` in the layout in which the module keeps its weight, without a copy."""
    kind = kind_of(module)
    return matrix if kind is None else kind.kept(matrix)


def set_matrix(module: nn.Module, matrix: Tensor) -> None:
    """Give a module another weight, ``matrix [d_out, d_in]``; who shares the old one keeps it."""
    old: Tensor = module.weight  # type: ignore[assignment]
    new = as_kept(module, matrix).to(old.dtype).contiguous()
    module.weight = nn.Parameter(new, requires_grad=old.requires_grad)


class WrappedLinear(nn.Module):
    """A module in the place of a linear layer or a Conv1D.

    Models do more with such a layer than call it: they read its weight's dtype, add its bias elsewhere, or look at its
    sizes. Whatever the wrapper does not have itself is the wrapped module's.

    Args:
        base: The module that is wrapped.

    Attributes:
        kind: How the base keeps its matrix.
        called: Whether a forward pass went through the wrapper.
        weight_read: Whether the model's code asked for its weight.
    """

    base: nn.Module

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.kind = kind_of(base)
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
        """The weight that answers, as far as one matrix does, in the base's layout; the base's otherwise."""
        self.weight_read = True
        return as_kept(self.base, self._matrix())

    def _matrix(self) -> Tensor:
        return matrix_of(self.base)

    def _mark_called(self) -> None:
        if not self.called:  # setting an attribute of a module costs more than looking at it
            self.called = True


@dataclass(frozen=True, eq=False)
class Site:
    """One matrix that an adapter can change.

    Attributes:
        name: Full name of the module; of a block that name, a dot and ``q``, ``k`` or ``v``.
        kind: See the table of this file.
        d_in: Inputs.
        d_out: Outputs.
        depth: Number of the transformer layer around it, from 0; None outside of the layers.
        module: What keeps the weight.
        module_name: Its full name.
        rows: Of a block, its rows of the module's matrix; None for the whole matrix.
    """

    name: str
    kind: str
    d_in: int
    d_out: int
    depth: int | None
    module: nn.Module
    module_name: str
    rows: Rows | None = None

    @property
    def can_merge(self) -> bool:
        """Whether W can be read and a delta weight be added to it."""
        return self.kind != PACKED

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        return matrix_of(self.module).device

    def weight(self) -> Tensor:
        """``W [d_out, d_in]`` in float32: a view where it is kept so, otherwise a copy.

        Raises:
            IncompatibleError: The weight is packed.
        """
        return self._matrix().float()

    def merged(self, delta: Tensor) -> Tensor:
        """``W + delta [d_out, d_in]`` as a new matrix in W's dtype: added in float32, rounded once.

        Raises:
            IncompatibleError: The weight is packed.
        """
        matrix = self._matrix()
        return (matrix.float() + delta.to(matrix.device).float()).to(matrix.dtype)

    def wrap(self, model: nn.Module, make: Callable[[nn.Module], M]) -> M:
        """Put what ``make`` builds of the site's linear layer in its place.

        Args:
            model: The model that the site is of, changed in place: the module of a block becomes a `Split`.
            make: Gets the module (of a block the linear layer of its rows).

        Returns:
            What was built.
        """
        if self.rows is not None and not isinstance(model.get_submodule(self.module_name), Split):
            whole = model.get_submodule(self.module_name)
            model.set_submodule(self.module_name, Split(whole, blocks_of(model, self.module_name, self.module) or {}))
        made = make(model.get_submodule(self.name))
        model.set_submodule(self.name, made)
        return made

    def _matrix(self) -> Tensor:
        if not self.can_merge:
            raise _packed(self)
        whole = matrix_of(self.module)
        return whole if self.rows is None else whole[self.rows]


def site_of(model: nn.Module, name: str) -> Site:
    """The site of a name: of a module, or of a block of one.

    Raises:
        IncompatibleError: The model has no such site, or its weight is packed.
    """
    for module_name, block in ((name, None), name.rpartition(".")[::2]):
        try:
            module = model.get_submodule(module_name)
        except AttributeError:
            continue
        site = _whole(model, module_name, module)
        blocks = blocks_of(model, module_name, module) or {} if block else {}
        if site is not None and block in blocks:
            site = _block(site, str(block), blocks[str(block)])
        if site is not None and (block is None or block in blocks):
            if not site.can_merge:
                raise _packed(site)
            return site
    raise IncompatibleError(f"{type(model).__name__} has no linear layer {name!r} that an adapter can change")


def sites_in(model: nn.Module) -> Iterator[tuple[Site, dict[str, Site]]]:
    """Every module of a model that is a site, in the model's order, with its blocks by their letters."""
    for name, module in model.named_modules():
        site = _whole(model, name, module)
        if site is not None:
            blocks = blocks_of(model, name, module) or {} if site.can_merge else {}
            yield site, {letter: _block(site, letter, rows) for letter, rows in blocks.items()}


def layer_of(model: nn.Module, name: str) -> tuple[str, int] | None:
    """The stack of transformer layers and the layer's number in it that a module stands in, None outside of them.

    It is the module's place in the outermost list of modules around it: ``("encoder.layer", 3)`` for
    ``encoder.layer.3.attention.self.query``, ``("decoder.block", 1)`` for ``decoder.block.1.layer.0.SelfAttention.q``.
    """
    parts = name.split(".")
    for depth, part in enumerate(parts):
        stack = ".".join(parts[:depth])
        if part.isdecimal() and isinstance(model.get_submodule(stack), nn.ModuleList):
            return stack, int(part)
    return None


def packed_because(module: nn.Module) -> str:
    """Why the weight of a packed layer is not read."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    kept = f"{str(weight.dtype).removeprefix('torch.')} {list(weight.shape)}"
    return f"{type(module).__name__} keeps its weight packed ({kept}), which lorabank does not read"


def _packed(site: Site) -> IncompatibleError:
    return IncompatibleError(f"{site.name!r} cannot be adapted: {packed_because(site.module)}")


def is_linear(module: nn.Module) -> bool:
    """Whether a module computes ``x W^T + b``, so that an adapter can stand in its place."""
    kind = kind_of(module)
    return kind is not None and kind.computes(module)


def _whole(model: nn.Module, name: str, module: nn.Module) -> Site | None:
    """The site of a module, None where it is of no kind."""
    wrapped = isinstance(module, WrappedLinear)
    kind = kind_of(module)
    if kind is None:
        return None
    if wrapped:
        d_out, d_in = matrix_of(module).shape
    else:
        d_out, d_in = kind.sizes(module)
    readable = wrapped or _is_matrix(module, kind, (d_out, d_in))
    return Site(name, _name_of(kind) if readable else PACKED, d_in, d_out, _depth(model, name), module, name)


def _is_matrix(module: nn.Module, kind: SiteKind, sizes: tuple[int, int]) -> bool:
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.dtype.is_floating_point and weight.ndim > 1 and kind.matrix(weight).shape == sizes


@cache
def _name_of(kind: SiteKind) -> str:
    return next(name for name, entry in SITES.items() if entry is type(kind))


def _depth(model: nn.Module, name: str) -> int | None:
    place = layer_of(model, name)
    return place[1] if place else None


def _block(site: Site, letter: str, rows: Rows) -> Site:
    d_out = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
    return Site(f"{site.name}.{letter}", "block", site.d_in, d_out, site.depth, site.module, site.module_name, rows)


class Split(nn.Module):
    """A fused matrix as the linear layers that it consists of, each a submodule under its letter.

    Args:
        base: The fused module; it keeps answering for everything but the forward pass.
        blocks: Letter to its rows; together they are all rows.

    Attributes:
        base: As given.
    """

    base: nn.Module

    def __init__(self, base: nn.Module, blocks: dict[str, Rows]) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        matrix, bias = matrix_of(base), bias_of(base)
        order = []
        for letter, rows in blocks.items():
            part = nn.Linear(1, 1, bias=False, device="meta")
            part.in_features, part.out_features = matrix.shape[1], len(matrix[rows])
            part.weight = nn.Parameter(matrix[rows].detach(), requires_grad=False)
            own = None if bias is None else nn.Parameter(bias[rows].detach(), requires_grad=False)
            part.register_parameter("bias", own)
            self.add_module(letter, part)
            order.append(torch.arange(matrix.shape[0])[rows])
        self._letters = tuple(blocks)
        back = torch.cat(order).argsort()
        in_order = torch.equal(back, torch.arange(len(back)))
        self._back = None if in_order else back.to(matrix.device)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name == "base":
                raise
            return getattr(self.base, name)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., d_in]`` to ``[..., d_out]``, the rows of all blocks in the order of the fused matrix."""
        out = torch.cat([self.get_submodule(letter)(x) for letter in self._letters], -1)
        return out if self._back is None else out[..., self._back]
