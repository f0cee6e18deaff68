"""A task is added in a real browser: rows, settings, live progress, answer; also by a browser without JavaScript."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.contract.conftest import Lab
from tests.end_to_end.browsing import SHOTS, Browser, chromium, served, window

__all__ = ["chromium", "window"]

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, save_base: Any) -> Lab:
    folder = tmp_path_factory.mktemp("added")
    return Lab("bert", save_base(folder / "base"), folder)


@pytest.fixture(scope="module")
def address(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a page that adds tasks to a bank of one task."""
    bank = Path(shutil.copytree(lab.bank("olora", 1), tmp_path_factory.mktemp("served") / "bank"))
    with served(bank, "--data-folder", str(lab.folder)) as found:
        yield found


def shot(window: Browser, name: str) -> None:
    if SHOTS:
        window.page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def begin(window: Browser, name: str, steps: int) -> None:
    """Fill in the form of a new task and start it."""
    page = window.page
    page.get_by_role("heading", name="A new task").wait_for()
    page.get_by_label("Name", exact=True).fill(name)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    for option, value in {
        "--max-steps": str(steps),
        "--save-steps": "5",
        "--device": "cpu",
        "--batch-size": "4",
    }.items():
        page.get_by_label(option, exact=True).fill(value)


def test_a_task_is_uploaded_trained_watched_and_asked(window: Browser, lab: Lab) -> None:
    page = window.page
    page.get_by_role("link", name="Add a task").click()
    page.get_by_label("Upload a file").set_input_files(lab.data("two"))
    page.get_by_role("button", name="Upload", exact=True).click()
    begin(window, "two", 100)
    assert page.get_by_role("cell", name="part0").or_(page.get_by_role("rowheader", name="part0")).count()
    assert window.findings() == []
    shot(window, "jobs-new")
    page.get_by_role("button", name="Start the training").click()
    page.get_by_role("heading", name="Training of two").wait_for()
    page.evaluate("window.same = true")
    page.get_by_text(re.compile(r"^\d+ of 100")).wait_for(timeout=280_000)
    assert page.evaluate("window.same")  # the script put it there: the page was not loaded again
    shot(window, "jobs-live")
    page.get_by_text("is in the bank").wait_for(timeout=280_000)
    assert window.findings() == []
    shot(window, "jobs-done")
    page.goto("/page/try")
    assert page.get_by_role("option", name=re.compile("^two")).count()
    assert [one for one in window.problems if "Password forms" not in one] == []


@pytest.mark.parametrize("window", [{"script": False}], indirect=True)
def test_without_javascript_the_page_refreshes_itself(window: Browser, lab: Lab) -> None:
    page = window.page
    page.goto("/page/jobs")
    page.get_by_label("Or a file of this machine").fill(str(lab.data("three")))
    page.get_by_role("button", name="Look at it").click()
    page.get_by_label("Name", exact=True).fill("three")
    page.get_by_role("button", name="Start the training").click()
    page.get_by_role("heading", name="Training of three").wait_for()
    page.get_by_text("is in the bank").wait_for(timeout=280_000)
    assert [one for one in window.problems if "Password forms" not in one] == []
