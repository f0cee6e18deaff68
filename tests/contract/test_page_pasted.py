"""The commands that the page proposes, pasted into a shell: about this bank, whatever its folder is called."""

from __future__ import annotations

import html
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from lorabank.page.config import PageConfig
from tests.contract.conftest import Lab
from tests.contract.page import cookie_of, form_token
from tests.contract.serving import Here

NAMES = ["my bank", 'it\'s "mine"', "$HOME `id`", "-x", "--help", "two\nlines", "bänk 日本", "a\u202eb", "caf\udce9"]


def pasted(text: str) -> list[list[str]]:
    """The words that a shell makes of each command of a page."""
    lines = [html.unescape(one) for one in re.findall("<code>(lorabank .*?)</code>", text)]
    script = "lorabank() { printf '%s\\0' \"$@\" end; }\n" + "\n".join(lines)
    read = subprocess.run(["sh", "-c", script], capture_output=True, check=True, timeout=60).stdout
    words = os.fsdecode(read).split("\0end\0")[:-1]
    assert len(words) == len(lines) > 0
    return [one.split("\0") for one in words]


@pytest.mark.parametrize("name", NAMES)
def test_a_shell_takes_each_command_of_the_page(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    shutil.copytree(lab.bank("olora", 1), tmp_path / name)
    data = Path(shutil.copy(lab.data("two"), tmp_path / "two.jsonl"))
    monkeypatch.chdir(tmp_path)
    reads = Here(Path(name), page=PageConfig())
    changes = Here(Path(name), page=PageConfig(allow_changes=True, data_folders=(str(tmp_path),)))
    first = reads.get("/page/try")
    sent = {"data": {"form_token": form_token(first.text)}, "headers": {"cookie": cookie_of(first)}}
    new = ["add-task", "NAME", "--data", str(data)]
    for answer, words in (
        (reads.get("/page/"), ["compose", "--mode", "routed"]),
        (reads.request("POST", "/page/note/one", **sent), ["serve", "--page", "--allow-changes"]),
        (changes.get("/page/jobs/new", params={"data": str(data)}), new),
    ):
        assert ["-b", name, *words] in [one[: 2 + len(words)] for one in pasted(answer.text)], answer.url
