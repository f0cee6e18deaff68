"""A server in a test: the application in this process, asked without a network, or a process on a Unix socket."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from lorabank.page.app import page_of
from lorabank.page.config import PageConfig
from lorabank.serving.app import make_app
from lorabank.serving.backends.chosen import backend_of
from lorabank.serving.catalogue import Catalogue
from lorabank.serving.config import ServeConfig
from lorabank.serving.engine import Engine
from lorabank.serving.metrics import Meter
from lorabank.serving.served import Served

HOST = "http://localhost"


class Here:
    """The application without a socket.

    Args:
        bank: The bank.
        token: What callers must bring.
        local: Whether only calls to localhost are taken.
        page: What the page may do; None for no page.
        program: The words that start the command line, for a page that trains.
        config: Settings of the server.
    """

    def __init__(
        self,
        bank: Path,
        *,
        token: str | None = None,
        local: bool = True,
        page: PageConfig | None = None,
        program: Sequence[str] = (),
        **config: Any,
    ) -> None:
        self.notices: list[str] = []
        self.config = ServeConfig(device="cpu", **config)
        self.meter = Meter()
        catalogue = Catalogue(bank)
        backend = backend_of(bank, self.config, catalogue.look())
        self.engine = Engine(bank, self.config, self.meter, self.notices.append, backend)
        served = Served(self.engine, catalogue, self.config, self.meter)
        self.gate = make_app(served, token=token, local=local, page=page and page_of(bank, page, program))

    def __enter__(self) -> Here:
        self.engine.start()
        until(lambda: self.engine.ready or self.engine.failure is not None)
        return self

    def __exit__(self, *_: object) -> None:
        self.engine.stop()

    def get(self, path: str, **more: Any) -> httpx.Response:
        return self.request("GET", path, **more)

    def post(self, path: str, body: Any, **more: Any) -> httpx.Response:
        return self.request("POST", path, json=body, **more)

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        return self.together((method, path, more))[0]

    def together(self, *calls: tuple[str, str, dict[str, Any]]) -> list[httpx.Response]:
        """The answers to several calls that are under way at once."""

        async def ask() -> list[httpx.Response]:
            transport = httpx.ASGITransport(self.gate)
            async with httpx.AsyncClient(transport=transport, base_url=HOST, timeout=60) as client:
                return await asyncio.gather(*(client.request(method, path, **more) for method, path, more in calls))

        return asyncio.run(ask())


def until(true: Any, seconds: float = 60) -> None:
    """Wait until something is so."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.02)


class Process:
    """``lorabank serve --uds`` in a process of its own."""

    def __init__(self, bank: Path, path: Path, *words: str, **environment: str) -> None:
        self.socket = path
        command = [sys.executable, "-m", "lorabank_cli", "-b", str(bank), "serve", "--uds", str(path)]
        self.process = subprocess.Popen(
            [*command, "--device", "cpu", *words],
            env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def client(self, **more: Any) -> httpx.Client:
        """A client of the socket."""
        return httpx.Client(transport=httpx.HTTPTransport(uds=str(self.socket)), base_url=HOST, timeout=60, **more)

    def ready(self) -> None:
        """Wait until the model is loaded."""

        def answers() -> bool:
            assert self.process.poll() is None, self.process.communicate()
            if not listens(self.socket):  # httpx leaves the socket of a connection open that is refused
                return False
            with self.client() as client:
                return client.get("/ready").status_code == 200

        until(answers, 120)

    def end(self, by: int = signal.SIGTERM) -> tuple[int, str, str]:
        """The exit code after a signal, and both streams."""
        self.process.send_signal(by)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


def listens(path: Path) -> bool:
    """Whether a server takes connections at a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        try:
            caller.connect(str(path))
        except OSError:
            return False
    return True


@contextmanager
def serving(bank: Path, folder: Path, *words: str, **environment: str) -> Iterator[Process]:
    """A server process with its model loaded, which does not outlive the block."""
    server = Process(bank, folder / "s", *words, **environment)
    try:
        server.ready()
        yield server
    finally:
        server.process.kill()
        server.process.communicate()
