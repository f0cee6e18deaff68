"""Chromium and a served page to drive in it; what imports this is skipped where there is no browser."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
CHROMIUM = shutil.which("chromium")
if CHROMIUM is None:
    pytest.skip("there is no chromium", allow_module_level=True)

TOKEN = "a-token-of-the-tests"
SHOTS = os.environ.get("PAGE_SCREENSHOTS")
"""A folder for pictures of every page; none are made without it."""
LOOKS = {"light": ("light", 1280), "dark": ("dark", 1280), "phone": ("light", 400)}


@contextmanager
def served(bank: Path, *words: str) -> Iterator[str]:
    """The address of a page in a process of its own, whose token is asked for."""
    command = [sys.executable, "-m", "lorabank_cli", "-b", str(bank), "--json"]
    with subprocess.Popen(
        [*command, "ui", "--no-browser", "--allow-changes", "--device", "cpu", *words],
        env={**os.environ, "LORABANK_TOKEN": TOKEN, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            yield json.loads(server.stdout.readline())["address"].removesuffix("/page/")
        finally:
            server.terminate()
            assert server.wait(60) == 0


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


class Browser:
    """A window that is logged in, and what went wrong in it."""

    def __init__(self, chromium: Any, address: str, *, look: str = "light", script: bool = True) -> None:
        scheme, width = LOOKS[look]
        self.context = chromium.new_context(
            base_url=address,
            color_scheme=scheme,
            viewport={"width": width, "height": 800},
            java_script_enabled=script,
            reduced_motion="reduce",
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(60_000)
        self.problems: list[str] = []
        self.page.on("console", lambda said: self.problems.append(said.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda sent: sent.url.startswith(address) or self.problems.append(sent.url))
        self.page.goto("/page/")
        self.page.get_by_label("Token of the server").fill(TOKEN)
        self.page.keyboard.press("Enter")
        self.page.get_by_role("heading", name="Overview").wait_for()

    def findings(self) -> list[str]:
        """What axe finds on the page: rule and element."""
        self.page.evaluate(resources.files(axe).joinpath("axe.min.js").read_text(encoding="utf-8"))
        found = self.page.evaluate("axe.run()")["violations"]
        return [f"{one['id']}: {node['html'][:200]}" for one in found for node in one["nodes"]]


@pytest.fixture
def window(chromium: Any, address: str, request: pytest.FixtureRequest) -> Iterator[Browser]:
    opened = Browser(chromium, address, **getattr(request, "param", {}))
    yield opened
    opened.context.close()
