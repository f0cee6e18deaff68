"""What a quantiser is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lorabank.core.errors import IncompatibleError


@dataclass(frozen=True)
class Quantiser(ABC):
    """How a matrix is kept in few bits, with its settings, which are the fields of the dataclass.

    Attributes:
        paper: Where it was published.
    """

    paper: ClassVar[str | None] = None

    @abstractmethod
    def quantise(self, weight: Tensor) -> dict[str, Tensor]:
        """What is kept of a matrix, by name.

        Args:
            weight: ``[d_out, d_in]``, float32, on the CPU: so that every device has the same base.

        Returns:
            Tensors of any dtype; names are letters and underscores.
        """

    @abstractmethod
    def dequantise(self, kept: Mapping[str, Tensor], shape: tuple[int, int], dtype: torch.dtype) -> Tensor:
        """The matrix that is used: ``[d_out, d_in]`` on the device of what is kept, computed in float32, then rounded.

        Args:
            kept: As `quantise` gave it.
            shape: ``(d_out, d_in)``.
            dtype: Of the result.
        """

    def shifted(self, kept: Mapping[str, Tensor], delta: Tensor, group: int) -> dict[str, Tensor]:
        """What is kept of ``W + D`` exactly, with the same codes, where D is constant within groups of columns.

        Args:
            kept: Of W, as `quantise` gave it.
            delta: ``[d_out, d_in / group]``: D of each group.
            group: How many neighbouring columns it consists of.

        Raises:
            IncompatibleError: The quantiser has no zero points that could take D, or other groups.
        """
        raise IncompatibleError(
            f"{type(self).__name__} keeps no zero points, and only these take an adapter without another rounding",
            hint="export without --merged, or from a bank whose base is kept by hqq",
            unchanged="nothing was written",
        )

    def by_hand(self) -> str:
        """Lines of Python that make ``numbers`` of the tensors ``kept``: W row after row, and perhaps more behind it.

        A quantiser that can be `shifted` has them: no other program knows what it keeps then.
        """
        return ""

    def elsewhere(self, left: Sequence[str] = ()) -> str | None:
        """Python with which transformers keeps the same weights, as its ``quantization_config``; None if it cannot.

        Args:
            left: Linear layers that stay as they are, as ``llm_int8_skip_modules`` names them.
        """
        return None
