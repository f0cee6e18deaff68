"""The server: where it listens, how it starts and how it ends."""

from __future__ import annotations

import fcntl
import os
import socket
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import uvicorn

from lorabank.core.commands import Command
from lorabank.core.errors import ConfigError, DataError, ExistsError, NotFoundError, StorageError
from lorabank.core.observer import Observer
from lorabank.serving.app import Part, make_app
from lorabank.serving.backends.chosen import backend_of
from lorabank.serving.catalogue import Catalogue
from lorabank.serving.config import TOKEN, ServeConfig
from lorabank.serving.engine import Engine
from lorabank.serving.limits import Gate, is_loopback
from lorabank.serving.metrics import Meter
from lorabank.serving.served import Served

_UNCHANGED = "nothing was started"
_HELP = Command("serve", "--help")
_ELSEWHERE = Command("serve", "--port", "0")
_OTHER_PATH = Command("serve", "--uds", "PATH")
_WAITING = 2048
"""Connections that wait to be taken."""
_PATIENCE = 5.0
"""Seconds that a server waits for another one that starts or ends in the same folder."""
_LAST_SECOND = 1.0
"""Seconds that the model's thread and the last answers have at the end."""
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


def serve(
    path: str | Path,
    config: ServeConfig,
    observer: Observer,
    started: Callable[[Listening], None],
    page: Callable[[Served, str | None], Part] | None = None,
) -> None:
    """Serve a bank until SIGTERM or SIGINT.

    At the first signal new calls are refused with 503 and those under way are finished, for `ServeConfig.grace`
    seconds. Then, or at a second signal, those that are left are refused with 503 too, and the server ends.

    Args:
        path: The bank's folder.
        config: Where it listens, and its limits.
        observer: Gets notices.
        started: Called when connections are taken; the model is loaded meanwhile.
        page: As of `make_app`.

    Raises:
        ConfigError: The address is not a loopback one and there is no token; or it is taken, or not of this machine;
            or as of `backend_of`, with its IncompatibleError and MissingExtraError.
        NotFoundError: There is no bank, or no file with the token.
        DataError: The token cannot be used.
        ExistsError: There is something at the path of the Unix socket.
        StorageError: The file with the token, or the Unix socket, cannot be used.
        LorabankError: The model cannot be loaded.
    """
    token = read_token(config)
    if config.uds is None and token is None and not is_loopback(config.host):
        raise ConfigError(
            f"--host {config.host} can be reached from other machines, and there is no token",
            hint=f"set {TOKEN}, name a file with --token-file, or leave --host out",
            commands=[Command("serve", "--host", config.host, "--token-file", "FILE")],
            unchanged=_UNCHANGED,
        )
    catalogue, meter = Catalogue(path), Meter()
    snapshot = catalogue.look()
    names = tuple(task.name for task in snapshot.tasks), tuple(made.name for made in snapshot.compositions)
    engine = Engine(path, config, meter, observer.notice, backend_of(path, config, snapshot))
    local = config.uds is None and token is None
    gate = make_app(Served(engine, catalogue, config, meter), token=token, local=local, page=page)
    server = _Server(gate, engine, config)
    with _listening(config) as listener, server.capture_signals():
        try:
            engine.start()
            started(Listening(_address(listener, config), *names))
            server.run(sockets=[listener])
        finally:
            engine.stop(_LAST_SECOND)
    if engine.failure is not None:
        raise engine.failure


class _Server(uvicorn.Server):
    """uvicorn, which at a signal first refuses new calls and finishes those under way."""

    def __init__(self, gate: Gate, engine: Engine, config: ServeConfig) -> None:
        super().__init__(
            uvicorn.Config(
                gate,
                log_config=None,  # it would close the handlers of whoever else logs in this process
                log_level="warning",
                access_log=False,
                lifespan="off",
                ws="none",
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=1,  # `on_tick` has waited for those under way
            )
        )
        self._gate, self._engine, self._grace = gate, engine, config.grace
        self._last: float | None = None
        engine.failed = self.end

    def end(self) -> None:
        """Refuse all calls and stop; from any thread."""
        self._gate.closing, self._last = True, 0.0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal."""
        if self._gate.closing:
            self.end()
        else:
            self._gate.closing, self._last = True, time.monotonic() + self._grace

    async def on_tick(self, counter: int) -> bool:
        """Stop when the last call has ended after a signal; refuse those that are left when the time is over."""
        if self._last is not None and not self.should_exit:
            if time.monotonic() >= self._last:
                self._engine.refuse()
                self._gate.end()
                self.should_exit = True
            self.should_exit |= self._gate.open_calls == 0
        return await super().on_tick(counter)


def read_token(config: ServeConfig) -> str | None:
    """What callers must send; None for nothing.

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
            kind = NotFoundError if isinstance(error, FileNotFoundError | NotADirectoryError) else StorageError
            raise kind(
                f"--token-file {config.token_file} cannot be read: {error.strerror}",
                hint="name a file that holds the token and that you may read",
                commands=[Command("serve", "--token-file", "FILE")],
                unchanged=_UNCHANGED,
            ) from error
        except UnicodeDecodeError as error:
            raise _no_token(f"--token-file {where} is not UTF-8") from error
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise _no_token(f"{where} holds no token: printable ASCII characters without blanks")
    return token


