r"""`torch.nn.Embedding`: a table of V rows, of which the input names some.

The table ``[V, d]`` is ``W^T``: with the one-hot row ``x_t [V]`` of token t, its answer is ``W x_t``, so that d_in is
V and d_out is d. Then ``h = x A^T`` is column t of A, and nothing of the size of x is ever made; the gradient of A is
a sum of what arrives, column by column. Some models multiply what they look up by a constant c (BART, Gemma); there
``x_t`` is c in its one place.

As in PEFT and in loralib nothing of the input is dropped, whose entries are names; as in PEFT the padding token's
column gets no gradient. A table with ``max_norm`` is refused, because its forward pass rewrites it, as PEFT's does A.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.models.bases.kinds.base import SiteKind


class Embedding(SiteKind):
    """An embedding keeps ``[d_in, d_out]``: one row for each token."""

    plain: ClassVar[bool] = False
    indexed: ClassVar[bool] = True

    def fits(self, kind: type[nn.Module]) -> bool:
        """Every subclass of it."""
        return issubclass(kind, nn.Embedding)

    def sizes(self, module: nn.Module) -> tuple[int, int]:
        """Width and number of the rows."""
        assert isinstance(module, nn.Embedding)
        return module.embedding_dim, module.num_embeddings

    def computes(self, module: nn.Module) -> bool:
        """A subclass with a forward pass of its own is tried: it may look up and multiply, as that of BART does."""
        assert isinstance(module, nn.Embedding)
        own = type(module).forward is not nn.Embedding.forward or "forward" in vars(module)
        return module.max_norm is None and (not own or _looks_up(module))

    def lacks(self, module: nn.Module) -> str:
        """A norm, or a forward pass of its own."""
        assert isinstance(module, nn.Embedding)
        if module.max_norm is not None:
            return f"{type(module).__name__} rewrites its own weight in each pass (max_norm)"
        return f"{type(module).__name__} does more than look its input up"

    def matrix(self, module: nn.Module, kept: Tensor) -> Tensor:
        """Transposed."""
        return kept.T

    def kept(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """Transposed again."""
        return matrix.T

    def call(self, module: nn.Module, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        """Rows of another table."""
        return _scaled(module, F.embedding(x, matrix.T))

    def rows(self, module: nn.Module, x: Tensor) -> Tensor:
        """The tokens ``[..., 1]``."""
        return x.unsqueeze(-1)

    def read(self, module: nn.Module, rows: Tensor, A: Tensor) -> Tensor:
        """Columns of A."""
        assert isinstance(module, nn.Embedding)
        found = F.embedding(rows[..., 0], A.T, module.padding_idx, scale_grad_by_freq=module.scale_grad_by_freq)
        return _scaled(module, found)

    def outer(self, module: nn.Module, u: Tensor, rows: Tensor) -> Tensor:
        """The u of each token, summed into its column."""
        assert isinstance(module, nn.Embedding)
        sums = u.new_zeros(*u.shape[:-2], module.num_embeddings, u.shape[-1])
        return _scaled(module, sums.scatter_add(-2, rows.long().expand(u.shape), u)).mT

    def inputs(self, module: nn.Module, rows: Tensor) -> Tensor:
        """Sparse rows with one entry each."""
        assert isinstance(module, nn.Embedding)
        places = torch.stack([torch.arange(len(rows), device=rows.device), rows[:, 0].long()])
        ones = _scaled(module, torch.ones(len(rows), device=rows.device))
        return torch.sparse_coo_tensor(places, ones, (len(rows), module.num_embeddings), check_invariants=False)

    def down(self, module: nn.Module, x: Tensor, A: Tensor, p: float) -> Tensor:
        """As `read`: nothing is dropped."""
        return self.read(module, self.rows(module, x), A)

    def in_peft(self, module: nn.Module, A: Tensor, B: Tensor) -> dict[str, Tensor]:
        """Parameters by names of their own."""
        return {"lora_embedding_A": A, "lora_embedding_B": B}


def _scaled(module: nn.Module, found: Tensor) -> Tensor:
    """Times the constant of a subclass that multiplies."""
    scale: Any = getattr(module, "embed_scale", None)
    if scale is None or type(module).forward is nn.Embedding.forward:
        return found
    return found * (scale.to(found) if isinstance(scale, Tensor) else scale)


@torch.no_grad()
def _looks_up(module: nn.Embedding) -> bool:
    """On a small table of random numbers, and for a constant that is kept as a buffer another one."""
    dice = torch.Generator().manual_seed(0)
    trial: Any = copy.copy(module)  # with numbers of its own: the module's may lie nowhere, or on a GPU
    trial._parameters = {"weight": nn.Parameter(torch.randn(5, 3, generator=dice))}
    trial._buffers = {
        n: None if b is None else torch.full_like(b, 1.5, device="cpu") for n, b in module._buffers.items()
    }
    trial.num_embeddings, trial.embedding_dim, trial.padding_idx = 5, 3, None
    x = torch.tensor([[4, 0, 2], [1, 3, 3]])
    try:
        found = trial(x)
    except Exception:  # whatever it asks for, it is not a table's input
        return False
    expected = _scaled(trial, F.embedding(x, trial.weight))
    return isinstance(found, Tensor) and found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-3)
