"""Tasks that are added from the page: rows, settings, dry run, start, live progress, cancel, resume, export."""

from __future__ import annotations

import gzip
import html
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.bank.progress import FILE, ProgressFile
from lorabank.core.errors import DamagedError
from lorabank.page.config import PageConfig
from tests.contract.conftest import SETTINGS, Lab
from tests.contract.page import check_shape, cookie_of, form_token
from tests.contract.serving import Here, until

JOBS = "/page/jobs"
EVIL = "<script>alert('x')</script>"
LONG = 400.0
"""Seconds for a training in a process of its own: it imports all that trains, and others may have the processor."""
pytestmark = pytest.mark.timeout(3 * LONG)
QUICK = {name: str(value) for name, value in SETTINGS.items()}


class Browser:
    """A browser without a window that has a session of the page."""

    def __init__(self, server: Here) -> None:
        self.server = server
        first = server.get(JOBS)
        self.headers = {"cookie": cookie_of(first)}
        self.token = form_token(self.get(JOBS).text) if "form_token" in first.text else ""

    def get(self, path: str, **more: Any) -> Any:
        return self.server.get(path, headers=self.headers, **more)

    def post(self, path: str, **fields: str) -> Any:
        fields = {"form_token": self.token, **fields}
        return self.server.request("POST", f"{JOBS}{path}", data=fields, headers=self.headers)

    def upload(self, name: str, data: bytes, **fields: str) -> Any:
        fields = {"form_token": self.token, **fields}
        file = {"file": (name, data)}
        return self.server.request("POST", f"{JOBS}/upload", data=fields, files=file, headers=self.headers)

    def begin(self, action: str, data: Path, name: str = "two", **fields: str) -> Any:
        given = {"sent": "yes", **QUICK, "data": str(data), "name": name, "action": action}
        return self.post("/new", **given | fields)

    def state(self, name: str = "two") -> str:
        found = re.search("State: <strong>([a-z]+)</strong>", self.get(f"{JOBS}/of/{name}").text)
        return found[1] if found else "none"


@pytest.fixture
def bank(lab: Lab, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lab.bank("olora", 1), tmp_path / "bank"))