def _no_token(message: str) -> DataError:
    return DataError(
        message,
        hint="make one: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
        commands=[Command("serve", "--token-file", "FILE")],
        unchanged=_UNCHANGED,
    )


@contextmanager
def _listening(config: ServeConfig) -> Iterator[socket.socket]:
    """A block with the socket that connections come to; the path of a Unix socket goes with it."""
    listener = listen(config)
    own = None if config.uds is None else _file(config.uds)
    try:
        yield listener
    finally:
        if config.uds is not None and own is not None:
            with suppress(OSError, ExistsError), _alone(config.uds):
                if _file(config.uds) == own:
                    os.unlink(config.uds)
        listener.close()


def listen(config: ServeConfig) -> socket.socket:
    """The socket that connections come to.

    Raises:
        ConfigError: The address cannot be listened on.
        ExistsError: There is something at the path of the Unix socket.
        StorageError: The Unix socket cannot be made.
    """
    return _listen_at(config.host, config.port) if config.uds is None else _listen_locally(config.uds)


def _address(listener: socket.socket, config: ServeConfig) -> str:
    """For people and for clients: ``http://HOST:PORT``, or ``unix:PATH``."""
    if config.uds is not None:
        return f"unix:{config.uds}"
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _listen_at(host: str, port: int) -> socket.socket:
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # a part of the name is empty or too long
        said = error.strerror if isinstance(error, OSError) else "not a name of a host"
        raise ConfigError(
            f"--host {host}: {said}",
            hint="give an address of this machine",
            commands=[_HELP],
            unchanged=_UNCHANGED,
        ) from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return _taking(listener, address)
    except OSError as error:
        raise ConfigError(
            f"{host} port {port} cannot be listened on: {error.strerror}",
            hint="choose another --port; --port 0 takes a free one",
            commands=[_ELSEWHERE],
            unchanged=_UNCHANGED,
        ) from error


def _listen_locally(path: str) -> socket.socket:
    """A Unix socket for this user alone; one that a dead server left is replaced."""
    if not path:
        raise ConfigError("--uds '' is not a path", commands=[_OTHER_PATH], unchanged=_UNCHANGED)
    try:
        with _alone(path):
            _make_room(path)
            before = os.umask(0o177)
            try:
                return _taking(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path)
            finally:
                os.umask(before)
    except OSError as error:
        raise StorageError(
            f"--uds {path} cannot be listened on: {error.strerror or error}",
            hint="choose a path of at most 100 bytes, in a folder that you may write",
            commands=[_OTHER_PATH],
            unchanged=_UNCHANGED,
        ) from error


def _taking(listener: socket.socket, address: Any) -> socket.socket:
    """The socket, bound and taking connections; closed where it cannot be."""
    try:
        listener.bind(address)
        listener.listen(_WAITING)
    except BaseException:
        listener.close()
        raise
    return listener


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """A block in which no other server makes or deletes a socket in this folder: two could find the same dead one.

    The lock is the folder's, which leaves no file, and ends with its process.

    Raises:
        ExistsError: Another server does not let go of it.
        OSError: There is no such folder, or it cannot be read.
    """
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        last = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > last:
                    raise _in_use(f"--uds {path}: another server starts there", "choose another path") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(folder)


def _make_room(path: str) -> None:
    """Delete the socket of a dead server, which refuses connections; anything else stays.

    Raises:
        ExistsError: There is something else.
        OSError: The socket does not say, or cannot be deleted.
    """
    if not os.path.lexists(path):
        return
    if not stat.S_ISSOCK(os.lstat(path).st_mode):
        raise _in_use(f"--uds {path} is there already, and it is not a socket", "choose another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
        caller.settimeout(1)
        try:
            caller.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except (TimeoutError, BlockingIOError):  # its queue of connections is full
            pass
    raise _in_use(f"--uds {path}: a server listens there already", "choose another path, or stop that server")


def _in_use(message: str, hint: str) -> ExistsError:
    return ExistsError(message, hint=hint, commands=[_OTHER_PATH], unchanged=_UNCHANGED)


def _file(path: str) -> tuple[int, int] | None:
    """Which file is at a path; None for none."""
    try:
        found = os.lstat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino
