"""Where a server listens: addresses, Unix sockets, and the token that callers must bring."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from lorabank.core.errors import ConfigError, DataError, ExistsError, NotFoundError, StorageError
from lorabank.core.observer import SilentObserver
from lorabank.serving import run
from lorabank.serving.config import TOKEN, ServeConfig
from lorabank.serving.limits import is_loopback
from lorabank.serving.run import _listening, listen, read_token, serve
from tests.contract.conftest import Lab
from tests.contract.serving import Here


@pytest.fixture
def bank(lab: Lab, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lab.bank("olora", 1), tmp_path / "bank"))


def test_an_address_that_others_reach_needs_a_token(bank: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    with pytest.raises(ConfigError, match=r"0\.0\.0\.0 can be reached from other machines, and there is no token"):
        serve(bank, ServeConfig(host="0.0.0.0", device="cpu"), SilentObserver(), lambda listening: None)
    assert [host for host in ("localhost", "127.0.0.9", "::1") if not is_loopback(host)] == []
    assert [host for host in ("0.0.0.0", "::", "10.0.0.1", "example.org", "") if is_loopback(host)] == []


def test_where_a_token_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(TOKEN, raising=False)
    assert read_token(ServeConfig()) is None
    monkeypatch.setenv(TOKEN, "from-the-environment")
    assert read_token(ServeConfig()) == "from-the-environment"
    file = tmp_path / "token"
    with pytest.raises(NotFoundError, match="cannot be read"):
        read_token(ServeConfig(token_file=str(file)))
    file.write_text("from-a-file\n")
    assert read_token(ServeConfig(token_file=str(file))) == "from-a-file"
    for wrong in ("", " \n", "two words", "ümlaut", "a\x07b"):
        file.write_text(wrong)
        with pytest.raises(DataError, match="holds no token"):
            read_token(ServeConfig(token_file=str(file)))


def test_a_unix_socket_is_for_this_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "s"
    config = ServeConfig(uds=str(path))
    with listen(config):
        assert path.stat().st_mode & 0o777 == 0o600
        with pytest.raises(ExistsError, match="a server listens there already"):
            listen(config)
    with listen(config):  # the first one has died and left its path
        pass
    path.unlink()
    path.write_text("a file")
    with pytest.raises(ExistsError):
        listen(config)
    assert path.read_text() == "a file"
    with pytest.raises(StorageError, match="cannot be listened on"):
        listen(ServeConfig(uds=str(tmp_path / "none" / "s")))


def test_a_port_that_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, port, **_: [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port))]
    )
    with listen(ServeConfig(port=0)) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"127.0.0.1 port {port} cannot be listened on: {os.strerror(98)}"):
            listen(ServeConfig(port=port))


def test_only_a_socket_that_refuses_connections_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    config = ServeConfig(uds=str(path))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:  # alive, of another kind
        other.bind(str(path))
        with pytest.raises(StorageError, match="cannot be listened on"):
            listen(config)
        assert path.is_socket()
    path.unlink()
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as first:
        busy.bind(str(path))
        busy.listen(0)
        first.connect(str(path))  # its queue is full
        with pytest.raises(ExistsError, match="a server listens there already"):
            listen(config)
        assert path.is_socket()
    path.unlink()
    path.mkdir()
    with pytest.raises(ExistsError, match="is there already, and it is not a socket"):
        listen(config)
    with pytest.raises(ConfigError, match="is not a path"):
        listen(ServeConfig(uds=""))


def test_the_socket_of_another_server_is_left(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with _listening(ServeConfig(uds=str(path))):
        path.unlink()
        path.write_text("of another")
    assert path.read_text() == "of another"


def test_a_host_that_cannot_be_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: host.encode("idna"))
    for host in ("a..b", "a" * 64 + ".b"):
        with pytest.raises(ConfigError, match=r"--host a.*: not a name of a host"):
            listen(ServeConfig(host=host))


def test_a_token_file_that_cannot_be_read_is_there(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read: Is a directory") as caught:
        read_token(ServeConfig(token_file=str(tmp_path)))
    assert caught.value.commands


def test_of_two_servers_that_find_a_dead_socket_one_is_told_that_it_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second one must not delete what the first one has made of it."""
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(str(path))
    deleting, delete = threading.Barrier(2), os.unlink

    def unlink(name: str) -> None:
        with suppress(threading.BrokenBarrierError):  # none comes while the first one is at it
            deleting.wait(1)
        delete(name)

    def start() -> socket.socket | str:
        try:
            return listen(ServeConfig(uds=str(path)))
        except ExistsError as error:
            return error.message

    with ThreadPoolExecutor(2) as pool, monkeypatch.context() as patched:
        patched.setattr(os, "unlink", unlink)
        found = sorted(pool.map(lambda _: start(), range(2)), key=lambda one: isinstance(one, str))
    listener, refusal = found
    assert isinstance(listener, socket.socket)
    with listener:
        assert refusal == f"--uds {path}: a server listens there already"
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.connect(str(path))
            listener.accept()[0].close()


def test_a_folder_that_another_server_holds_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_PATIENCE", 0.0)
    with run._alone(str(tmp_path / "a")), pytest.raises(ExistsError, match="another server starts there"):
        listen(ServeConfig(uds=str(tmp_path / "b")))


# ------------------------------------------------------------------------------------------------- pages of others


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://localhost:3000"}, 200), ({"origin": "http://127.0.0.1"}, 200),
        ({"origin": "http://[::1]:8000"}, 200), ({"sec-fetch-site": "same-origin"}, 200),
        ({"sec-fetch-site": "none"}, 200), ({"origin": "https://evil.example"}, 403), ({"origin": "null"}, 403),
        ({"origin": ""}, 403), ({"origin": "http://localhost.evil.example"}, 403),
        ({"origin": "http://localhost@evil.example"}, 403), ({"sec-fetch-site": "cross-site"}, 403),
    ],
)  # fmt: skip
def test_a_browser_asks_for_no_page_of_another_site(idle: Here, headers: dict[str, str], status: int) -> None:
    answer = idle.get("/v1/models", headers=headers)
    assert answer.status_code == status
    assert idle.get("/health", headers=headers).status_code == status
    if status == 403:
        assert answer.json()["error"]["code"] == "origin"


def test_with_a_token_any_page_that_has_it_may_ask(idle: Here, lab: Lab) -> None:
    server = Here(lab.bank("olora", 1), token="s3cret", local=False)
    headers = {"origin": "https://page.example", "authorization": "Bearer s3cret"}
    assert server.get("/v1/models", headers=headers).status_code == 200


@pytest.fixture(scope="module")
def idle(lab: Lab) -> Here:
    """An application whose model is not loaded."""
    return Here(lab.bank("olora", 1))
