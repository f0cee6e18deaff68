"""A bank in use: its state, its base model and the model that answers, each read once for all that is done with it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lorabank.bank.bank import Bank
from lorabank.bank.snapshot import Snapshot

if TYPE_CHECKING:
    from lorabank.models.bases.open_base import OpenBase
    from lorabank.models.mixing.runtime import Runtime
    from lorabank.workflows.assemble import RuntimeSettings

T = TypeVar("T")


class OpenBank:
    """What the workflows share: nothing is read before it is asked for, and nothing twice.

    Args:
        path: The bank's folder; there need be no bank yet.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._bank: Bank | None = None
        self._snapshot: Snapshot | None = None
        self._change: tuple[Any, ...] = ()
        self._base: OpenBase | None = None
        self._runtime: tuple[RuntimeSettings, Runtime] | None = None
        self._made: dict[Any, Any] = {}

    @property
    def exists(self) -> bool:
        """Whether there is a bank in the folder."""
        return self._bank is not None or Bank.exists(self.path)

    @property
    def bank(self) -> Bank:
        """The bank; errors as of `Bank.open`."""
        if self._bank is None:
            self._bank = Bank.open(self.path)
        return self._bank

    @property
    def snapshot(self) -> Snapshot:
        """The bank's state when it was last read."""
        return self._snapshot or self.refresh()

    def refresh(self) -> Snapshot:
        """Read the bank's state if it is another one; else what was made of it stays."""
        change = self.bank.last_change()
        if self._snapshot is None or self._change != change:
            self.release()
            self._snapshot, self._change = self.bank.snapshot(), change
        return self._snapshot

    @property
    def changed(self) -> bool:
        """Whether the bank's state is another one than the one that was read last."""
        return self.bank.last_change() != self._change

    @property
    def revision(self) -> int:
        """Number of the newest change in the state that was read last; 0 before the first."""
        return int(self._change[0]) if self._change else 0

    @property
    def base(self) -> OpenBase:
        """The bank's base model, or that of the bank to be; what was loaded of it stays.

        Raises:
            NotFoundError: There is no bank, and nothing was said of one to be.
        """
        from lorabank.models.bases.open_base import OpenBase

        if self._base is not None and self.exists and not _same(self._base, self.snapshot):
            self.close()
        if self._base is None:
            self._base = OpenBase(self.snapshot.base)
        return self._base

    def intend(self, base: OpenBase) -> None:
        """Say on which base model the bank will be made."""
        self._base = base

    def runtime(self, settings: RuntimeSettings, notice: Callable[[str], None]) -> Runtime:
        """The model that answers in the bank's last state: the one that is there, or else one in its place.

        Args:
            settings: How it answers.
            notice: Gets what the user should know of how texts are answered.
        """
        from lorabank.workflows.assemble import load_runtime

        if self._runtime is not None and self._runtime[0] != settings:
            self.release()  # before the other is loaded: two never lie in memory together
        if self._runtime is None:
            self._runtime = settings, load_runtime(self.bank, self.snapshot, self.base, settings, notice)
        runtime = self._runtime[1]
        runtime.notice = notice
        return runtime

    def keep(self, key: Hashable, make: Callable[[], T]) -> T:
        """What was made for the model that answers, once as long as it is there."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]  # type: ignore[no-any-return]

    def release(self) -> None:
        """Let the model that answers go, with its adapters and merged weights; the base stays."""
        self._runtime = None
        self._made.clear()

    def close(self) -> None:
        """Let everything go that is in memory."""
        self.release()
        self._base = None


def _same(base: OpenBase, snapshot: Snapshot) -> bool:
    """Whether it is the bank's base; the time at which a bank was made says nothing of it."""
    return base.record._replace(created_at="") == snapshot.base._replace(created_at="")
