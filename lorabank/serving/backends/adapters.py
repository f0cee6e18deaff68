"""The adapters that vLLM knows: one that it does not know is exported and loaded when it is first asked for."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

from lorabank.core.errors import IncompatibleError
from lorabank.serving.backends.client import VllmClient
from lorabank.serving.backends.failures import BackendFailure, UnknownAdapterError, busy, garbled
from lorabank.workflows.carrying.adapter_folders import AdapterFolders, Weights

T = TypeVar("T")


class LoadedAdapters:
    """Sums of adapters at one vLLM server; what is awaited belongs to one event loop.

    vLLM reads an adapter's folder again when it has evicted the adapter from memory, so that a folder is deleted only
    after vLLM was told to forget the adapter.

    Args:
        client: The server.
        folders: Where sums are exported to.
        most: Maximum number of folders that are kept, unless more are in use at once.
    """

    def __init__(self, client: VllmClient, folders: AdapterFolders, most: int) -> None:
        self._client, self._folders, self._most = client, folders, most
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._loads: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._in_use: Counter[str] = Counter()

    def prepare(self, weights: Weights) -> str:
        """Export a sum if it is not there, and keep it until `release`; called in the thread that loads models.

        Returns:
            Its name.

        Raises:
            LorabankError: As of `AdapterFolders.write`.
        """
        name = self._folders.name_of(weights)
        self._use(name, 1)
        try:
            self._folders.write(weights)
        except BaseException:
            self.release(name)
            raise
        return name

    def release(self, name: str) -> None:
        """Let go what `prepare` keeps; from any thread."""
        self._use(name, -1)

    async def asked(self, name: str, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask with a sum, and once more after loading it if vLLM does not know it.

        Args:
            name: What `prepare` gave.
            ask: Asks.

        Raises:
            BackendFailure: vLLM does not load it, or ``ask`` raised it.
        """
        loads = self._loads[name]
        async with self._locks[name]:  # it may be about to be forgotten
            pass
        try:
            found = await ask()
        except UnknownAdapterError:
            await self._load(name, loads)
            try:
                found = await ask()
            except UnknownAdapterError as error:
                said = IncompatibleError(f"vLLM loaded the adapter {name}, and does not know it: {error}")
                raise garbled(said) from error
        self._folders.used(name)
        return found

    def _use(self, name: str, by: int) -> None:
        with self._counting:
            self._in_use[name] += by

    def _used(self, name: str) -> bool:
        with self._counting:
            return self._in_use[name] > 0

    async def _load(self, name: str, loads: int) -> None:
        """Load a sum, unless it was loaded since ``loads`` was counted."""
        async with self._locks[name]:
            if self._loads[name] != loads:
                return
            folder = self._folders.place(name)
            if not folder.is_dir():  # another server let it go; it is written again when it is asked for again
                raise busy(None)
            await self._client.load(name, folder)
            self._loads[name] += 1
        await self._forget()

    async def _forget(self) -> None:
        """Let the sums go that were not used for the longest time, if there are too many."""
        with self._counting:
            using = {name for name, count in self._in_use.items() if count}
        for name in await asyncio.to_thread(self._folders.excess, self._most, using):
            async with self._locks[name]:
                if not self._used(name) and await self._unloaded(name):
                    await asyncio.to_thread(self._folders.delete, name, partial(self._used, name))

    async def _unloaded(self, name: str) -> bool:
        """Let vLLM forget a sum; whether it has.

        Some versions refuse to forget one that they have evicted from memory, so it is loaded once more.
        """
        if await self._client.unload(name):
            return True
        try:
            await self._client.load(name, self._folders.place(name))
        except BackendFailure:
            return False
        return await self._client.unload(name)
