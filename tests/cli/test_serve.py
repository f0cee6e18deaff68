"""``lorabank serve`` before it serves: what is missing and what is refused."""

from __future__ import annotations

import socket
from typing import Any

import pytest
from lorabank_cli.commands import serve

from lorabank.core.machine.packages import install


def test_without_its_packages_it_says_what_to_install(run: Any, bank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "prometheus_client" else object())
    shown = run("serve")
    assert (shown.code, shown.out) == (7, "")
    assert "serve needs the package prometheus-client, which is not installed" in shown.err
    assert install("serve") in shown.err
    assert "nothing was started" in shown.err


def test_no_bank_is_served(run: Any) -> None:
    shown = run("serve", "--uds", "s")
    assert shown.code == 3
    assert "no bank at bank" in shown.err


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.1.2.3"])
def test_others_need_a_token(run: Any, bank: Any, host: str) -> None:
    shown = run("serve", "--host", host)
    assert shown.code == 2
    assert f"--host {host} can be reached from other machines, and there is no token" in shown.err


def test_a_token_file_that_holds_none(run: Any, bank: Any, empty_folder: Any) -> None:
    (empty_folder / "token").write_text("\n")
    shown = run("serve", "--token-file", "token", "--json")
    assert (shown.code, shown.document["error"]["kind"]) == (6, "DataError")


def test_a_socket_s_path_that_is_taken(run: Any, bank: Any, empty_folder: Any) -> None:
    (empty_folder / "s").write_text("mine")
    shown = run("serve", "--uds", "s")
    assert shown.code == 4
    assert "--uds s is there already, and it is not a socket" in shown.err
    assert "lorabank serve --uds PATH" in shown.err
    assert (empty_folder / "s").read_text() == "mine"


def test_a_token_file_that_cannot_be_read(run: Any, bank: Any, empty_folder: Any) -> None:
    shown = run("serve", "--token-file", ".")
    assert shown.code == 10
    assert "--token-file . cannot be read: Is a directory" in shown.err
    assert "nothing was started" in shown.err
    assert "lorabank serve --token-file FILE" in shown.err
    assert run("serve", "--token-file", "nowhere").code == 3


def test_a_host_that_cannot_be_a_name(run: Any, bank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORABANK_TOKEN", "a-token")
    monkeypatch.setattr(socket, "getaddrinfo", lambda host, *_, **__: host.encode("idna"))
    shown = run("serve", "--host", "a..b")
    assert shown.code == 2
    assert "--host a..b: not a name of a host" in shown.err
    assert "lorabank serve --help" in shown.err
