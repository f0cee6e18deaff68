"""``lorabank ui``."""

from __future__ import annotations

import webbrowser
from threading import Thread
from typing import TYPE_CHECKING

from lorabank.core.escaping import safe
from lorabank.page.config import UiConfig
from lorabank_cli.commands.serve import PROGRAM, check_changes, check_packages
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.serving.run import Listening


@verb(
    "ui",
    configs={"Page": UiConfig},
    examples=("ui", "ui --allow-changes", "ui --no-browser --port 9000"),
)
def ui(run: Run) -> None:
    """Open the bank's page in the browser.

    The command starts a server for this machine alone, as serve --page does, and opens its page: tasks, adapters and
    compositions, what was forgotten after which task, how the router errs, and a box to ask the bank. Ctrl-C stops it.
    """
    config = run.config(UiConfig)
    check_changes(run, config, "ui")
    check_packages("ui")
    from lorabank.page.app import page_of
    from lorabank.serving.run import serve

    def started(listening: Listening) -> None:
        address = f"{listening.address}/page/"
        run.output.item({"address": address}, f"the page is at {safe(address)}; Ctrl-C stops it")
        if config.browser:
            Thread(target=webbrowser.open, args=(address,), daemon=True).start()

    with run.observer as observer:
        serve(run.bank, config.server, observer, started, page_of(run.bank, config, PROGRAM))
