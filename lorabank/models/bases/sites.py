r"""Sites: the matrices that an adapter can change, and the only place that touches the weight of a model's module.

An adapter sees a matrix ``W [d_out, d_in]``, whatever the module keeps:

| kind     | module                                         | W here                                      |
| -------- | ---------------------------------------------- | ------------------------------------------- |
| `SITES`  | as `lorabank.models.bases.kinds` says          | a view of its weight                        |
| quantised | `lorabank.models.bases.quantised`              | made anew when it is asked for              |
| block    | q, k or v of a fused matrix (`fused`)          | some rows of one, a view if side by side    |
| block    | a group of a convolution                       | some rows and columns; the others are 0     |
| bias     | a module that has a bias (`kinds.bias`)        | the bias, one column; its input is 1        |
| packed   | one whose weight is not such a matrix          | cannot be read: no adapter                  |

A block is trained as a layer of its own (`Parts`). What is stored is an adapter on the whole matrix
(`lorabank.models.bases.blocks`), so that everything after training, PEFT included, knows whole modules only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lorabank.algebra.biases import ENDING
from lorabank.core.errors import IncompatibleError
from lorabank.core.shelves import SITES
from lorabank.models.bases.fused import Rows, blocks_of
from lorabank.models.bases.kinds.base import InPlaceOf, Parts, SiteKind
from lorabank.models.bases.kinds.bias import Bias, inside, is_norm, owner_of, put_in_place, vector_of
from lorabank.models.bases.kinds.split import Split
from lorabank.models.bases.quantised.linear import QuantisedLinear, Weight, not_merged

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
    """``W [d_out, d_in]`` of a module that is a site in its own dtype, without a copy where that can be."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    kind = kind_of(module)
    return weight if kind is None else kind.matrix(wrapped_by(module), weight)


def weight_of(module: nn.Module) -> Weight:
    """What stands for W in a product, with its shape, dtype and device: the matrix, or a quantised layer itself."""
    return module if isinstance(module, QuantisedLinear) else matrix_of(module)


def bias_of(module: nn.Module) -> Tensor | None:
    """The bias ``[d_out]`` of a module that is a site, None where it has none."""
    return getattr(module, "bias", None)


def as_kept(module: nn.Module, matrix: Tensor) -> Tensor:
    """A matrix ``[d_out, d_in]`` in the layout in which the module keeps its weight, without a copy if that can be."""
    kind = kind_of(module)
    return matrix if kind is None else kind.kept(wrapped_by(module), matrix)


def wrapped_by(module: nn.Module) -> nn.Module:
    """The module itself, or the one that it is wrapped around."""
    return module.base if isinstance(module, WrappedLinear) else module


def is_plain(module: nn.Module) -> bool:
    """Whether a module that is a site computes ``x W^T + b`` over the last dimension of its input."""
    kind = kind_of(module)
    return kind is None or kind.plain


def sizes_of(module: nn.Module) -> tuple[int, int]:
    """``(d_out, d_in)`` of a module that is a site."""
    kind = kind_of(module)
    assert kind is not None
    return kind.sizes(wrapped_by(module))


def rows_of(module: nn.Module, x: Tensor) -> Tensor:
    """What stands for the rows that W multiplies in an input of a module that is a site (`SiteKind.rows`)."""
    kind = kind_of(module)
    return x if kind is None else kind.rows(wrapped_by(module), x)


def answer_rows(module: nn.Module, out: Tensor) -> Tensor:
    """An answer of a module that is a site, or its gradient, as ``[..., d_out]``."""
    kind = kind_of(module)
    return out if kind is None else kind.answer_rows(wrapped_by(module), out)


def set_matrix(module: nn.Module, matrix: Tensor) -> None:
    """Give a module another weight, ``matrix [d_out, d_in]``; who shares the old one keeps it.

    Raises:
        IncompatibleError: The module is quantised.
    """
    if isinstance(module, QuantisedLinear):
        raise not_merged(type(module).__name__)
    old: Tensor = module.weight  # type: ignore[assignment]
    new = as_kept(module, matrix).to(old.dtype).contiguous()
    kind = kind_of(module)
    assert kind is not None
    kind.put(wrapped_by(module), nn.Parameter(new, requires_grad=old.requires_grad))


