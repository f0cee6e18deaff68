"""The server: where it listens, how it starts and how it ends."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from lorabank.core.errors import ConfigError, DataError, ExistsError, NotFoundError, StorageError
from lorabank.core.observer import Observer
from lorabank.serving.app import make_app
from lorabank.serving.catalogue import Catalogue
from lorabank.serving.config import TOKEN, ServeConfig
from lorabank.serving.engine import Engine
from lorabank.serving.limits import Gate, is_loopback
from lorabank.serving.metrics import Meter
from lorabank.serving.served import Served

_UNCHANGED = "nothing was started"
_KEEP_ALIVE = 75
"""Seconds that an idle connection stays open; clients that keep connections close them earlier."""


@dataclass(frozen=True)
class Listening:
    """Where a server listens.

    Attributes:
        address: For people and for clients: ``http://HOST:PORT``, or ``unix:PATH``.
        tasks: Names of the tasks that it serves as it starts.
        compositions: Names of the compositions.
    """

    address: str
    tasks: tuple[str, ...]
    compositions: tuple[str, ...]


def serve(path: str | Path, config: ServeConfig, observer: Observer, started: Callable[[Listening], None]) -> None:
    """Serve a bank until SIGTERM or SIGINT.

    At the first signal new calls are refused with 503 and those under way are finished, for `ServeConfig.grace`
    seconds; a second signal ends the server at once.

    Args:
        path: The bank's folder.
        config: Where it listens, and its limits.
        observer: Gets notices.
        started: Called when connections are taken; the model is loaded meanwhile.

    Raises:
        ConfigError: The address is not a loopback one and there is no token; or it is taken, or not of this machine.
        NotFoundError: There is no bank, or no file with the token.
        ExistsError: There is something at the path of the Unix socket.
        LorabankError: The model cannot be loaded.
    """
    token = read_token(config)
    if config.uds is None and token is None and not is_loopback(config.host):
        raise ConfigError(
            f"--host {config.host} can be reached from other machines, and there is no token",
            hint=f"set {TOKEN}, name a file with --token-file, or leave --host out",
            unchanged=_UNCHANGED,
        )
    catalogue, meter = Catalogue(path), Meter()
    listener = listen(config)
    try:
        engine = Engine(path, config, meter, observer.notice)
        local = config.uds is None and token is None
        gate = make_app(Served(engine, catalogue, config, meter), token=token, local=local)
        server = _Server(gate, config)
        engine.failed = server.end
        engine.start()
        snapshot = catalogue.look()
        names = tuple(task.name for task in snapshot.tasks), tuple(made.name for made in snapshot.compositions)
        started(Listening(_address(listener, config), *names))
        try:
            server.run(sockets=[listener])
        finally:
            engine.stop()
    finally:
        listener.close()
        if config.uds is not None:
            with suppress(FileNotFoundError):
                os.unlink(config.uds)
    if engine.failure is not None:
        raise engine.failure


class _Server(uvicorn.Server):
    """uvicorn, which at a signal first refuses new calls and finishes those under way."""

    def __init__(self, gate: Gate, config: ServeConfig) -> None:
        super().__init__(
            uvicorn.Config(
                gate,
                log_level="warning",
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=1,  # `on_tick` has waited for those under way
            )
        )
        self._gate = gate
        self._grace = config.grace

    def end(self) -> None:
        """Stop at once."""
        self.should_exit = self.force_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self._gate.closing:
            self.end()
        self._gate.closing = True

    async def on_tick(self, counter: int) -> bool:
        """Stop when the last call has ended after a signal, or the time for it is over."""
        if self._gate.closing and not self.should_exit:
            self._grace -= 0.1  # uvicorn ticks ten times a second
            self.should_exit = self._gate.open_calls == 0 or self._grace <= 0
        return await super().on_tick(counter)


def read_token(config: ServeConfig) -> str | None:
    """What callers must bring; None for nothing.

    Raises:
        NotFoundError: There is no such file.
        DataError: It holds no token, or characters that no header can hold.
    """
    if config.token_file is None:
        token, where = os.environ.get(TOKEN), f"the variable {TOKEN}"
        if token is None:
            return None
    else:
        where = config.token_file
        try:
            token = Path(config.token_file).read_text(encoding="utf-8")
        except OSError as error:
            message = f"--token-file {config.token_file} cannot be read: {error.strerror}"
            raise NotFoundError(message, unchanged=_UNCHANGED) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{where} is not UTF-8", unchanged=_UNCHANGED) from error
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise DataError(
            f"{where} holds no token: printable ASCII characters without blanks",
            hint="for example: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
            unchanged=_UNCHANGED,
        )
    return token


def listen(config: ServeConfig) -> socket.socket:
    """The socket that connections come to.

    Raises:
        ConfigError: The address cannot be listened on.
        ExistsError: There is something at the path of the Unix socket.
    """
    if config.uds is not None:
        return _listen_locally(config.uds)
    try:
        family, *_, address = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"--host {config.host}: {error.strerror}", unchanged=_UNCHANGED) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{config.host} port {config.port} cannot be listened on: {error.strerror}",
            hint="choose another --port; --port 0 takes a free one",
            unchanged=_UNCHANGED,
        ) from error
    return listener


def _listen_locally(path: str) -> socket.socket:
    """A Unix socket for this user alone; one that a dead server left is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.lexists(path):
            if not stat.S_ISSOCK(os.lstat(path).st_mode) or _answers(path):
                raise ExistsError(
                    f"--uds {path}: there is something already",
                    hint="choose another path, or stop the server that listens there",
                    unchanged=_UNCHANGED,
                )
            os.unlink(path)
        before = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(before)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        said = error.strerror or str(error)
        raise StorageError(f"--uds {path} cannot be listened on: {said}", unchanged=_UNCHANGED) from error
    except ExistsError:
        listener.close()
        raise
    return listener


def _answers(path: str) -> bool:
    """Whether a server listens at a Unix socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        try:
            caller.connect(path)
        except OSError:
            return False
    return True


def _address(listener: socket.socket, config: ServeConfig) -> str:
    if config.uds is not None:
        return f"unix:{config.uds}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
