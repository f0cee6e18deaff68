"""The heads of a bank's tasks, each read when it is first chosen: one text needs one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lorabank.bank.bank import Bank
from lorabank.core.errors import LorabankError
from lorabank.core.records import AdapterRecord
from lorabank.exchange.peft_folder import read_head
from lorabank.models.answering.base import AnswerForm
from lorabank.models.bases.loading import LoadedBase
from lorabank.models.tasks.heads import Head, build_head, load_head

UNREADABLE = (OSError, ValueError, LookupError, TypeError, LorabankError)
"""What a damaged file of an adapter may raise; other adapters still answer, and this one is hashed before it does."""


class StoredHeads:
    """The head of each task, and behind them those that the tasks' trainings began with.

    Args:
        bank: The bank.
        base: Its loaded base, whose class builds the heads.
        adapters: Of the tasks, in their order.
        forms: Of the tasks, for their labels.
        verified: Digests of adapters whose files were hashed; others may add to it.
        verify: Hashes an adapter's files and adds it.
    """

    def __init__(
        self,
        bank: Bank,
        base: LoadedBase,
        adapters: Sequence[AdapterRecord],
        forms: Sequence[AnswerForm],
        verified: set[str],
        verify: Callable[[str], object],
    ) -> None:
        self._bank, self._base = bank, base
        self._adapters, self._forms = adapters, forms
        self._verified, self._verify = verified, verify
        self._unreadable: dict[int, Exception] = {}

    def __getitem__(self, index: int, /) -> Head:
        """One head; a damaged one that does not answer, and is looked at all the same, is as training began with."""
        model, modules = self._base.model, self._base.head_modules
        adapter = self._adapters[index % len(self._adapters)]
        labels = len(self._forms[index % len(self._adapters)].labels)
        if index < len(self._adapters):
            try:
                return load_head(model, modules, labels, read_head(self._bank.adapter_path(adapter.digest)))
            except UNREADABLE as error:
                if adapter.digest in self._verified:
                    raise
                self._unreadable[index] = error
        return build_head(model, modules, labels, adapter.seed)

    def vouch(self, index: int) -> None:
        """Hash the adapter of a head that answers, which it may without its factors; an untrained one has no file."""
        if index < len(self._adapters) and self._adapters[index].digest not in self._verified:
            self._verify(self._adapters[index].digest)
        if index in self._unreadable:
            raise self._unreadable[index]