class WrappedLinear(InPlaceOf):
    """A module around a linear layer, or around another module that is a site.

    Args:
        base: The module that is wrapped.

    Attributes:
        kind: How the base keeps its matrix.
        called: Whether a forward pass went through the wrapper.
        weight_read: Whether the model's code asked for its weight.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        self.kind = kind_of(base)
        self.called = False
        self.weight_read = False

    @property
    def weight(self) -> Tensor:
        """The weight that answers, as far as one matrix does, in the base's layout; the base's otherwise."""
        self.weight_read = True
        matrix = self._matrix()
        weight: Tensor = self.base.weight if matrix is None else as_kept(self.base, matrix)  # type: ignore[assignment]
        return weight

    def _matrix(self) -> Tensor | None:
        """The matrix that answers in the place of the base's, None for the base's."""
        return None

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
        columns: Of a block outside of which its rows are 0 (a group of a convolution), its columns; None for all.
    """

    name: str
    kind: str
    d_in: int
    d_out: int
    depth: int | None
    module: nn.Module
    module_name: str
    rows: Rows | None = None
    columns: slice | None = None

    @property
    def plain(self) -> bool:
        """Whether it is a linear layer: ``x W^T + b`` over the last dimension of the input."""
        return is_plain(self.module)

    @property
    def can_merge(self) -> bool:
        """Whether W can be read and a delta weight be added to it."""
        return self.kind != PACKED

    @property
    def quantised(self) -> bool:
        """Whether the module keeps W quantised, so that a delta weight stands beside it and is never merged."""
        return isinstance(self.module, QuantisedLinear)

    @property
    def device(self) -> torch.device:
        """Where the weight is."""
        if isinstance(self.module, QuantisedLinear):
            return self.module.device
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight.device

    def weight(self) -> Tensor:
        """``W [d_out, d_in]`` in float32: a view where it is kept so, otherwise a copy.

        Raises:
            IncompatibleError: The weight is packed.
        """
        return self._matrix().float()

    def merged(self, delta: Tensor) -> Tensor:
        """``W + delta [d_out, d_in]`` as a new matrix in W's dtype: added in float32, rounded once.

        Raises:
            IncompatibleError: The weight is packed, or quantised.
        """
        if self.quantised:
            raise not_merged(self.name)
        matrix = self._matrix()
        total = (matrix.float() + delta.to(matrix.device).float()).to(matrix.dtype)
        if self.plain:
            return total
        kind, module = self.of_kind, wrapped_by(self.module)
        return kind.matrix(module, kind.kept(module, total).contiguous())  # a table is read by its rows

    def keeps(self, weight: Tensor) -> bool:
        """Whether a tensor is the module's own weight, in its layout, whatever dtype it was written in."""
        own = as_kept(self.module, matrix_of(self.module))
        return own.shape == weight.shape and torch.equal(own, weight.to(own))

    def holds(self, delta: Tensor) -> bool:
        """Whether a delta weight ``[d_out, d_in]`` is 0 where the module's matrix always is: outside of groups."""
        kind, module = self.of_kind, wrapped_by(self.module)
        return torch.equal(kind.matrix(module, kind.kept(module, delta)), delta)

    def wrap(self, model: nn.Module, make: Callable[[nn.Module], M]) -> M:
        """Put what ``make`` builds of the site's linear layer in its place.

        Args:
            model: The model that the site is of, changed in place: the module of a block becomes its `Parts`.
            make: Gets the module (of a block the one of its rows).

        Returns:
            What was built.
        """
        if self.rows is not None and not isinstance(model.get_submodule(self.module_name), Parts):
            whole = model.get_submodule(self.module_name)
            fused = blocks_of(model, self.module_name, self.module)
            if self.columns is not None:
                parts = self.of_kind.split(whole)
            else:
                parts = Split(whole, fused or {}, matrix_of(whole), bias_of(whole))
            model.set_submodule(self.module_name, parts)
        made = make(self.module if isinstance(self.module, Bias) else inside(model.get_submodule(self.name)))
        put_in_place(model, self.name, made)
        return made

    @property
    def of_kind(self) -> SiteKind:
        """How the module keeps its matrix and reads its input."""
        kind = kind_of(self.module)
        assert kind is not None
        return kind

    def _matrix(self) -> Tensor:
        if not self.can_merge:
            raise _packed(self)
        whole = matrix_of(self.module)
        part = whole if self.rows is None else whole[self.rows]
        return part if self.columns is None else part[:, self.columns]