@pytest.fixture
def data(lab: Lab, tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    return Path(shutil.copy(lab.data("two"), folder / "two.jsonl"))


@pytest.fixture
def server(bank: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Here]:
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    page = PageConfig(allow_changes=True, data_folders=(str(data.parent),), max_upload=4096)
    found = Here(bank, page=page, program=(sys.executable, "-m", "lorabank_cli"))
    yield found  # its model is not needed
    browser = Browser(found)
    for name in re.findall(f'href="{JOBS}/of/([a-z]+)"', browser.get(JOBS).text):
        browser.post(f"/of/{name}/cancel")
        until(lambda name=name: browser.state(name) not in ("waiting", "running"))


@pytest.fixture
def browser(server: Here) -> Browser:
    return Browser(server)


def ended(browser: Browser, name: str = "two") -> str:
    until(lambda: browser.state(name) not in ("waiting", "running"), LONG)
    return browser.state(name)


def stepped(bank: Path) -> bool:
    """Whether a training has a checkpoint."""
    return bool(list(bank.glob("work/*/checkpoint-*")))


# ------------------------------------------------------------------------------------------------ rows and settings


def test_a_file_is_uploaded_looked_at_and_learnt(browser: Browser, bank: Path, data: Path) -> None:
    answer = browser.upload(EVIL + ".jsonl", data.read_bytes())
    assert answer.status_code == 303
    look = browser.get(answer.headers["location"])
    assert look.status_code == 200
    text = html.unescape(look.text)
    kept = json.loads("[" + ",".join(data.read_text().splitlines()) + "]")
    assert kept[0]["text"] in text or kept[1]["text"] in text
    for label in ("part0", "part1", "part2"):
        assert f'<th scope="row">{label}</th>' in look.text
    assert "<dd>classification</dd>" in look.text
    (path,) = bank.glob("work/page/uploads/*")
    assert EVIL not in look.text
    assert html.escape(EVIL, quote=False).replace("'", "&#39;") in look.text
    answer = browser.begin("start", path)
    assert (answer.status_code, answer.headers["location"]) == (303, f"{JOBS}/of/two")
    assert browser.begin("start", path).status_code == 409
    events = browser.get(f"{JOBS}/of/two/events")  # they end when the training's state is another
    assert events.headers["content-type"].startswith("text/event-stream")
    names = re.findall("^event: (.*)$", events.text, re.MULTILINE)
    assert set(names[:-1]) <= {"progress"}
    assert names[-1] == "state"
    assert ended(browser) == "done"
    page = browser.get(f"{JOBS}/of/two").text
    assert "The task two is in the bank" in page
    assert "added task two (number 2)" in page
    record = Bank.open(bank).snapshot().adapter_of("two")
    assert {name: record.config[name] for name in SETTINGS} == SETTINGS
    assert not list(bank.glob(f"work/*/{FILE}"))


def test_a_dry_run_is_of_the_command_that_is_shown_and_changes_nothing(
    browser: Browser, bank: Path, data: Path
) -> None:
    answer = browser.begin("dry-run", data, r="3", savings="dropbp", lora_alpha="32")
    assert answer.status_code == 200
    check_shape(answer.text)
    (line,) = (html.unescape(one) for one in re.findall("<code>(lorabank .*?)</code>", answer.text))
    assert shlex.split(line) == [
        "lorabank", "-b", str(bank), "add-task", "two", "--data", str(data), "--eval-fraction", "0.5",
        "--keep-samples", "8", "--clusters-per-task", "2", "--saving", "dropbp", "--r", "3", "--epochs",
        "2.0", "--batch-size", "4", "--learning-rate", "0.01", "--device", "cpu",
    ]  # fmt: skip
    assert "would train task two" in answer.text
    assert re.search(r"\nr +3 +flag\n", answer.text)
    assert [task.name for task in Bank.open(bank).snapshot().tasks] == ["one"]
    assert not Bank.open(bank).operations()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"r": "0"}, "r = "), ({"name": "One!"}, "cannot be a name"), ({"name": "one"}, "there is a task one already"),
        ({"name": "--help"}, "cannot be a name"), ({"text_column": EVIL}, "alert"), ({"set": "a.b=c"}, "--set"),
        ({"variant": "lora-xs"}, "do not go together"), ({"replace": "on"}, "could replace"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_and_nothing_starts(
    browser: Browser, bank: Path, data: Path, fields: dict[str, str], said: str
) -> None:
    answer = browser.begin("start", data, **fields)
    assert answer.status_code == 422
    assert said in html.unescape(answer.text)
    assert EVIL not in answer.text
    assert "No training is under way" in browser.get(JOBS).text


def test_lines_of_a_setting_stay_as_they_are(browser: Browser, data: Path) -> None:
    """Browsers end lines with CR LF."""
    answer = browser.begin("check", data, map="a=text\r\nb=label")
    assert ">\na=text\nb=label</textarea>" in answer.text
    assert "--map a=text --map b=label" in html.unescape(answer.text)


def test_rows_that_cannot_be_read_are_said(browser: Browser, data: Path) -> None:
    data.write_text('{"text": "a", "label": "x"}\n{"text": "' + EVIL + '", "lab')
    answer = browser.get(f"{JOBS}/new", params={"data": str(data)})
    assert answer.status_code == 200
    assert "line 2" in answer.text
    assert EVIL not in answer.text


def test_a_packed_file_is_uploaded_and_listed_as_add_task_reads_it(browser: Browser, data: Path) -> None:
    packed = gzip.compress(data.read_bytes())
    answer = browser.upload("Two.JSONL.gz", packed)
    assert answer.status_code == 303
    assert "part0" in browser.get(answer.headers["location"]).text
    (data.parent / "more.csv.gz").write_bytes(packed)
    assert "more.csv.gz" in browser.get(JOBS).text
    assert browser.upload("two.gz", packed).status_code == 422


def test_cells_and_labels_are_escaped(browser: Browser, data: Path) -> None:
    rows = [{"text": f"{EVIL} {i} \x1b[31m\u202e", "label": f"<b onclick=x>{i % 2}"} for i in range(20)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    answer = browser.get(f"{JOBS}/new", params={"data": str(data)})
    assert "&lt;b onclick=x&gt;0" in answer.text
    assert not {EVIL, "<b onclick", "\x1b", "\u202e"} & {found for found in (EVIL, "<b onclick", "\x1b", "\u202e")
                                                          if found in answer.text}  # fmt: skip


# ---------------------------------------------------------------------------------------------------- what is let in


def test_files_outside_the_allowed_folders_are_not_read(browser: Browser, data: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret.jsonl"
    shutil.copy(data, secret)
    (data.parent / "link.jsonl").symlink_to(secret)
    for path in (secret, data.parent / "link.jsonl", data.parent / ".." / "secret.jsonl", Path("/etc/passwd")):
        assert browser.get(f"{JOBS}/new", params={"data": str(path)}).status_code == 403
        assert browser.begin("start", path).status_code == 403
        assert browser.begin("start", data, eval_data=str(path)).status_code == 403
        kept = {"start": "corda", "set:corda.mode": "kpm"}  # a start that reads a file of its own
        assert browser.begin("dry-run", data, **kept, **{"set:corda.text": str(path)}).status_code == 403
        for line in (f"text={path}", f"corda.text={path}", f"*.text={path}"):
            assert browser.begin("start", data, set=line, **kept).status_code == 403
    assert browser.begin("check", data, **kept, **{"set:corda.text": str(data)}).status_code == 200
    assert browser.begin("check", data, **kept, **{"set:corda.text": data.name}).status_code == 403
    assert browser.get(f"{JOBS}/new", params={"data": str(data.parent / "none.jsonl")}).status_code == 404
    assert str(secret) not in browser.get(JOBS).text


@pytest.mark.parametrize("place", ["work/page", "work/page/uploads", "work/page/said"])
def test_a_bank_whose_uploads_would_lie_elsewhere_is_refused(bank: Path, tmp_path: Path, place: str) -> None:
    (tmp_path / "private").mkdir()
    (bank / place).parent.mkdir(exist_ok=True)
    (bank / place).symlink_to(tmp_path / "private")
    Here(bank, page=PageConfig())
    with pytest.raises(DamagedError, match=f"{place} is a link"):
        Here(bank, page=PageConfig(allow_changes=True))


def test_uploads_have_a_limit(browser: Browser, bank: Path) -> None:
    assert browser.upload("a.jsonl", b"x" * 4097).status_code == 413
    assert browser.upload("a.jsonl", b"x" * 200_000).status_code == 413
    assert browser.upload("a.sh", b"x").status_code == 422
    assert not list(bank.glob("work/page/uploads/*"))
    assert (
        browser.server.request("POST", f"{JOBS}/new", content=b"x" * 2_000_000, headers=browser.headers).status_code
        == 413
    )


POSTS = ("/delete", "/new", "/of/two/cancel", "/of/two/resume", "/of/two/drop", "/export")


def test_a_form_without_its_token_is_refused(browser: Browser, data: Path) -> None:
    for path in POSTS:
        assert browser.post(path, form_token="0" * 64, data=str(data)).status_code == 403
    assert browser.upload("a.jsonl", b"{}", form_token="").status_code == 403
    own, browser.headers = browser.headers, browser.headers | {"origin": "http://elsewhere.example"}
    assert browser.upload("a.jsonl", b"{}").status_code == 403
    browser.headers = own


def test_a_page_that_only_reads_starts_nothing(bank: Path, data: Path) -> None:
    server = Here(bank, page=PageConfig(data_folders=(str(data.parent),)))
    browser = Browser(server)
    page = browser.get(JOBS)
    assert "--allow-changes" in page.text
    assert str(data) not in page.text
    browser.token = form_token(browser.get("/page/").text) if "form_token" in browser.get("/page/").text else "0" * 64
    for path in POSTS:
        assert browser.post(path, data=str(data)).status_code == 403
    assert browser.upload("a.jsonl", b"{}").status_code == 403
    assert browser.get(f"{JOBS}/new", params={"data": str(data)}).status_code == 403
    assert not (bank / "work" / "page").exists()


# -------------------------------------------------------------------------------------------------------- trainings


def test_a_training_is_cancelled_and_resumed(browser: Browser, bank: Path, data: Path) -> None:
    browser.begin("start", data, **{"max_steps": "150", "save_steps": "2", "epochs": "500"})
    until(lambda: stepped(bank), LONG)
    assert browser.post("/of/two/cancel").status_code == 303
    assert ended(browser) == "interrupted"
    page = browser.get(f"{JOBS}/of/two").text
    assert "interrupted" in page
    assert "add-task two --resume" in page
    assert browser.post("/of/two/resume").status_code == 303
    assert browser.post("/of/two/resume").status_code == 409
    assert ended(browser) == "done"
    assert Bank.open(bank).snapshot().adapter_of("two").steps == 150


def test_a_failing_training_shows_its_error(browser: Browser, data: Path) -> None:
    browser.begin("start", data, learning_rate="1e30")
    assert ended(browser) == "failed"
    page = browser.get(f"{JOBS}/of/two").text
    assert "training diverged" in page
    assert "the adapter was not added to the bank" in page


def test_a_training_of_a_shell_is_seen_and_found_again_after_a_restart(
    browser: Browser, bank: Path, data: Path
) -> None:
    words = ["-b", str(bank), "add-task", "two", "--data", str(data), "--batch-size", "4", "--device", "cpu"]
    words += ["--epochs", "5000", "--save-steps", "2"]
    with subprocess.Popen(
        [sys.executable, "-m", "lorabank_cli", *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as shell:
        try:
            until(lambda: stepped(bank), LONG)
            again = Browser(Here(bank, page=PageConfig(allow_changes=True)))
            page = again.get(f"{JOBS}/of/two").text
            assert "started outside of this page" in page
            assert "data-events" in page
            assert "<dt>penalty orthogonal</dt>" in page
            assert again.post("/of/two/cancel").status_code == 303
            assert shell.wait(LONG) == 130
        finally:
            shell.send_signal(signal.SIGKILL)
    assert again.state() == "interrupted"
    assert again.post("/of/two/drop").status_code == 303
    assert not Bank.open(bank).operations()


def test_a_training_of_a_shell_leads_to_its_task_when_it_is_done(browser: Browser) -> None:
    answer = browser.get(f"{JOBS}/of/one")
    assert (answer.status_code, answer.headers["location"]) == (303, "/page/named/one")
    assert browser.get(f"{JOBS}/of/two").status_code == 404


def test_a_process_that_is_not_a_training_is_left_alone(
    browser: Browser, bank: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bank of another user may name any process as the holder of a reservation: here that of the tests."""
    with Bank.open(bank).reserve("add-task", "two", {}):
        assert browser.state() == "running"
        assert browser.post("/of/two/cancel").status_code == 409


def test_progress_arrives_as_events_until_the_server_stops(browser: Browser, bank: Path) -> None:
    with Bank.open(bank).reserve("add-task", "two", {}):
        work = next(bank.glob("work/*"))
        with ProgressFile(work) as file:
            file.begin(0, 30)
            file.step(3, 30, epoch=0.1, learning_rate=1e-3, terms={"loss": 0.5, EVIL: 0.25})
            timer = threading.Timer(1, lambda: setattr(browser.server.gate, "closing", True))
            timer.start()
            answer = browser.get(f"{JOBS}/of/two/events")
            timer.join()
    assert "event: progress\ndata: <dl>" in answer.text
    assert "3 of 30" in answer.text
    assert "data: <dt>penalty &lt;script&gt;" in answer.text
    assert EVIL not in answer.text
    browser.server.gate.closing = False


def test_a_task_is_exported_into_an_allowed_folder_alone(
    browser: Browser, bank: Path, data: Path, tmp_path: Path
) -> None:
    target = data.parent / "adapter"
    answer = browser.post("/export", name="one", folder=str(target))
    assert answer.status_code == 200
    assert "The command is done" in answer.text
    assert (target / "adapter_config.json").is_file()
    assert browser.post("/export", name="one", folder=str(target)).status_code == 409
    assert browser.post("/export", name="one", folder=str(tmp_path / "elsewhere")).status_code == 403
    assert browser.post("/export", name="--help", folder=str(data.parent / "b")).status_code == 404
    assert not (tmp_path / "elsewhere").exists()


def test_the_report_is_a_file(browser: Browser) -> None:
    answer = browser.get(f"{JOBS}/report")
    assert answer.headers["content-disposition"] == 'attachment; filename="report.html"'
    assert "one" in answer.text
    assert "</html>" in answer.text


def test_the_bank_is_whole_after_it_all(browser: Browser, bank: Path, data: Path) -> None:
    browser.upload("a.jsonl", data.read_bytes())
    assert api.verify(bank, full=True) == ()
    api.gc(bank, grace_hours=0)
    assert len(list(bank.glob("work/page/uploads/*"))) == 1
