r"""Variants whose training is divided into windows: what a window has learnt is moved into the weight in memory.

With W_0 the weight as training begins and A_k, B_k the factors at the end of window k,

    W_k = W_0 + s sum_{j <= k} B_j A_j,        dW = s sum_j B_j A_j + s B A

so the adapter over the untouched base is the concatenation of all windows, exact and of rank ``windows * r``. The
windows are even parts of the training, whose number is a setting: what is stored is known before the training.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.errors import ConfigError
from lorabank.core.limits import MAX_RANK
from lorabank.training.variants.base import FreeFactors, Step


def over(done: int, total: int, windows: int) -> int:
    """How many of some windows are over when so many steps of all are done; the last one never is."""
    return min(done * windows // total, done, total - 1, windows - 1)


def begun(window: int, total: int, windows: int) -> int:
    """How many steps are done when a window begins, the first one being 0."""
    return max(-(-window * total // windows), window)


def rank_refusal(windows: int, r: int, setting: str) -> ConfigError | None:
    """Why no bank takes the adapter of so many windows of rank r; None where one does.

    Args:
        windows: Their number.
        r: Rank of each.
        setting: What `--set` calls the number.
    """
    if windows * r <= MAX_RANK:
        return None
    return ConfigError(
        f"{windows} windows of rank {r} make an adapter of rank {windows * r}, above the limit of {MAX_RANK}",
        hint=f"lower --set {setting} or --r",
        unchanged="nothing was changed",
    )


class Moved(nn.Module):
    """The factors that were moved into the weight, as buffers, so that checkpoints hold them.

    Args:
        like: Factors of the shapes of those that are moved.
        most: How often something is moved at most.

    Attributes:
        done: How often something was moved.
    """

    def __init__(self, like: LoraFactors, most: int) -> None:
        super().__init__()
        self.done = 0
        self._scaling = dict(like.scaling)
        for k, site in enumerate(self._scaling):
            self.register_buffer(f"A{k}", like.A[site].detach().new_zeros(most, *like.A[site].shape))
            self.register_buffer(f"B{k}", like.B[site].detach().new_zeros(most, *like.B[site].shape))

    @torch.no_grad()
    def keep(self, factors: LoraFactors, share: float = 1.0) -> None:
        """Remember that ``share`` of some factors' product is moved."""
        for k, site in enumerate(self._scaling):
            self.get_buffer(f"A{k}")[self.done] = factors.A[site]
            self.get_buffer(f"B{k}")[self.done] = share * factors.B[site]
        self.done += 1

    def factors(self) -> list[LoraFactors]:
        """What was moved, in order."""
        return [self._factors(one) for one in range(self.done)]

    def _factors(self, one: int) -> LoraFactors:
        A, B = (
            {site: self.get_buffer(f"{part}{k}")[one] for k, site in enumerate(self._scaling)} for part in ("A", "B")
        )
        return LoraFactors(A, B, self._scaling)


class Restarted(FreeFactors):
    """A and B that begin anew in every window: A drawn as LoRA draws it, B zero.

    Draws come from generators of their own, so they are the same in each of several processes, and resumed.

    Args:
        start: Where they begin first.
        windows: How many windows there are.
    """

    def __init__(self, start: LoraFactors, windows: int) -> None:
        super().__init__(start)
        self._windows = windows
        self._seed = drawn_seed()
        self._optimizer: torch.optim.Optimizer | None = None
        self.past = Moved(start, windows - 1)

    def moved(self) -> list[LoraFactors]:
        """The factors of the windows that are over."""
        return self.past.factors()

    def resume(self, step: Step, optimizer: torch.optim.Optimizer) -> None:
        """Find the window of the step."""
        self._optimizer = optimizer
        self.past.done = over(step.number - 1, step.total, self._windows)

    def after_step(self, step: Step) -> None:
        """Move the factors into the weight and draw new ones where a window ends."""
        if over(step.number, step.total, self._windows) == self.past.done:
            return
        self.past.keep(self.factors())
        generator = torch.Generator().manual_seed(self._seed + self.past.done)
        with torch.no_grad():
            for a, b in zip(self.A, self.B, strict=True):
                bound = a.shape[1] ** -0.5  # kaiming_uniform(a=sqrt(5))
                a.copy_(torch.empty(a.shape).uniform_(-bound, bound, generator=generator))
                b.zero_()
        if self._optimizer is not None:
            self.renew(self._optimizer)

    def renew(self, optimizer: torch.optim.Optimizer) -> None:
        """Change what the optimizer remembers of the factors that are gone: by default it forgets all."""
        forget(optimizer, [*self.A, *self.B])


def drawn_seed() -> int:
    """A seed from torch's generator: another one for each task, the same in each of several processes."""
    return int(torch.randint(2**48, ()))


def forget(optimizer: torch.optim.Optimizer, parameters: Iterable[Tensor]) -> None:
    """Let some parameters have an optimizer that has taken no step."""
    for parameter in parameters:
        optimizer.state.pop(parameter, None)