def site_of(model: nn.Module, name: str) -> Site:
    """The site of a name: of a module, of a block of one, or of the bias of one.

    Raises:
        IncompatibleError: The model has no such site, or its weight is packed.
    """
    if name.endswith(ENDING) and (found := bias_site(model, name.removesuffix(ENDING))):
        return found
    for module_name, block in ((name, None), name.rpartition(".")[::2]):
        try:
            module = model.get_submodule(module_name)
        except AttributeError:
            continue
        site = _whole(model, module_name, inside(module))
        blocks = _blocks(model, site) if site is not None and block else {}
        if site is not None and block in blocks:
            site = blocks[block]
        if site is not None and (block is None or block in blocks):
            if not site.can_merge:
                raise _packed(site)
            return site
    raise IncompatibleError(f"{type(model).__name__} has no module {name!r} that an adapter can change")


def bias_site(model: nn.Module, name: str) -> Site | None:
    """The bias of the linear layer or layer norm of a name as a site, None where there is none."""
    try:
        owner = owner_of(model.get_submodule(name))
    except AttributeError:
        return None
    kind, vector, whole = kind_of(owner), vector_of(owner), f"{name}{ENDING}"
    if vector is None or not (is_norm(owner) or (kind is not None and kind.plain)):
        return None
    return Site(whole, "bias", 1, len(vector), _depth(model, name), Bias(owner), whole)


def sites_in(model: nn.Module) -> Iterator[tuple[Site, dict[str, Site]]]:
    """Every module of a model that is a site, in the model's order, with its blocks by their letters."""
    for name, module in model.named_modules():
        site = _whole(model, name, module)
        if site is not None:
            yield site, _blocks(model, site) if site.can_merge else {}


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


def computes(module: nn.Module) -> bool:
    """Whether a module computes ``x W^T + b``, so that an adapter can stand in its place."""
    kind = kind_of(module)
    return kind is not None and kind.computes(wrapped_by(module))


def lacking(module: nn.Module) -> str:
    """Why a module of some kind does not."""
    kind = kind_of(module)
    assert kind is not None
    return kind.lacks(wrapped_by(module))


def _whole(model: nn.Module, name: str, module: nn.Module) -> Site | None:
    """The site of a module, None where it is of no kind."""
    kind = kind_of(module)
    if kind is None:
        return None
    d_out, d_in = kind.sizes(wrapped_by(module))
    readable = isinstance(module, WrappedLinear) or _is_matrix(module, kind)
    return Site(name, _name_of(kind) if readable else PACKED, d_in, d_out, _depth(model, name), module, name)


def _is_matrix(module: nn.Module, kind: SiteKind) -> bool:
    if isinstance(module, QuantisedLinear):
        return True  # without making it
    weight: Tensor = module.weight  # type: ignore[assignment]
    return weight.dtype.is_floating_point and weight.ndim > 1 and kind.keeps(module, weight)


@cache
def _name_of(kind: SiteKind) -> str:
    return next(name for name, entry in SITES.items() if entry is type(kind))


def _depth(model: nn.Module, name: str) -> int | None:
    place = layer_of(model, name)
    return place[1] if place else None


def _blocks(model: nn.Module, site: Site) -> dict[str, Site]:
    """The blocks of a module by their letters or numbers: of a fused matrix, or those outside of which W is 0."""
    kind = kind_of(site.module)
    if kind is not None and (parts := kind.parts(wrapped_by(site.module))):
        return {name: _block(site, name, rows, columns) for name, (rows, columns) in parts.items()}
    fused = blocks_of(model, site.module_name, site.module) or {}
    return {letter: _block(site, letter, rows) for letter, rows in fused.items()}


def _block(site: Site, name: str, rows: Rows, columns: slice | None = None) -> Site:
    d_out = rows.stop - rows.start if isinstance(rows, slice) else len(rows)
    d_in = site.d_in if columns is None else columns.stop - columns.start
    depth, module, of = site.depth, site.module, site.module_name
    return Site(f"{site.name}.{name}", "block", d_in, d_out, depth, module, of, rows, columns)
