"""Write the pictures of the page that the documents show: ``python docs/screenshots.py BANK TEXT``.

It needs Chromium and the package playwright; the bank is only read.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

FIGURES = Path(__file__).parent / "figures"


def main(bank: str, text: str) -> None:
    """Ask the bank's page a text; take pictures of the answer and of the matrix."""
    command = [sys.executable, "-m", "lorabank_cli", "-b", bank, "--json", "ui", "--no-browser", "--device", "cpu"]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server,
        sync_playwright() as playwright,
    ):
        assert server.stdout is not None
        address = json.loads(server.stdout.readline())["address"]
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1100, "height": 900})
        page.set_default_timeout(120_000)
        page.goto(f"{address}try")
        while "being loaded" in page.content():
            page.wait_for_timeout(500)
            page.reload()
        page.get_by_label("Text").fill(text)
        page.get_by_role("button", name="Ask").click()
        page.locator(".answer").wait_for()
        page.screenshot(path=FIGURES / "page.png")
        page.goto(f"{address}matrix?stage=3")
        page.screenshot(path=FIGURES / "page-forgetting.png")
        browser.close()
        server.terminate()


if __name__ == "__main__":
    main(*sys.argv[1:])
