r"""`torch.nn.Conv1d`, `Conv2d` and `Conv3d`: a linear layer over windows of the input.

With the window ``x [C k]`` around each place (C channels, k entries of the kernel), a convolution answers ``W x + b``:
W is its kernel ``[d_out, C, k...]`` flattened, and stride, padding and dilation say where the windows are. So
``h = x A^T`` is the same convolution with A as its kernel, and B works on the channels of h alone: PEFT has a
``lora_A`` of the kernel's size and a ``lora_B`` of width 1.

A convolution of G groups is G convolutions side by side: W is block-diagonal, ``[d_out, C k]`` with d_out / G rows and
C k / G columns in each block. Every group is a site of its own, ``NAME.0`` to ``NAME.(G-1)``, trained by itself, and
the bank stores one adapter on the whole matrix, of rank ``r G``, whose A and B are block-structured. PEFT has the same
form: its A reads all channels, its B is grouped, so that group g reads only rows g r to (g + 1) r of A. A PEFT adapter
whose A reads the channels of other groups (as PEFT starts and trains them) does not fit a grouped convolution, and
is not imported. With one channel a group (depthwise), a block is a vector, which has no low rank.

PEFT 0.21.2 builds its A without dilation and padding mode: with a dilation it raises, or with ``padding="same"``
answers otherwise than it merges, and around a circular or reflecting padding its A reads zeros. Such adapters are
trained and answered here and not exported to PEFT, nor imported (github.com/huggingface/peft/issues/3697).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.models.bases.kinds.base import Parts, SiteKind


class Convolution(SiteKind):
    """A convolution keeps ``[d_out, C / groups, k...]``.

    Attributes:
        of: The class of its modules.
        run: torch's function.
    """

    plain: ClassVar[bool] = False
    of: ClassVar[type[nn.Module]]
    run: ClassVar[Callable[..., Tensor]]

    def fits(self, kind: type[nn.Module]) -> bool:
        """Every subclass of it."""
        return issubclass(kind, self.of)

    def sizes(self, module: nn.Module) -> tuple[int, int]:
        """Channels out, and the entries of a window."""
        conv: Any = module
        return conv.out_channels, conv.in_channels * math.prod(conv.kernel_size)

    def computes(self, module: nn.Module) -> bool:
        """A subclass with a forward pass of its own is left alone, and one group for each channel."""
        conv: Any = module
        own = type(module).forward is not self.of.forward or "forward" in vars(module)
        return not own and (conv.groups == 1 or conv.groups < conv.in_channels)

    def lacks(self, module: nn.Module) -> str:
        """A forward pass of its own, or no matrix."""
        conv: Any = module
        if type(module).forward is self.of.forward and conv.groups > 1:
            return f"{type(module).__name__} reads every channel by itself, which has no low rank"
        return f"{type(module).__name__} is not a plain torch.nn.{self.of.__name__}"

    def matrix(self, module: nn.Module, kept: Tensor) -> Tensor:
        """Flattened; of groups a copy, block-diagonal."""
        groups = _groups(module)
        flat = kept.flatten(1)
        return flat if groups == 1 else torch.block_diag(*flat.chunk(groups))

    def kept(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """In the kernel's shape; of groups the blocks, without what is outside of them."""
        conv: Any = module
        groups, d_out = conv.groups, len(matrix)
        if groups > 1:
            blocks = matrix.reshape(groups, d_out // groups, groups, -1)
            matrix = blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1).reshape(d_out, -1)
        return matrix.reshape(d_out, conv.in_channels // groups, *conv.kernel_size)

    def keeps(self, module: nn.Module, weight: Tensor) -> bool:
        """By its shape: the matrix of groups is made, not viewed."""
        conv: Any = module
        return weight.shape == (conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size)

    def parts(self, module: nn.Module) -> dict[str, tuple[slice, slice]]:
        """The groups."""
        groups = _groups(module)
        if groups == 1:
            return {}
        rows, columns = (size // groups for size in self.sizes(module))
        return {
            str(g): (slice(g * rows, (g + 1) * rows), slice(g * columns, (g + 1) * columns)) for g in range(groups)
        }

    def split(self, module: nn.Module) -> nn.Module:
        """A convolution for each group."""
        return Groups(module)

    def call(self, module: nn.Module, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution with another kernel."""
        return self._convolved(module, x, self.kept(module, matrix), bias, _groups(module))

    def rows(self, module: nn.Module, x: Tensor) -> Tensor:
        """The windows ``[..., places, C k]``."""
        conv: Any = module
        windows = _padded(module, x)
        dims = len(conv.kernel_size)
        for i, (k, d, step) in enumerate(zip(conv.kernel_size, conv.dilation, conv.stride, strict=True)):
            windows = windows.unfold(x.dim() - dims + i, d * (k - 1) + 1, step)[..., ::d]
        return windows.movedim(x.dim() - dims - 1, x.dim() - 1).flatten(-dims - 1)

    def down(self, module: nn.Module, x: Tensor, A: Tensor, p: float) -> Tensor:
        """The convolution with A as its kernel; entries of x are dropped, not of windows."""
        conv: Any = module
        kernel = A.view(len(A), conv.in_channels, *conv.kernel_size)
        return self.answer_rows(module, self._convolved(module, F.dropout(x, p), kernel, None, 1))

    def answer_rows(self, module: nn.Module, out: Tensor) -> Tensor:
        """Channels last."""
        conv: Any = module
        return out.movedim(-1 - len(conv.kernel_size), -1)

    def answer(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Channels before the places."""
        conv: Any = module
        return rows.movedim(-1, -1 - len(conv.kernel_size))

    def in_peft(self, module: nn.Module, A: Tensor, B: Tensor) -> dict[str, Tensor]:
        """Kernels; of groups the columns of B by groups, each with as many as the largest needs."""
        conv: Any = module
        if conv.groups > 1:
            A, B = _by_groups(A, B, conv.groups)
        ones = (1,) * len(conv.kernel_size)
        kernel = A.reshape(len(A), conv.in_channels, *conv.kernel_size)
        return {"lora_A.weight": kernel, "lora_B.weight": B.reshape(*B.shape, *ones)}

    def shape_in_peft(self, module: nn.Module) -> tuple[int, ...]:
        """The shape that PEFT stores for a kernel that reads all channels."""
        conv: Any = module
        return (conv.in_channels, *conv.kernel_size)

    def magnitude_in_peft(self, module: nn.Module, magnitude: Tensor) -> Tensor:
        """Along the channels of an answer."""
        conv: Any = module
        return magnitude.view(1, -1, *(1 for _ in conv.kernel_size))

    def not_in_peft(self, module: nn.Module, *, gained: bool) -> str | None:
        """Dilation and padding mode, which PEFT's A lacks, and the norms of a kernel in groups."""
        conv: Any = module
        if gained and conv.groups > 1:
            return "PEFT's DoRA knows no groups"
        if any(d != 1 for d in conv.dilation):
            return "PEFT's lora_A has no dilation"
        return None if conv.padding_mode == "zeros" else f"PEFT's lora_A pads with zeros, not {conv.padding_mode}"

    def _convolved(self, module: nn.Module, x: Tensor, kernel: Tensor, bias: Tensor | None, groups: int) -> Tensor:
        conv: Any = module
        if conv.padding_mode == "zeros":
            return type(self).run(x, kernel, bias, conv.stride, conv.padding, conv.dilation, groups)
        return type(self).run(_padded(module, x), kernel, bias, conv.stride, 0, conv.dilation, groups)


class Conv1d(Convolution):
    """Along one dimension (SqueezeBERT, ConvBERT, CANINE); transformers' ``Conv1D`` is a linear layer."""

    of, run = nn.Conv1d, staticmethod(F.conv1d)


class Conv2d(Convolution):
    """Along two dimensions."""

    of, run = nn.Conv2d, staticmethod(F.conv2d)


class Conv3d(Convolution):
    """Along three dimensions."""

    of, run = nn.Conv3d, staticmethod(F.conv3d)


class Groups(Parts):
    """A convolution of groups as the convolutions that it consists of, each a submodule under its number.

    Args:
        base: The convolution; it keeps answering for everything but the forward pass.
    """

    def __init__(self, base: nn.Module) -> None:
        super().__init__(base)
        conv: Any = base
        kernels = conv.weight.detach().chunk(conv.groups)
        biases = [None] * conv.groups if conv.bias is None else conv.bias.detach().chunk(conv.groups)
        for g, (kernel, bias) in enumerate(zip(kernels, biases, strict=True)):
            part: Any = copy.copy(conv)
            part._parameters = {
                "weight": nn.Parameter(kernel, requires_grad=False),
                "bias": None if bias is None else nn.Parameter(bias, requires_grad=False),
            }
            part.groups, part.in_channels, part.out_channels = 1, kernel.shape[1], len(kernel)
            self.add_module(str(g), part)
        self._channels = -1 - len(conv.kernel_size)

    def forward(self, x: Tensor) -> Tensor:
        """``x [..., C, places]`` to ``[..., d_out, places]``."""
        groups = x.chunk(self.base.groups, self._channels)  # type: ignore[arg-type]
        return torch.cat([self.get_submodule(str(g))(part) for g, part in enumerate(groups)], self._channels)


def _groups(module: nn.Module) -> int:
    conv: Any = module
    groups: int = conv.groups
    return groups


def _padded(module: nn.Module, x: Tensor) -> Tensor:
    """The input with the module's padding around it, in its mode."""
    conv: Any = module
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    return F.pad(x, conv._reversed_padding_repeated_twice, mode)


def _by_groups(A: Tensor, B: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """The same adapter with its rows in the order of the groups that they write into, ``B [d_out, r / groups]``."""
    used = [part.any(0).nonzero().flatten() for part in B.chunk(groups)]
    most = max(1, *(len(columns) for columns in used))
    rows = A.new_zeros(groups, most, A.shape[1])
    blocks = B.new_zeros(groups, len(B) // groups, most)
    for g, (columns, part) in enumerate(zip(used, B.chunk(groups), strict=True)):
        rows[g, : len(columns)] = A[columns]
        blocks[g, :, : len(columns)] = part[:, columns]
    return rows.flatten(0, 1), blocks.flatten(0, 1)
