"""``lorabank serve``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from lorabank.core.commands import Command
from lorabank.core.errors import ConfigError, MissingExtraError
from lorabank.core.escaping import safe
from lorabank.core.machine.packages import install
from lorabank.page.config import PageConfig, ServePageConfig
from lorabank.serving.config import ServeConfig
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.serving.run import Listening

PROGRAM = (sys.executable, "-m", "lorabank_cli")
"""How the page starts a training: by this very command line."""
_OF_CHANGES = ("data_folders", "max_upload")
"""Settings of a page that changes the bank."""
_PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


@verb(
    "serve",
    configs={"Server": ServeConfig, "Page": ServePageConfig},
    examples=(
        "serve",
        "serve --port 9000 --max-new-tokens 256",
        "serve --page",
        "serve --uds /run/user/1000/lorabank.sock",
        "serve --host 0.0.0.0 --token-file token.txt",
        "serve --backend vllm=http://127.0.0.1:8001",
    ),
)
def serve(run: Run) -> None:
    """Answer over HTTP, as OpenAI's API does.

    Every task and composition is a model of /v1/models. /v1/chat/completions and /v1/completions answer with a label
    or with free text, which can be streamed; /v1/classify labels texts and /v1/route says which task would answer.
    Texts of different tasks share a batch. What other processes add to the bank is served within seconds. SIGTERM and
    Ctrl-C finish the calls under way. With --page, browsers find a page at /page/ that shows what the bank knows and
    forgot, and answers. With --backend, vLLM generates the text of a language model's tasks.
    """
    config, page = run.config(ServeConfig), run.config(ServePageConfig)
    if not page.page and (unused := _given(run, ("allow_changes", *_OF_CHANGES))):
        raise ConfigError(
            f"{unused} is about the page, and there is no page",
            hint="add --page",
            commands=[Command("serve", "--page", "--allow-changes")],
            unchanged="nothing was started",
        )
    check_changes(run, page, "serve", "--page")
    check_packages("serve")
    from lorabank.serving.run import serve as start

    made = None
    if page.page:
        from lorabank.page.app import page_of

        made = page_of(run.bank, page, PROGRAM)
    with run.observer as observer:
        start(run.bank, config, observer, lambda listening: run.output.item(listening, _line(listening)), made)


def check_changes(run: Run, config: PageConfig, *words: str) -> None:
    """Refuse settings that a page which only reads does not use.

    Args:
        run: The call.
        config: What the page may do.
        words: The command that starts the page.

    Raises:
        ConfigError: One was given.
    """
    if not config.allow_changes and (unused := _given(run, _OF_CHANGES)):
        raise ConfigError(
            f"{unused} is about changes of the bank, and the page only reads it",
            hint=f"add --allow-changes, or leave {unused} out",
            commands=[Command(*words, "--allow-changes", "--data-folder", "FOLDER")],
            unchanged="nothing was started",
        )


def _given(run: Run, names: Sequence[str]) -> str | None:
    """The first of some settings that was given, on the command line or elsewhere; None where none was."""
    given = (one for one in run.settings() if one.name in names and one.value and one.source != "default")
    return next((f"--{one.option}" for one in given), None)


def check_packages(command: str) -> None:
    """Refuse to serve without the packages of the extra.

    Raises:
        MissingExtraError: One of them is not installed.
    """
    if missing := [name.replace("_", "-") for name in _PACKAGES if find_spec(name) is None]:
        raise MissingExtraError(
            f"{command} needs the package {missing[0]}, which is not installed",
            hint=install("serve"),
            unchanged="nothing was started",
        )


def _line(listening: Listening) -> str:
    counts = {"task": len(listening.tasks), "composition": len(listening.compositions)}
    said = " and ".join(f"{count} {what}{'' if count == 1 else 's'}" for what, count in counts.items())
    return f"serving {said} at {safe(listening.address)}"
