r"""Adapters in memory: each is read when it is first needed, and no more lie there than a budget of bytes allows.

A model mixes adapters whose factors are stacked row by row (`lorabank.algebra.stack`). Here every adapter has a slot
of rows in that stack, and until it is asked for the slot is empty; a routed text so costs the reading of the adapters
that answer it, however many the bank has. There are two layouts:

    all fit     every adapter has a slot of its own shape, for good
    they don't  S slots alike, each with as many rows of a module as any adapter has there; what was used longest ago
                gives up its slot. The scaling then is in the slot's B, and rows that an adapter does not fill are 0,
                so that owner and scale of the rows stay, and with them all that was derived from them

A text needs all adapters of its state at once. Texts are answered in `waves` whose states fit together, each adapter
read at most once for them; a constant state is merged in `parts`, since deltas add up.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorabank.algebra.factors import FactorShape, LoraFactors
from lorabank.algebra.stack import AdapterStack, StackedFactors
from lorabank.core.errors import ConfigError
from lorabank.models.mixing.slot_filling import SlotFiller

MIB = 2**20


class ResidentStack:
    """Several adapters, of which those in use lie in memory.

    Args:
        names: The adapters, in the order of weights over adapters.
        slots: The stack that models mix, named like the adapters, or with fewer slots that are all alike.
        read: Gives an adapter's factors; asked again after the adapter had to go.
        sizes: Adapter to its bytes.
        max_bytes: Maximum bytes of the slots, None for as many as all adapters need.

    Attributes:
        names: As given.
        slots: As given.
        all_fit: Whether every adapter has its own slot.
        moved: How many adapters have lost their slot to another one so far.
    """

    def __init__(
        self,
        names: Sequence[str],
        slots: AdapterStack,
        read: Callable[[str], LoraFactors],
        *,
        sizes: Mapping[str, int],
        max_bytes: int | None = None,
    ) -> None:
        self.names = tuple(names)
        self.slots = slots
        self._read, self._sizes, self._max_bytes = read, sizes, max_bytes
        self.all_fit = slots.names == self.names
        self.moved = 0
        self._slot: OrderedDict[str, int] = OrderedDict()  # used longest ago first
        self._filler = SlotFiller(slots)

    @classmethod
    def reserve(
        cls,
        shapes: Mapping[str, Mapping[str, FactorShape]],
        read: Callable[[str], LoraFactors],
        *,
        device: torch.device | str,
        dtype: torch.dtype,
        max_bytes: int | None = None,
    ) -> ResidentStack:
        """Room for adapters, or for as many of them as ``max_bytes`` hold; nothing is read yet.

        Args:
            shapes: Adapter to module to shape.
            read: As above.
            device: Where the slots lie.
            dtype: Of their factors.
            max_bytes: As above.

        Raises:
            ConfigError: ``max_bytes`` does not hold one adapter.
            ValueError: Two adapters see a module in different sizes.
        """
        sizes = {name: _bytes(modules, dtype) for name, modules in shapes.items()}
        layout = shapes
        if max_bytes is not None and sum(sizes.values()) > max_bytes:
            slot = _slot_for_any(shapes.values())
            count = max_bytes // _bytes(slot, dtype)
            if not count:
                raise _too_many("an adapter needs", _bytes(slot, dtype), max_bytes)
            layout = {f"slot {k}": slot for k in range(count)}
        slots = AdapterStack.reserve(layout, device=device, dtype=dtype)
        return cls(tuple(shapes), slots, read, sizes=sizes, max_bytes=max_bytes)

    @classmethod
    def whole(cls, stack: AdapterStack) -> ResidentStack:
        """A stack that lies in memory already."""
        nothing: dict[str, LoraFactors] = {}
        resident = cls(stack.names, stack, nothing.__getitem__, sizes={})
        resident._slot.update((name, k) for k, name in enumerate(stack.names))
        return resident

    @property
    def modules(self) -> Mapping[str, StackedFactors]:
        """Module name to the factors of all slots."""
        return self.slots.modules

    @property
    def resident(self) -> tuple[str, ...]:
        """The adapters that lie in memory, the one used longest ago first."""
        return tuple(self._slot)

    def place(self, weights: Tensor) -> Tensor:
        """``weights [..., K]`` over adapters as weights ``[..., S]`` over slots; adapters of weight 0 are not read.

        Raises:
            ConfigError: The adapters that are used do not fit together.
        """
        used = (weights.reshape(-1, len(self.names)) != 0).any(0).nonzero().flatten().tolist()
        wanted = [self.names[k] for k in used]
        self._check_fit(len(wanted))
        for name in wanted:
            if name in self._slot:
                self._slot.move_to_end(name)
        for name in wanted:
            if name not in self._slot:
                self._fill(name)
        if self.all_fit:
            return weights
        placed = weights.new_zeros(*weights.shape[:-1], len(self.slots.names))
        placed[..., [self._slot[name] for name in wanted]] = weights[..., used]
        return placed

    def parts(self, weights: Tensor) -> Iterator[Tensor]:
        """Constant ``weights [K]`` as weights ``[S]`` whose deltas add up to theirs.

        Each part's adapters are read when it is asked for, into the slots of the part before where they must.
        """
        used = (weights != 0).nonzero().flatten()
        for part in used.split(len(self.slots.names)) if len(used) else ():
            own = torch.zeros_like(weights)
            own[part] = weights[part]
            yield self.place(own)

    def waves(self, weights: NDArray[np.float32]) -> list[NDArray[np.int64]]:
        """Rows of ``weights [n, K]``, one row for each text, in groups whose adapters fit together.

        Raises:
            ConfigError: The adapters of one text do not fit.
        """
        if self.all_fit or not len(weights):
            return [np.arange(len(weights))]
        groups: list[tuple[set[int], list[NDArray[np.int64]]]] = []
        states, member = np.unique(weights != 0, axis=0, return_inverse=True)
        for k, state in enumerate(states):
            own = set(np.flatnonzero(state).tolist())
            self._check_fit(len(own))
            if not groups or len(groups[-1][0] | own) > len(self.slots.names):
                groups.append((set(), []))
            groups[-1][0].update(own)
            groups[-1][1].append(np.flatnonzero(member.reshape(-1) == k))
        return [np.sort(np.concatenate(rows)) for _, rows in groups]

    def select(self, names: Sequence[str]) -> AdapterStack:
        """Some adapters as a stack of their own, in the order given.

        Raises:
            ConfigError: They need more than the budget.
        """
        if self.all_fit:
            self.place(torch.tensor([float(name in names) for name in self.names]))
            return self.slots.select(names)
        needed = sum(self._sizes[name] for name in names)
        if needed > (self._max_bytes or 0):
            raise _too_many(f"{len(names)} adapters that answer together need", needed, self._max_bytes)
        like = next(iter(self.modules.values())).A
        return AdapterStack.build({name: self._read(name) for name in names}, device=like.device, dtype=like.dtype)

    def combine(self, weights: Tensor) -> LoraFactors:
        """The weighted sum as one exact adapter, as `AdapterStack.combine`; ``weights [K]``."""
        used = (weights != 0).nonzero().flatten()
        return self.select([self.names[k] for k in used.tolist()]).combine(weights[used])

    def _fill(self, name: str) -> None:
        """Read an adapter into its own slot, a free one, or that of the adapter used longest ago."""
        factors = self._read(name)
        if self.all_fit:
            k = self.names.index(name)
        else:
            if len(self._slot) == len(self.slots.names):
                self.moved += 1
                self._slot.popitem(last=False)
            taken = set(self._slot.values())
            k = next(k for k in range(len(self.slots.names)) if k not in taken)
        self._filler.fill(k, factors, shared=not self.all_fit)
        self._slot[name] = k

    def _check_fit(self, count: int) -> None:
        if not self.all_fit and count > len(self.slots.names):
            parts = [part for own in self.modules.values() for part in (own.A, own.B, own.gain) if part is not None]
            slot = sum(part.nbytes for part in parts) // len(self.slots.names)
            raise _too_many(f"{count} adapters that answer one text together need", count * slot, self._max_bytes)


def _slot_for_any(adapters: Iterable[Mapping[str, FactorShape]]) -> dict[str, FactorShape]:
    """Module to the maximum rank of any adapter there, and a gain if any has one; the scaling is left to B."""
    slot: dict[str, FactorShape] = {}
    for modules in adapters:
        for module, shape in modules.items():
            before = slot.get(module, shape)
            r, gain = max(shape.r, before.r), shape.gain or before.gain
            slot[module] = FactorShape(r, shape.d_in, shape.d_out, 1.0, gain)
    return slot


def _bytes(modules: Mapping[str, FactorShape], dtype: torch.dtype) -> int:
    factors = sum(shape.r * (shape.d_in + shape.d_out) for shape in modules.values()) * dtype.itemsize
    return factors + sum(shape.d_out for shape in modules.values() if shape.gain) * torch.float32.itemsize


def _too_many(who: str, needed: int, max_bytes: int | None) -> ConfigError:
    return ConfigError(
        f"{who} {needed / MIB:.2f} MiB, more than --max-resident {(max_bytes or 0) / MIB:.2f} MiB",
        hint=f"--max-resident {-(-needed // MIB)}MiB",
        unchanged="nothing was changed",
    )
