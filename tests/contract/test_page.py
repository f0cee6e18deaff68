"""The page: what each part shows, and whom it lets in; in this process, without a network."""

from __future__ import annotations

import re
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from lorabank import api
from lorabank.core.config import ComposeConfig, EvalConfig
from lorabank.core.errors import DamagedError
from lorabank.page.config import PageConfig
from lorabank.page.facts import Facts
from lorabank.page.rendering import NAVIGATION
from tests.contract.conftest import TASKS, Lab
from tests.contract.serving import Here

TOKEN = "a-token-of-the-tests"
FORM = {"content-type": "application/x-www-form-urlencoded"}
SCRIPT = "<script>alert(1)</script>"


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
    with Here(made, page=PageConfig(allow_changes=True)) as server:
        for path in (
            "/page/named/one",
            f"/page/named/{SCRIPT}",
            f"/page/try?who={SCRIPT}",
            f"/page/matrix?of={SCRIPT}",
        ):
            assert SCRIPT not in server.get(path).text
        assert "&lt;script&gt;" in server.get("/page/named/one").text
        assert server.get(f"/page/named/{SCRIPT}").status_code == 404
        assert server.get(f"/page/{SCRIPT}").status_code == 404
        assert SCRIPT not in ask(server, text=SCRIPT, who="one").text
        assert SCRIPT not in ask(server, text="a", who=SCRIPT).text


# --------------------------------------------------------------------------------------------------------- measured


def cells(text: str) -> list[list[str]]:
    """The texts of each row of the tables of a page."""
    rows = re.findall("<tr>(.*?)</tr>", text, re.S)
    return [[re.sub("<[^>]*>", "", one).strip() for one in re.findall("<t[hd].*?</t[hd]>", row, re.S)] for row in rows]


@pytest.fixture(scope="module")
def reports(bank: Path) -> Any:
    """What ``eval`` says of the subjects."""
    found = api.evaluate(bank, EvalConfig(all=True, forgetting_matrix=True, device="cpu"))
    assert [one.subject for one in found] == ["as-trained", "routed"]
    assert all(one.computed == 0 for one in found)
    return found


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_the_matrix_is_shown_up_to_a_stage(here: Here, reports: Any, stage: int) -> None:
    answer = here.get(f"/page/matrix?stage={stage}")
    check_shape(answer.text)
    values = reports[0].values
    expected = [[f"after {n} {TASKS[n - 1]}", *(f"{one:.3f}" for one in values[n][:n])] for n in range(1, stage + 1)]
    shown = [row[: len(values[0]) + 1] for row in cells(answer.text) if row[0].startswith("after ")]
    assert [row[: n + 1] for n, row in enumerate(shown[-stage:], start=1)] == expected
    average = sum(values[stage][:stage]) / stage
    assert f"average accuracy {average:.3f}" in answer.text
    if stage == 3:
        lost = [max(values[1][0], values[2][0]) - values[3][0], values[2][1] - values[3][1]]
        assert f"forgetting {sum(lost) / 2:.3f}." in answer.text
    for n in range(1, stage + 1):
        now, first = values[stage][n - 1], values[n][n - 1]
        row = next(row for row in cells(answer.text) if row[0] == TASKS[n - 1])
        assert (row[1], row[2], row[4]) == (f"{first:.3f}", f"{now:.3f}", f"{now - first:+.3f}")


def test_a_stage_that_is_not_there_is_the_nearest(here: Here) -> None:
    def told(stage: str) -> str:
        return re.findall('role="status">(.*?)</p>', here.get(f"/page/matrix?stage={stage}").text)[0]

    assert told("9999999") == told("3")
    assert told("-4") == told("1")
    assert here.get("/page/matrix?stage=x").status_code == 422
    assert here.get("/page/matrix?of=nowhere").status_code == 404


def test_routing_is_the_confusion_of_the_router(here: Here, reports: Any) -> None:
    text = here.get("/page/routing").text
    check_shape(text)
    confusion = reports[1].routing["confusion"]
    rows = {row[0]: row[1:] for row in cells(text)}
    for task, counts in zip(TASKS, confusion, strict=True):
        assert rows[task][:3] == [str(count) for count in counts]
        assert rows[task][3] == f"{counts[TASKS.index(task)] / sum(counts):.3f}"


