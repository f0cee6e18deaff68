r"""What a correction is.

A quantiser makes Q of a weight W. A correction of rank r gives factors A_0, B_0 that stand beside it for ever, so that
``Q + B_0 A_0`` is nearer to W. It is a part of the base: every task is learnt over it, none holds it, and two tasks do
not add it twice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from lorabank.models.bases.quantised.base import Quantiser


class Corrected(NamedTuple):
    """A weight: what the quantiser keeps of it, ``A_0 [r, d_in]`` and ``B_0 [d_out, r]`` in float32."""

    kept: dict[str, Tensor]
    A: Tensor
    B: Tensor


@dataclass(frozen=True)
class Correction(ABC):
    """A correction, with its settings, which are the fields of the dataclass.

    Attributes:
        paper: Where it was published.
        plain: Whether Q is what the quantiser makes of W itself, so that other programs have the same Q.
    """

    paper: ClassVar[str | None] = None
    plain: ClassVar[bool] = True

    @property
    def reads_inputs(self) -> bool:
        """Whether `split` needs the magnitudes of the inputs."""
        return False

    @abstractmethod
    def split(self, weight: Tensor, quantiser: Quantiser, inputs: Tensor | None) -> Corrected:
        """Quantise a weight and correct it.

        Args:
            weight: W ``[d_out, d_in]``, float32, on the CPU.
            quantiser: Makes Q.
            inputs: ``[d_in]``, how large each input is, all above 0; None where that is not known.
        """


def quantised(weight: Tensor, quantiser: Quantiser) -> tuple[dict[str, Tensor], Tensor]:
    """What is kept of a weight, and Q in float32."""
    kept = quantiser.quantise(weight)
    return kept, quantiser.dequantise(kept, (weight.shape[0], weight.shape[1]), torch.float32)


def nearest_of_rank(error: Tensor, r: int, inputs: Tensor | None = None) -> tuple[Tensor, Tensor]:
    r"""A ``[r, d_in]`` and B ``[d_out, r]`` that minimise ``||(error - B A) diag(inputs)||_F``.

    With ``error S = U Sigma V^T`` the minimum is ``U_r U_r^T error = (error S) V_r V_r^T S^-1``, so the vectors of the
    smaller side are enough: those of a symmetric matrix, in float64.
    """
    wide, scale = error.double(), torch.ones(error.shape[1]).double() if inputs is None else inputs.double()
    scaled = wide * scale
    if error.shape[0] <= error.shape[1]:
        U = torch.linalg.eigh(scaled @ scaled.T).eigenvectors[:, -r:]
        return (U.T @ wide).float(), U.float()
    V = torch.linalg.eigh(scaled.T @ scaled).eigenvectors[:, -r:]
    return (V.T / scale).float(), (scaled @ V).float()
