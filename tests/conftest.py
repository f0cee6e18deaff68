"""What every test runs under: no network, one thread, none of the developer's own settings."""

from __future__ import annotations

import os
import socket
import tempfile
from typing import Any

import pytest

# Before anything imports torch or huggingface_hub, which read their settings once. A hub cache of the developer's
# would make "no network" mean different things on different machines, so the tests see an empty one.
_EMPTY_HUB = tempfile.TemporaryDirectory(prefix="lorabank-hub-")
os.environ.update(
    HF_HOME=_EMPTY_HUB.name,
    HF_HUB_OFFLINE="1",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="agg",
)
for name in [name for name in os.environ if name.startswith("LORABANK_") or name in ("HF_HUB_CACHE", "HF_TOKEN")]:
    del os.environ[name]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Internet sockets answer as on a machine without a network; local ones (AF_UNIX) work."""

    def refuse(address: Any) -> ConnectionError:
        return ConnectionError(f"a test tried to reach {address!r}: tests run without a network")

    def blocked(connect: Any) -> Any:
        def guarded(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                raise refuse(address)
            return connect(self, address)

        return guarded

    def no_lookup(host: Any, *_: Any, **__: Any) -> Any:
        raise refuse(host)

    monkeypatch.setattr(socket.socket, "connect", blocked(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", blocked(socket.socket.connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", no_lookup)
