"""vLLM as the backend: a thread that asks it for the tokens of many answers at once."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from lorabank.bank.snapshot import Snapshot
from lorabank.core.errors import ConfigError, LorabankError
from lorabank.core.shelves import COMPOSERS, GATES
from lorabank.core.states import SELECTOR, TUNER, Deployed
from lorabank.models.answering.replies import GenerationRequest, Reply
from lorabank.serving.backends.adapters import LoadedAdapters
from lorabank.serving.backends.address import Address
from lorabank.serving.backends.client import VllmClient, Wanted
from lorabank.serving.backends.failures import BackendFailure, silent
from lorabank.serving.backends.remote import RemoteAnswers, Work
from lorabank.serving.config import ServeConfig
from lorabank.serving.errors import Report, not_serving
from lorabank.workflows.asking.planned import Planning
from lorabank.workflows.assemble import RuntimeSettings, adapters_in_order
from lorabank.workflows.carrying.adapter_folders import AdapterFolders, Weights
from lorabank.workflows.open_bank import OpenBank

KEY = "VLLM_API_KEY"
"""Environment variable with the token that vLLM wants, as of vLLM itself."""

_LOOK = 0.1
"""Seconds between two looks whether answers are still wanted."""
_PULSE = 1.0
"""Seconds between two looks whether vLLM takes calls."""
_LONGEST = 10.0
"""Seconds that `Vllm.stop` waits for the thread at most."""


class Vllm:
    """A vLLM server that has the bank's base model.

    Args:
        path: The bank's folder.
        address: Where it listens.
        config: Limits, and where adapters are exported to.

    Raises:
        ConfigError: As of `VllmClient`, or `KEY` is not a token.
        LorabankError: As of `AdapterFolders`.
    """

    name = "vllm"

    def __init__(self, path: str | Path, address: Address, config: ServeConfig) -> None:
        folder = Path(config.backend_folder) if config.backend_folder else None
        self._client = VllmClient(address, _key())
        folders = AdapterFolders(path, folder, self.name)
        self._adapters = LoadedAdapters(self._client, folders, config.backend_adapters)
        self._seconds = config.seconds
        self._loop: asyncio.AbstractEventLoop
        self._thread = threading.Thread(target=self._run, name="lorabank-backend", daemon=True)
        self._works: dict[asyncio.Task[None], Work] = {}
        self._refused: set[str] = set()
        self._recorded: tuple[Snapshot | None, frozenset[str]] = None, frozenset()
        self._healthy = False
        self._stopping = False

    # ------------------------------------------------------------------------------------------- for other threads

    def start(self) -> None:
        """Start the thread."""
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    def answers(
        self, opened: OpenBank, settings: RuntimeSettings, notice: Callable[[str], None], report: Report
    ) -> RemoteAnswers:
        """What answers in a state of a bank; see `Backend`."""
        self._refused.clear()

        def start(works: Sequence[Work]) -> None:
            self._loop.call_soon_threadsafe(self._begin, works, report)

        return RemoteAnswers(Planning(opened, settings, notice), self, start, self._refused.add)

    def refuses(self, snapshot: Snapshot, name: str) -> bool:
        """Whether a task or composition is known not to be a sum of adapters; of some it is found when it is asked."""
        seen, recorded = self._recorded
        if seen is not snapshot:
            recorded = _no_sums(snapshot)
            self._recorded = snapshot, recorded
        return name in self._refused or name in recorded

    def reachable(self) -> bool:
        """Whether vLLM takes calls, as it was a moment ago."""
        return self._healthy and not self._stopping

    def stop(self) -> None:
        """Let everything go that is under way, and wait for the thread for a while."""
        self._stopping = True
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(_LONGEST)

    # ------------------------------------------------------------------------------------------------- the thread

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        always = [self._loop.create_task(one) for one in (self._sweep(), self._watch())]
        self._loop.run_forever()
        try:
            every = asyncio.all_tasks(self._loop)
            for task in every:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*every, *always, return_exceptions=True))
            self._loop.run_until_complete(self._client.close())
        finally:
            self._loop.close()

    def _begin(self, works: Sequence[Work], report: Report) -> None:
        for work in works:
            self._loop.create_task(self._do(work, report))

    async def _sweep(self) -> None:
        """Let go what nobody waits for any longer, and what takes too long."""
        while True:
            await asyncio.sleep(_LOOK)
            for task, work in list(self._works.items()):
                if work.over():
                    task.cancel()

    async def _watch(self) -> None:
        while True:
            self._healthy = await self._client.healthy()
            await asyncio.sleep(_PULSE)

    async def _do(self, work: Work, report: Report) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._works[task] = work  # not before it runs: a task that is cancelled earlier would end without a word
        try:
            await work.do()
        except asyncio.CancelledError:
            if self._stopping:
                work.fail(not_serving("stopping"))
            elif work.reply is not None and work.reply.ids:
                work.reply.end("ended")
            else:
                work.fail(silent(self._seconds))
        except Exception as error:
            if isinstance(error, BackendFailure) and work.reply is not None and work.reply.finish is not None:
                return  # the answer was delivered
            if isinstance(error, BackendFailure) and error.logged is not None:
                report("the backend vllm did not answer", error.logged)
            work.fail(error)
        finally:
            del self._works[task]
            work.end()

    # ---------------------------------------------------------------------------------------------------- `Tokens`

    def prepare(self, weights: Weights) -> str:
        """Export a sum if it is not there; see `LoadedAdapters.prepare`."""
        return self._adapters.prepare(weights)

    def release(self, adapter: str) -> None:
        """Let a sum go that was prepared."""
        self._adapters.release(adapter)

    async def write(
        self, adapter: str, prompt: Sequence[int], request: GenerationRequest, ends: Sequence[int], reply: Reply
    ) -> None:
        """Generate an answer behind a prompt; raises as `VllmClient.complete`."""
        wanted = Wanted(request.sampling, ends, heard=request.hear is not None)

        def hear(ids: Sequence[int]) -> bool:
            return any(reply.add(token, finite=True) for token in ids)

        finish = await self._adapters.asked(adapter, lambda: self._client.complete(adapter, prompt, wanted, hear))
        if finish is not None:
            reply.end("length" if finish == "length" else "stop")

    async def log_likelihoods(
        self, adapter: str, prompt: Sequence[int], answers: Sequence[Sequence[int]]
    ) -> list[float]:
        """Sums of log p of the tokens of each answer; raises as `VllmClient.log_likelihoods`."""
        return await self._adapters.asked(adapter, lambda: self._client.log_likelihoods(adapter, prompt, answers))


def _key() -> str | None:
    """The token that vLLM wants; None for nothing."""
    key = os.environ.get(KEY) or None
    if key is not None and not (key.isascii() and key.isprintable() and " " not in key):
        raise ConfigError(
            f"the environment variable {KEY} has a blank, a line end or another character that no token has",
            hint=f"set {KEY} to the key that vLLM was started with",
            unchanged="nothing was started",
        )
    return key


def _no_sums(snapshot: Snapshot) -> frozenset[str]:
    """The tasks and compositions whose records say that they are not sums of adapters."""
    adapters = adapters_in_order(snapshot)
    deployed = Deployed(enumerate(adapters))
    found = set()
    for task, own in zip(snapshot.tasks, adapters, strict=True):
        answers = deployed.after(len(adapters), own) or own
        if SELECTOR in answers.objects or TUNER in answers.metrics:
            found.add(task.name)
    for made in snapshot.compositions:
        try:
            weighed = COMPOSERS.load(made.mode).shelf is GATES
        except LorabankError:
            weighed = True
        if weighed:
            found.add(made.name)
    return frozenset(found)
