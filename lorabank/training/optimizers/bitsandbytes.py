"""AdamW of bitsandbytes: moments of 8 bits a number in blocks (arXiv 2110.02861), or moments that leave the GPU.

The state of a block of 256 numbers is kept as 8-bit codes of a dynamic tree and the block's largest absolute value;
parameters of fewer than `min_8bit_size` numbers keep 32 bits. Paged moments (QLoRA, arXiv 2305.14314, section 3) lie
in unified memory, from which the driver moves them to the GPU for a step and back when room is needed.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, ClassVar

import torch

from lorabank.core.errors import ConfigError, LorabankError, MissingExtraError
from lorabank.core.machine.packages import install
from lorabank.core.settings import setting
from lorabank.training.optimizers.base import Optimizer


@dataclass(frozen=True)
class _Adam(Optimizer):
    """What both have in common."""

    beta1: float = setting(0.9, "Decay of the mean of the gradients.", ge=0, lt=1)
    beta2: float = setting(0.999, "Decay of the mean of their squares.", ge=0, lt=1)
    eps: float = setting(1e-8, "Added to the root of that mean.", gt=0)

    def refusal(self, device: str) -> LorabankError | None:
        """It needs the package, and a GPU."""
        if find_spec("bitsandbytes") is None:
            return MissingExtraError(
                "this --optimizer needs the package bitsandbytes, which is not installed",
                hint=install("8bit"),
                unchanged="nothing was changed",
            )
        if device == "cpu":
            return ConfigError(
                "this --optimizer works on a GPU alone, and the training is on a CPU",
                hint="leave --optimizer out",
                unchanged="nothing was changed",
            )
        return None

    def build(self, groups: Sequence[dict[str, Any]], learning_rate: float) -> torch.optim.Optimizer:
        """The one of bitsandbytes."""
        betas = self.beta1, self.beta2
        made: torch.optim.Optimizer = self._kind()(
            list(groups), lr=learning_rate, betas=betas, eps=self.eps, **self._more()
        )
        return made

    @abstractmethod
    def _kind(self) -> Any:
        """The class of bitsandbytes."""

    def _more(self) -> dict[str, Any]:
        """What else it takes."""
        return {}


@dataclass(frozen=True)
class AdamW8bit(_Adam):
    """AdamW whose moments take 8 bits a number, in blocks."""

    paper: ClassVar[str | None] = "8-bit optimizers, arXiv 2110.02861"

    min_8bit_size: int = setting(4096, "Numbers of a parameter below which its moments keep 32 bits.", ge=1)
    paged: bool = setting(False, "Whether the moments may leave the GPU when room is needed.")

    def _kind(self) -> Any:
        optim = import_module("bitsandbytes").optim
        return optim.PagedAdamW8bit if self.paged else optim.AdamW8bit

    def _more(self) -> dict[str, Any]:
        return {"min_8bit_size": self.min_8bit_size}


@dataclass(frozen=True)
class PagedAdamW(_Adam):
    """AdamW whose moments, of 32 bits a number, may leave the GPU when room is needed."""

    paper: ClassVar[str | None] = "QLoRA, arXiv 2305.14314"

    def _kind(self) -> Any:
        return import_module("bitsandbytes").optim.PagedAdamW32bit
