"""The page: whom it lets in, what a browser may load, and which forms it takes; in this process, without a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorabank.page.config import PageConfig
from tests.contract.page import TOKEN, bank, check_shape, closed, cookie_of, form_token, here, logged_in
from tests.contract.serving import Here

__all__ = ["bank", "closed", "here"]

FORM = {"content-type": "application/x-www-form-urlencoded"}


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


def test_without_a_token_every_browser_gets_a_session(here: Here) -> None:
    first = here.get("/page/try")
    browser, token = {"cookie": cookie_of(first)}, form_token(first.text)
    again = here.get("/page/try", headers=browser)
    assert ("set-cookie" in again.headers, form_token(again.text)) == (False, token)
    assert here.request("POST", "/page/logout", data={"form_token": token}, headers=browser).status_code == 303
    assert here.request("POST", "/page/logout", data={"form_token": token}).status_code == 403
    assert here.get("/page/try", headers={"origin": "http://elsewhere.example"}).status_code == 403


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://localhost:9999"},
        {"origin": "https://elsewhere.example"},
        {"origin": "null"},
        {"origin": "http://[localhost"},
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


def test_a_proxy_that_changes_the_host_is_told_what_to_pass_on(closed: Here) -> None:
    browser = logged_in(closed)
    token = form_token(closed.get("/page/", headers=browser).text)
    sent = {"origin": "https://bank.example:8443", "sec-fetch-site": "same-origin"}
    answers = [
        closed.request("POST", path, data=data, headers=browser | sent)
        for path, data in (("/page/logout", {"form_token": token}), ("/page/login", {"token": TOKEN}))
    ]
    for answer in answers:
        assert answer.status_code == 403
        assert "The form is of https://bank.example:8443, and the header Host names localhost" in answer.text
        assert "a reverse proxy must pass Host on" in answer.text
    passed = sent | {"host": "bank.example:8443"}
    assert closed.request("POST", "/page/login", data={"token": TOKEN}, headers=passed).status_code == 303


def test_a_refusal_at_the_gate_is_a_page_for_browsers(bank: Path) -> None:
    """Each text is that of the API's answer, which stays JSON."""
    server = Here(bank, page=PageConfig(allow_changes=True), max_body=1024)
    large: dict[str, Any] = {"content": b"a" * 2000}
    elsewhere, cross = {"headers": {"host": "bank.example"}}, {"headers": {"sec-fetch-site": "cross-site"}}
    for path, sent, status, said in (
        ("/page/try", large, 413, "the body has more than 1024 bytes"),
        ("/page/", elsewhere, 403, "without a token the server answers only calls to localhost"),
        ("/page", elsewhere, 403, "without a token the server answers only calls to localhost"),
        ("/page/", cross, 403, "without a token the server answers no page of another site"),
    ):
        check_refusal(server.request("POST", path, **sent), status, said)
        api = server.request("POST", "/v1/classify", **sent)
        assert (api.status_code, api.json()["error"]["message"]) == (status, said)
    server.gate.closing = True
    stopping = server.get("/page/jobs")
    check_refusal(stopping, 503, "the server is stopping")
    assert stopping.headers["retry-after"] == "1"
    assert server.get("/v1/models").json()["error"]["message"] == "the server is stopping"


def check_refusal(answer: Any, status: int, said: str) -> None:
    assert (answer.status_code, answer.headers["connection"]) == (status, "close")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    assert answer.headers["cache-control"] == "no-store"
    assert "set-cookie" not in answer.headers
    assert f"{said[0].upper()}{said[1:]}." in answer.text
    check_shape(answer.text)


def test_a_refusal_has_the_navigation_of_a_known_session_alone(closed: Here) -> None:
    browser = logged_in(closed)
    known = closed.request("POST", "/page/try", headers=browser, content=b"a" * (2 << 20))
    assert (known.status_code, "/page/matrix" in known.text) == (413, True)
    closed.gate.closing = True
    unknown = closed.get("/page/login")
    closed.gate.closing = False
    assert (unknown.status_code, "/page/matrix" in unknown.text) == (503, False)


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


def test_servers_on_two_ports_have_sessions_of_their_own(here: Here) -> None:
    hosts = [{"host": f"localhost:{port}"} for port in (8001, 8002)]
    first = [here.get("/page/try", headers=host) for host in hosts]
    browser = {"cookie": "; ".join(map(cookie_of, first))}
    again = [here.get("/page/try", headers=host | browser) for host in hosts]
    assert not [one for one in again if "set-cookie" in one.headers]
    assert [form_token(one.text) for one in again] == [form_token(one.text) for one in first]


def test_a_body_without_a_session_is_not_read(bank: Path) -> None:
    sent: list[int] = []

    async def body() -> Any:
        for part in range(10):
            sent.append(part)
            yield b"a" * 1000

    with Here(bank, token=TOKEN, local=False, page=PageConfig(allow_changes=True)) as server:
        answer = server.request("POST", "/page/jobs/upload", content=body(), headers={"content-length": "10000"})
    assert (answer.status_code, answer.headers["location"], sent) == (303, "/page/login", [])