def test_two_subjects_stand_side_by_side(here: Here, bank: Path, reports: Any) -> None:
    text = here.get("/page/compare").text
    check_shape(text)
    one, other = (report.values[-1] for report in reports)
    rows = {row[0]: row[1:] for row in cells(text)}
    for place, task in enumerate(TASKS[:3]):
        first, second, apart = rows[task][:3]
        assert (first[:5], second[:5]) == (f"{one[place]:.3f}", f"{other[place]:.3f}")
        assert apart == f"{one[place] - other[place]:+.3f}"
    first, second = re.findall("<option[^>]*>(.*?)</option>", text)[:2]
    assert f'<h2 id="by-task">{first} beside {second}</h2>' in text
    swapped = here.request("GET", "/page/compare", params={"one": second, "other": first}).text
    assert f'<h2 id="by-task">{second} beside {first}</h2>' in swapped
    assert f"lorabank -b {bank} eval --composition routed --against as-trained" in swapped
    other_way = {row[0]: row[3] for row in cells(swapped)[:5] if row[0] in TASKS}
    assert other_way == {task: f"{other[place] - one[place]:+.3f}" for place, task in enumerate(TASKS[:3])}
    assert here.get("/page/compare?one=nowhere").status_code == 404


def test_trainings_are_drawn(here: Here) -> None:
    text = here.get("/page/curves").text
    check_shape(text)
    assert all(f"{task}: loss from " in text for task in TASKS[:3])


@pytest.mark.parametrize("name", [*TASKS[:3], "routed"])
def test_each_task_and_composition_has_its_page(here: Here, name: str) -> None:
    answer = here.get(f"/page/named/{name}")
    assert answer.status_code == 200
    check_shape(answer.text)
    assert f"<h1>{'Composition' if name == 'routed' else 'Task'} {name}</h1>" in answer.text
    assert f'href="/page/named/{name}"' in here.get("/page/").text


def test_new_scores_are_shown_without_a_restart(lab: Lab, tmp_path: Path) -> None:
    made = Path(shutil.copytree(lab.bank("olora", 2), tmp_path / "bank"))
    with Here(made, page=PageConfig()) as server:
        assert "average accuracy –" in server.get("/page/matrix").text
        (report,) = api.evaluate(made, EvalConfig(device="cpu"))
        assert f"average accuracy {sum(report.values[2]) / 2:.3f}" in server.get("/page/matrix").text


