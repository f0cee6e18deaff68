"""``lorabank ui`` and ``lorabank serve --page``: what they start, and what they refuse."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from lorabank_cli.commands import serve, ui

from lorabank.page.config import PageConfig
from lorabank.serving.app import Part
from lorabank.serving.config import ServeConfig
from lorabank.serving.run import Listening


class Started:
    """A server that takes connections and ends at once.

    Attributes:
        config: Its settings.
        page: What makes its page, or None.
    """

    config: ServeConfig
    page: Any

    def __call__(self, path: Any, config: ServeConfig, observer: Any, started: Any, page: Any = None) -> None:
        self.config, self.page = config, page
        started(Listening("http://127.0.0.1:4567", ("one",), ()))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Started:
    made = Started()
    monkeypatch.setattr("lorabank.serving.run.serve", made)
    return made


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a browser was to open."""
    found: list[str] = []
    monkeypatch.setattr(ui.webbrowser, "open", found.append)
    return found


def joined() -> None:
    for thread in threading.enumerate():
        if thread is not threading.current_thread() and thread.daemon:
            thread.join(1)


def test_ui_opens_the_page_of_a_server_for_this_machine(run: Any, bank: Any, server: Started, opened: Any) -> None:
    shown = run("ui")
    assert shown.code == 0
    assert "the page is at http://127.0.0.1:4567/page/; Ctrl-C stops it" in shown.out
    joined()
    assert opened == ["http://127.0.0.1:4567/page/"]
    assert (server.config.host, server.config.port, server.config.uds) == ("127.0.0.1", 0, None)


def test_ui_opens_no_browser_where_none_is_wanted(run: Any, bank: Any, server: Started, opened: Any) -> None:
    shown = run("ui", "--no-browser", "--port", "9000", "--json")
    assert shown.document == {"address": "http://127.0.0.1:4567/page/"}
    joined()
    assert opened == []
    assert server.config.port == 9000


@pytest.mark.parametrize(("words", "page"), [(["serve"], False), (["serve", "--page"], True), (["ui"], True)])
def test_the_page_is_there_where_it_is_asked_for(
    run: Any, bank: Any, server: Started, opened: Any, words: list[str], page: bool
) -> None:
    assert run(*words).code == 0
    assert (server.page is not None) == page


@pytest.mark.parametrize("words", [["serve", "--page"], ["ui", "--no-browser"]])
@pytest.mark.parametrize("changes", [False, True])
def test_the_page_changes_the_bank_only_where_that_is_allowed(
    run: Any, bank: Any, server: Started, monkeypatch: pytest.MonkeyPatch, words: list[str], changes: bool
) -> None:
    given: list[PageConfig] = []
    monkeypatch.setattr("lorabank.page.app.page_of", lambda path, config, program: given.append(config))
    assert run(*words, *(["--allow-changes"] if changes else [])).code == 0
    assert [one.allow_changes for one in given] == [changes]


def test_changes_are_about_the_page(run: Any, bank: Any) -> None:
    shown = run("serve", "--allow-changes")
    assert shown.code == 2
    assert "--allow-changes is about the page, and there is no page" in shown.err
    assert "--data-folder is about the page" in run("serve", "--data-folder", "rows").err
    assert "--max-upload is about the page" in run("serve", "--max-upload", "2048").err
    assert "serve --page --allow-changes" in shown.err
    assert "nothing was started" in shown.err


@pytest.mark.parametrize("words", [["serve", "--page"], ["ui", "--no-browser"]])
@pytest.mark.parametrize("given", [["--data-folder", "rows"], ["--max-upload", "2048"]])
def test_what_is_about_changes_needs_them(
    run: Any, bank: Any, server: Started, empty_folder: Any, words: list[str], given: list[str]
) -> None:
    (empty_folder / "rows").mkdir()
    shown = run(*words, *given)
    assert (shown.code, shown.out) == (2, "")
    assert f"{given[0]} is about changes of the bank, and the page only reads it" in shown.err
    assert "--allow-changes --data-folder FOLDER" in shown.err
    assert "nothing was started" in shown.err
    assert run(*words, *given, "--allow-changes").code == 0


def test_a_folder_of_a_variable_needs_changes_too(
    run: Any, bank: Any, server: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LORABANK_SERVE_DATA_FOLDER", "rows")
    assert "--data-folder is about changes of the bank" in run("serve", "--page").err


def test_without_its_packages_ui_says_what_to_install(run: Any, bank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "find_spec", lambda name: None)
    shown = run("ui")
    assert shown.code == 7
    assert "ui needs the package fastapi, which is not installed" in shown.err


def test_no_bank_has_no_page(run: Any) -> None:
    shown = run("ui")
    assert shown.code == 3
    assert "no bank at bank" in shown.err


def test_the_page_is_a_part_of_the_application(bank: Any) -> None:
    from lorabank.page.app import page_of

    made = page_of(bank.path, PageConfig())(None, None)  # type: ignore[arg-type]
    assert isinstance(made, Part)
    assert made.prefix == "/page"
