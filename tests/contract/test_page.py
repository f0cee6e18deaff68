"""The page: what each part shows, and whom it lets in; in this process, without a network."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lorabank import api
from lorabank.core.config import ComposeConfig
from lorabank.page.config import PageConfig
from lorabank.page.rendering import NAVIGATION
from tests.contract.conftest import Lab
from tests.contract.serving import Here

TOKEN = "a-token-of-the-tests"
FORM = {"content-type": "application/x-www-form-urlencoded"}
SCRIPT = "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def bank(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = Path(shutil.copytree(lab.bank("olora", 3), tmp_path_factory.mktemp("page") / "bank"))
    api.compose(made, ComposeConfig(mode="routed", router="kmeans", device="cpu"))
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


# ------------------------------------------------------------------------------------------------------------ pages


@pytest.mark.parametrize("tasks", [0, 1, 3])
def test_every_page_of_a_bank_with_so_many_tasks(lab: Lab, tasks: int) -> None:
    with Here(lab.bank("olora", tasks), page=PageConfig()) as server:
        for place in NAVIGATION:
            answer = server.get(place.path)
            assert answer.status_code == 200, place
            check_shape(answer.text)
            assert f'<a href="{place.path}" aria-current="page">{place.title}</a>' in answer.text


def test_the_root_leads_to_the_page(here: Here) -> None:
    assert here.get("/").headers["location"] == "/page/"
    assert here.get("/page").headers["location"].endswith("/page/")


def test_without_the_option_there_is_no_page(bank: Path) -> None:
    with Here(bank) as server:
        assert [server.get(path).status_code for path in ("/", "/page/", "/page/static/page.css")] == [404] * 3


def test_what_pages_load_is_there(here: Here) -> None:
    text = here.get("/page/").text
    loaded = [link for link in Shape(text).links if "/static/" in link]
    assert len(loaded) == 3
    for link in loaded:
        answer = here.get(link)
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "max-age=3600"
    for missing in ("nowhere.css", "htmx.LICENSE", "..%2Fapp.py", "%2e%2e"):
        assert here.get(f"/page/static/{missing}").status_code == 404


def test_names_are_escaped(lab: Lab, tmp_path: Path) -> None:
    made = Path(shutil.copytree(lab.bank("olora", 1), tmp_path / "bank"))
    api.set_note(made, "one", SCRIPT)
    with Here(made, page=PageConfig()) as server:
        assert SCRIPT not in server.get("/page/").text
        missing = server.get(f"/page/{SCRIPT}")
        assert (missing.status_code, SCRIPT in missing.text) == (404, False)


# --------------------------------------------------------------------------------------------------------- security


def test_every_answer_has_the_headers(here: Here, closed: Here) -> None:
    answers = [here.get("/page/"), here.get("/page/nowhere"), here.get("/page/static/page.css"), closed.get("/page/")]
    answers += [closed.get("/page/login"), here.request("POST", "/page/logout", data={"a": "b"})]
    assert [one.status_code for one in answers] == [200, 404, 200, 303, 200, 403]
    for one in answers:
        policy = dict(part.split(" ", 1) for part in one.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'self'"
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in one.headers["content-security-policy"]
        assert one.headers["x-content-type-options"] == "nosniff"


def test_the_token_opens_a_session(closed: Here) -> None:
    first = closed.get("/page/matrix")
    assert (first.status_code, first.headers["location"]) == (303, "/page/login")
    form = closed.get("/page/login")
    assert form.status_code == 200
    check_shape(form.text)
    wrong = closed.request("POST", "/page/login", data={"token": "another"})
    assert (wrong.status_code, "set-cookie" in wrong.headers) == (401, False)
    assert "not the token" in wrong.text
    answer = closed.request("POST", "/page/login", data={"token": TOKEN})
    attributes = {part.strip() for part in answer.headers["set-cookie"].split(";")[1:]}
    assert {"HttpOnly", "SameSite=Strict", "Path=/page"} <= attributes
    assert TOKEN not in answer.headers["set-cookie"]
    browser = {"cookie": cookie_of(answer)}
    assert closed.get("/page/", headers=browser).status_code == 200
    assert closed.get("/page/", headers={"authorization": f"Bearer {TOKEN}"}).status_code == 200


def test_a_session_opens_the_page_alone(closed: Here) -> None:
    browser = logged_in(closed)
    for path in ("/v1/bank", "/v1/models", "/metrics", "/pages", "/page.css"):
        assert closed.get(path, headers=browser).status_code == 401
    assert closed.post("/v1/classify", {"model": "one", "input": "a"}, headers=browser).status_code == 401


def test_another_s_session_opens_nothing(closed: Here, bank: Path) -> None:
    name, _, cookie = logged_in(closed)["cookie"].partition("=")
    begun, nonce, mac = cookie.split(".")
    others = [
        f"{int(begun) + 1}.{nonce}.{mac}",
        f"{begun}.{nonce}x.{mac}",
        f"{begun}.{nonce}.{mac[:-1]}",
        "",
        "..",
        "a",
    ]
    for other in others:
        assert closed.get("/page/", headers={"cookie": f"{name}={other}"}).status_code == 303
    with Here(bank, token=f"{TOKEN}2", local=False, page=PageConfig()) as server:
        assert server.get("/page/", headers={"cookie": f"{name}={cookie}"}).status_code == 303


def test_a_session_ends(closed: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    browser = logged_in(closed)
    now = __import__("time").time()
    monkeypatch.setattr("lorabank.page.security.time.time", lambda: now + 12 * 3600 - 60)
    assert closed.get("/page/", headers=browser).status_code == 200
    monkeypatch.setattr("lorabank.page.security.time.time", lambda: now + 12 * 3600 + 60)
    assert closed.get("/page/", headers=browser).status_code == 303


def test_logging_out_needs_the_form_and_takes_the_cookie_back(closed: Here) -> None:
    browser = logged_in(closed)
    token = form_token(closed.get("/page/", headers=browser).text)
    assert closed.request("POST", "/page/logout", data={"form_token": "0" * 64}, headers=browser).status_code == 403
    gone = closed.request("POST", "/page/logout", data={"form_token": token}, headers=browser)
    assert gone.status_code == 303
    assert gone.headers["set-cookie"].startswith("lorabank=; Path=/page; Max-Age=0;")


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://localhost:9999"},
        {"origin": "https://elsewhere.example"},
        {"origin": "null"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "cross-site"},
    ],
)
def test_forms_of_other_sites_are_refused(closed: Here, headers: dict[str, str]) -> None:
    browser = logged_in(closed)
    token = form_token(closed.get("/page/", headers=browser).text)
    sent = {"data": {"form_token": token}, "headers": browser | headers}
    assert closed.request("POST", "/page/logout", **sent).status_code == 403
    assert closed.request("POST", "/page/login", data={"token": TOKEN}, headers=headers).status_code == 403
    same = {"origin": "http://localhost", "sec-fetch-site": "same-origin"}
    assert closed.request("POST", "/page/logout", **(sent | {"headers": browser | same})).status_code == 303


def test_a_body_that_is_no_form_is_refused(here: Here) -> None:
    answers = [
        here.request("POST", "/page/logout", content=content, headers=headers).status_code
        for content, headers in [
            (b"{}", {"content-type": "application/json"}),
            (b"", {}),
            ("\u00e4=1".encode(), FORM),
            (b"a=1&" * 300, FORM),
            (b"a=%ff", FORM),
        ]
    ]
    assert answers == [415, 415, 400, 400, 400]
