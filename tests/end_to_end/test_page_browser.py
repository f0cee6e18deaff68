"""The page in a real browser: Chromium, by keyboard, in light and dark, on a phone, with and without JavaScript."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import lorabank
from lorabank import api
from lorabank.core.config import ComposeConfig, EvalConfig, PredictConfig
from lorabank.page.rendering import NAVIGATION
from tests.contract.conftest import TASKS, Lab
from tests.end_to_end.browsing import LOOKS, SHOTS, Browser, chromium, served, window

__all__ = ["chromium", "window"]

pytestmark = pytest.mark.end_to_end

PATHS = [place.path for place in NAVIGATION] + ["/page/named/two", "/page/named/routed", "/page/nowhere"]


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, save_base: Any) -> Path:
    folder = tmp_path_factory.mktemp("browsed")
    made = Path(Lab("bert", save_base(folder / "base"), folder).bank("olora", 3))
    api.compose(made, ComposeConfig(mode="routed", router="kmeans", device="cpu"))
    api.evaluate(made, EvalConfig(all=True, forgetting_matrix=True, device="cpu"))
    return made


@pytest.fixture(scope="module")
def address(bank: Path) -> Iterator[str]:
    with served(bank) as found:
        yield found


@pytest.mark.parametrize("window", [{"look": look} for look in LOOKS], ids=LOOKS, indirect=True)
def test_every_page_is_accessible_and_loads_nothing_from_elsewhere(window: Browser) -> None:
    page = window.page
    wide = page.evaluate("window.innerWidth")
    for path in PATHS:
        page.goto(path)
        page.evaluate("[...document.querySelectorAll('details')].slice(0, 20).forEach(one => one.open = true)")
        assert window.findings() == [], path
        assert page.evaluate("document.documentElement.scrollWidth") <= wide, path
        if SHOTS:
            name = (
                f"{path.strip('/').replace('/', '-')}-{wide}-{page.evaluate('getComputedStyle(document.body).color')}"
            )
            page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)
    assert [said for said in window.problems if "404" not in said] == []


def test_the_slider_shows_the_stages_by_keyboard(window: Browser) -> None:
    page = window.page
    page.goto("/page/matrix")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the content"
    page.keyboard.press("Enter")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "stage":
            break
    page.evaluate("window.same = true")
    page.keyboard.press("ArrowLeft")
    page.get_by_text(f"after task 2 of 3, {TASKS[1]}").wait_for()
    assert page.evaluate("window.same"), "the page was loaded again"
    assert page.url.endswith("stage=2")
    assert page.evaluate("document.activeElement.id") == "stage"
    assert window.findings() == []
    page.reload()
    assert page.locator("#stage").input_value() == "2"
    assert window.problems == []


def test_a_part_of_a_page_that_is_refused_shows_the_refusal(window: Browser) -> None:
    page = window.page
    page.goto("/page/try")
    page.locator("input[name=form_token]").last.evaluate("one => one.value = '0'")
    page.get_by_label("Text").fill("a")
    page.get_by_role("button", name="Ask").click()
    page.get_by_text("This form is too old").wait_for()
    page.goto("/page/matrix")
    window.context.clear_cookies()
    page.locator("#stage").press("ArrowLeft")
    page.get_by_label("Token of the server").wait_for()


@pytest.mark.parametrize("window", [{}, {"script": False}], ids=["script", "no-script"], indirect=True)
def test_the_box_says_what_the_bank_says(window: Browser, bank: Path) -> None:
    text = "a b c x y"
    with lorabank.open(bank) as session:
        (expected,) = session.predict([text], PredictConfig(composition="routed"))
    page = window.page
    page.goto("/page/try")
    page.get_by_label("Text").fill(text)
    page.get_by_label("What answers").select_option("routed")
    page.get_by_label("And beside it").select_option("two")
    page.get_by_role("button", name="Ask").click()
    page.locator(".answer").first.wait_for()
    assert page.locator(".answer").first.text_content() == expected.label
    assert page.locator("#answers b").first.text_content() == expected.task
    assert re.findall("answer-.", page.content())[-1] == "answer-2"
    assert window.problems == []


@pytest.mark.parametrize("window", [{"script": False}], ids=["no-script"], indirect=True)
def test_stages_and_subjects_can_be_chosen_without_javascript(window: Browser) -> None:
    page = window.page
    page.goto("/page/matrix")
    page.get_by_role("navigation", name="Stages").get_by_role("link").first.click()
    assert "after task 2 of 3" in page.get_by_role("status").text_content()
    page.get_by_label("What answers").select_option(index=1)
    page.get_by_role("button", name="Show").click()
    assert page.get_by_role("status").text_content().startswith("routed")


def test_a_note_is_saved_and_the_session_ends(window: Browser, bank: Path) -> None:
    page = window.page
    page.goto("/page/named/one")
    page.get_by_label("Text of the note").fill("<b>seen</b>")
    page.get_by_role("button", name="Save the note").click()
    page.wait_for_load_state()
    assert page.get_by_label("Text of the note").input_value() == "<b>seen</b>"
    assert api.show(bank, "one")["task"]["note"] == "<b>seen</b>"
    page.get_by_role("button", name="Log out").click()
    page.get_by_label("Token of the server").wait_for()
    page.goto("/page/matrix")
    assert page.url.endswith("/page/login")
    assert window.findings() == []
    assert window.problems == []
