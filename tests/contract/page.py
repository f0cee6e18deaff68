"""A server with a page in this process, and what of its pages can be checked without a browser."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lorabank import api
from lorabank.core.config import ComposeConfig, EvalConfig
from lorabank.page.config import PageConfig
from tests.contract.conftest import Lab
from tests.contract.serving import Here

TOKEN = "a-token-of-the-tests"


@pytest.fixture(scope="module")
def bank(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Path(shutil.copytree(lab.bank("olora", 3), tmp_path_factory.mktemp("page") / "bank"))
    api.compose(made, ComposeConfig(mode="routed", router="kmeans", device="cpu"))
    api.evaluate(made, EvalConfig(all=True, forgetting_matrix=True, device="cpu"))
    return made


@pytest.fixture(scope="module")
def here(bank: Path) -> Any:
    with Here(bank, page=PageConfig()) as server:
        yield server


@pytest.fixture(scope="module")
def closed(bank: Path) -> Any:
    with Here(bank, token=TOKEN, local=False, page=PageConfig()) as server:
        yield server


class Shape(HTMLParser):
    """What of a page can be checked without a browser."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.headings: list[int] = []
        self.tags: list[str] = []
        self.links: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        for name, value in attrs:
            self.attributes.append((tag, name))
            if name == "id":
                self.ids.append(value or "")
            if name in ("href", "src", "action") or name.startswith("hx-"):
                self.links.append(value or "")


def check_shape(text: str) -> None:
    """Landmarks, ids, headings; nothing of another site, and nothing that the content security policy forbids."""
    shape = Shape(text)
    assert len(shape.ids) == len(set(shape.ids))
    assert shape.headings[0] == 1
    assert shape.headings.count(1) == 1
    assert all(later <= earlier + 1 for earlier, later in zip(shape.headings, shape.headings[1:], strict=False))
    assert shape.tags.count("main") == 1
    assert {"header", "nav", "footer"} <= {*shape.tags} or "Log in" in text
    assert not [link for link in shape.links if "//" in link]
    assert text.count("<script") == 1
    assert not [one for one in shape.attributes if one[1] == "style" or re.match("on[a-z]", one[1])]
    assert "<style" not in text


def cookie_of(answer: Any) -> str:
    """The name and value of the cookie that an answer gives."""
    return str(answer.headers["set-cookie"]).partition(";")[0]


def logged_in(server: Here) -> dict[str, str]:
    """The headers of a browser that has shown the token."""
    answer = server.request("POST", "/page/login", data={"token": TOKEN})
    assert (answer.status_code, answer.headers["location"]) == (303, "/page/")
    return {"cookie": cookie_of(answer)}


def form_token(text: str) -> str:
    """What the forms of a page hold."""
    found = re.search('name="form_token" value="([0-9a-f]{64})"', text)
    assert found
    return found[1]
