"""The page: what each part shows, and what it changes; in this process, without a network."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from lorabank import api
from lorabank.core.config import EvalConfig
from lorabank.core.errors import DamagedError
from lorabank.page.config import PageConfig
from lorabank.page.facts import Facts
from lorabank.page.rendering import NAVIGATION
from tests.contract.conftest import TASKS, Lab
from tests.contract.page import Shape, bank, check_shape, cookie_of, form_token, here
from tests.contract.serving import Here

__all__ = ["bank", "here"]

SCRIPT = "<script>alert(1)</script>"

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
    assert '<abbr title="backward_transfer.div_t. ' in text
    assert "backward transfer, div t</abbr>" in text
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
