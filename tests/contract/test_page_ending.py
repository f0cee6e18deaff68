"""What becomes of a command that the page runs when its server, a process on a Unix socket, gets SIGTERM."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path

import httpx
import psutil
import pytest

from tests.contract.conftest import Lab
from tests.contract.page import cookie_of, form_token
from tests.contract.serving import serving, until

pytestmark = pytest.mark.timeout(400)


def test_an_export_that_does_not_end_ends_with_the_server(lab: Lab, tmp_path: Path) -> None:
    bank = Path(shutil.copytree(lab.bank("olora", 1), tmp_path / "bank"))
    (tmp_path / "out").mkdir()
    words = ("--page", "--allow-changes", "--data-folder", str(tmp_path / "out"), "--grace", "0")
    answers: list[httpx.Response] = []
    with serving(bank, tmp_path, *words) as server, server.client() as client:
        cookie = {"cookie": cookie_of(client.get("/page/"))}
        sent = {
            "form_token": form_token(client.get("/page/named/one", headers=cookie).text),
            "name": "one",
            "folder": str(tmp_path / "out" / "one"),
        }
        call = threading.Thread(
            target=lambda: answers.append(client.post("/page/jobs/export", data=sent, headers=cookie))
        )
        call.start()
        process = psutil.Process(server.process.pid)
        until(process.children)
        (child,) = process.children()
        os.kill(child.pid, signal.SIGSTOP)  # it can do nothing more, and Ctrl-C does not reach it
        code, _, errors = server.end()
        call.join()
    assert (code, errors) == (0, "")
    assert [one.status_code for one in answers] == [503]
    assert not psutil.pid_exists(child.pid)
