"""O-LoRA by projection: the new A stays in the orthogonal complement of what earlier adapters read.

With Q an orthonormal basis of the rows of all earlier A of a module,

    A_new <- A_new - (A_new Q^T) Q

after the initialisation and after every optimizer step, so ``A_prev A_new^T = 0`` up to rounding and no penalty is
needed: projected gradient descent on the constraint that O-LoRA (arXiv 2310.14152) asks for by a penalty. Unlike the
penalty it has an end: once the earlier rows span all inputs of a module, no direction is left.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from lorabank.algebra.subspaces import row_space
from lorabank.core.errors import ConfigError
from lorabank.training.strategies.base import Begun, Start, Strategy
from lorabank.training.variants.layer import LoraLinear


@dataclass(frozen=True)
class _Projected(Strategy):
    def begin(self, start: Start) -> Begun:
        """The new adapter in what the earlier ones left, to be put back there after each step.

        Raises:
            ConfigError: If they left nothing of a module.
        """
        bases = _bases(start)
        begun = super().begin(start)
        if not bases:
            return begun
        bases = {name: basis.to(begun.layers[name].lora_A) for name, basis in bases.items()}
        project(begun.layers, bases)
        return replace(begun, after_step=partial(project, begun.layers, bases))


@torch.no_grad()
def project(layers: Mapping[str, LoraLinear], bases: Mapping[str, Tensor]) -> None:
    """Take out of each A what lies in a basis.

    Args:
        layers: The trainable layers by module name; ``lora_A [r, d_in]`` is changed in place.
        bases: Orthonormal rows ``[Q, d_in]`` by module name, in A's dtype; a module may be missing.
    """
    for name, basis in bases.items():
        A = layers[name].lora_A
        A.addmm_(A @ basis.mT, basis, alpha=-1)


def _bases(start: Start) -> dict[str, Tensor]:
    earlier = start.earlier_by_site
    if earlier is None:
        return {}
    bases = {name: row_space(earlier.modules[name].A) for name in start.targets if name in earlier.modules}
    full = [name for name, basis in bases.items() if basis.shape[0] >= basis.shape[1]]
    if full:
        raise ConfigError(
            f"no direction is left for a new adapter: the {len(earlier.names)} earlier ones span all "
            f"{bases[full[0]].shape[1]} inputs of {full[0]}",
            hint="use --strategy olora, whose penalty needs no room, or a bank with a smaller --r",
            unchanged="nothing was changed",
        )
    return bases


PROJECTED = _Projected(
    "olora-projected",
    "active",
    about="A new adapter that is projected, after every step, onto what no earlier adapter reads.",
    paper="the constraint of O-LoRA, arXiv 2310.14152",
)
