r"""The selector of AM-LoRA (arXiv 2409.19611): per module and token, how much of each adapter answers.

For an adapted module with input x, adapters k = 1..K and the zero adapter k = 0:

    h_k = s_k B_k A_k x,   z_k = tanh(u_k . h_k + c_k),   z_0 = tanh(c_0)   (h_0 = 0)
    a = softmax(z_0, ..., z_K),   y = W x + sum_{k >= 1} a_k h_k

``u_k . s_k B_k A_k x = (s_k B_k^T u_k) . (A_k x)``, so a score costs r multiplications and not d_out. The paper's text
gives no equations; this follows a survey's account of it (docs/papers.md).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lorabank.core.lora import AdapterStack, StackedFactors


class Selector(nn.Module):
    """The dense parameters of every adapted module.

    Parameters by module name (dots as ``/`` in the state): ``u [K, d_out]``, ``c [K]``, ``c_zero [1]``, all zero at
    first, which gives every adapter and the zero adapter the same attention.

    Args:
        stack: The adapters that compete, K of them.
    """

    def __init__(self, stack: AdapterStack) -> None:
        super().__init__()
        self._seen: list[Tensor] | None = None
        count = len(stack.names)
        self.u, self.c, self.c_zero = nn.ParameterDict(), nn.ParameterDict(), nn.ParameterDict()
        for module, factors in stack.modules.items():
            key = module.replace(".", "/")
            device = factors.A.device
            self.u[key] = nn.Parameter(torch.zeros(count, factors.B.shape[0], device=device))
            self.c[key] = nn.Parameter(torch.zeros(count, device=device))
            self.c_zero[key] = nn.Parameter(torch.zeros(1, device=device))

    def attention(self, module: str, factors: StackedFactors, h: Tensor) -> Tensor:
        """Attention over the adapters, the zero adapter included.

        Args:
            module: Name of the adapted module.
            factors: Its stacked factors.
            h: ``A_all x``, ``[..., R]``.

        Returns:
            ``[..., K + 1]``, the zero adapter first, summing to 1.
        """
        key = module.replace(".", "/")
        rows = factors.scale * (factors.B * self.u[key].T[:, factors.owner].to(factors.B.dtype)).sum(0)
        summed = h.new_zeros(*h.shape[:-1], self.c[key].shape[0]).index_add(-1, factors.owner, h * rows)
        zero = self.c_zero[key].to(h.dtype).expand(*h.shape[:-1], 1)
        scores = torch.cat([zero, summed + self.c[key].to(h.dtype)], dim=-1)
        attention = torch.tanh(scores).softmax(-1)
        if self._seen is not None:
            self._seen.append(attention.detach())
        return attention

    @contextmanager
    def watched(self, seen: list[Tensor]) -> Iterator[None]:
        """For the length of a block, append every attention that is computed to ``seen``."""
        self._seen = seen
        try:
            yield
        finally:
            self._seen = None

    def l1(self) -> Tensor:
        """``sum |u|`` over all modules; an L1 on the attention itself would be constant, since it sums to 1."""
        return torch.stack([u.abs().sum() for u in self.u.values()]).sum()

    def tensors(self) -> dict[str, Tensor]:
        """Plain tensors to store: ``u:<module>``, ``c:<module>``, ``c_zero:<module>``."""
        return {
            f"{kind}:{key.replace('/', '.')}": value.detach().cpu().contiguous()
            for kind, group in (("u", self.u), ("c", self.c), ("c_zero", self.c_zero))
            for key, value in group.items()
        }

    def load_tensors(self, tensors: Mapping[str, Tensor]) -> Selector:
        """Take over stored tensors; the keys and shapes must be exactly those of `tensors`."""
        own = {
            f"{kind}:{key.replace('/', '.')}": value
            for kind, group in (("u", self.u), ("c", self.c), ("c_zero", self.c_zero))
            for key, value in group.items()
        }
        if own.keys() != tensors.keys():
            raise KeyError(sorted(own.keys() ^ tensors.keys())[0])
        with torch.no_grad():
            for name, value in own.items():
                value.copy_(tensors[name])
        return self