def test_scores_that_cannot_be_read_leave_the_overview(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreadable(*_: Any) -> Any:
        raise DamagedError("/srv/secret is damaged")

    monkeypatch.setattr(Facts, "reports", unreadable)
    answer = here.get("/page/")
    assert (answer.status_code, "/srv/secret" in answer.text) == (200, False)
    assert "The stored scores cannot be shown: a stored file" in answer.text
    assert all(f">{task}</a>" in answer.text for task in TASKS[:3])
    matrix = here.get("/page/matrix")
    assert (matrix.status_code, "/srv/secret" in matrix.text) == (500, False)


def test_a_bank_without_scores_says_how_to_get_them(lab: Lab) -> None:
    bank = lab.bank("olora", 0)
    with Here(bank, page=PageConfig()) as server:
        assert f"lorabank -b {bank} eval --forgetting-matrix" in server.get("/page/matrix").text
        assert f"lorabank -b {bank} eval --all" in server.get("/page/compare").text
        assert f"lorabank -b {bank} compose --mode routed" in server.get("/page/routing").text
        assert f"lorabank -b {bank} add-task" in server.get("/page/").text


# ------------------------------------------------------------------------------------------------------------- asks


def ask(server: Here, **fields: str) -> Any:
    """The answer to the form of the box, as a browser sends it."""
    first = server.get("/page/try")
    browser = {"cookie": cookie_of(first)}
    return server.request("POST", "/page/try", data=fields | {"form_token": form_token(first.text)}, headers=browser)


@pytest.mark.parametrize("who", ["two", "routed"])
def test_the_box_answers_as_the_api_does(here: Here, who: str) -> None:
    (said,) = here.post("/v1/classify", {"model": who, "input": "a b c", "all_labels": True}).json()["data"]
    answer = ask(here, text="a b c", who=who, also="")
    assert answer.status_code == 200
    check_shape(answer.text)
    assert f'<p class="answer">{said["label"]}</p>' in answer.text
    assert f"Probability {said['probability']:.3f}." in answer.text
    rows = {row[0]: row[1] for row in cells(answer.text) if len(row) == 3}
    assert all(rows[label] == f"{share:.3f}" for label, share in said["labels"].items())
    told = said["lorabank"]
    assert f"ask <b>{told['task']}</b>" in answer.text
    assert ("The router chose" in answer.text) == (who == "routed")
    if who == "routed":
        assert f"margin of {told['margin']:.4g}" in answer.text
        assert all(rows[task] == f"{share:.3f}" for task, share in told["posterior"].items())


def test_two_answer_side_by_side(here: Here) -> None:
    answer = ask(here, text="a b c", who="one", also="three")
    assert re.findall('<h2 id="answer-.">(.*?)</h2>', answer.text) == ["one", "three"]


def test_what_cannot_be_asked_is_said(here: Here) -> None:
    for fields, status, said in [
        ({"text": "  ", "who": "one"}, 422, "Type a text to ask."),
        ({"text": "a", "who": "nowhere"}, 404, "There is no task or composition"),
        ({"text": "a \x00", "who": "one"}, 422, "A NUL character at position 3."),
    ]:
        answer = ask(here, **fields)
        assert answer.status_code == status
        assert said in answer.text
        check_shape(answer.text)


# ---------------------------------------------------------------------------------------------------------- changes


def send_note(server: Here, bank: Path, text: str) -> Any:
    """The answer to a note that a browser sends."""
    first = server.get("/page/try")
    data = {"note": text, "form_token": form_token(first.text)}
    return server.request("POST", "/page/note/one", data=data, headers={"cookie": cookie_of(first)})


def test_a_page_that_only_reads_refuses_changes_and_says_what_allows_them(here: Here, bank: Path) -> None:
    changes = len(api.history(bank))
    answer = send_note(here, bank, "changed")
    assert answer.status_code == 403
    assert "This page only reads: nothing was changed." in answer.text
    assert f"lorabank -b {bank} serve --page --allow-changes" in answer.text
    assert len(api.history(bank)) == changes
    assert "<textarea" not in here.get("/page/named/one").text


def test_a_note_is_written_where_changes_are_allowed(lab: Lab, tmp_path: Path) -> None:
    made = Path(shutil.copytree(lab.bank("olora", 1), tmp_path / "bank"))
    with Here(made, page=PageConfig(allow_changes=True)) as server:
        assert send_note(server, made, " seen ").headers["location"] == "/page/named/one"
        assert api.show(made, "one")["task"]["note"] == "seen"
        assert "seen</textarea>" in server.get("/page/named/one").text
        send_note(server, made, "")
        assert api.show(made, "one")["task"]["note"] is None
        unsent = server.request("POST", "/page/note/one", data={"note": "x", "form_token": "0"})
        assert unsent.status_code == 403
        assert api.show(made, "one")["task"]["note"] is None


def test_a_note_of_several_lines_stays_as_it_is_when_it_is_saved_again(lab: Lab, tmp_path: Path) -> None:
    """Browsers end lines with CR LF; the second text has a character that cannot be seen."""
    made = Path(shutil.copytree(lab.bank("olora", 1), tmp_path / "bank"))
    with Here(made, page=PageConfig(allow_changes=True)) as server:
        for text in ("first\nsecond\n\tthird", "\U0001f469\u200d\U0001f4bb writes"):
            send_note(server, made, text.replace("\n", "\r\n"))
            assert api.show(made, "one")["task"]["note"] == text
            assert f">\n{text}</textarea>" in server.get("/page/named/one").text
        answer = send_note(server, made, "x" * 2001)
        assert answer.status_code == 422
        assert "A note of 2001 characters; at most 2000 are allowed." in answer.text
        assert api.show(made, "one")["task"]["note"] == text


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
