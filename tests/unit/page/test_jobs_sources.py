"""Which files the page reads: uploads under names of its own, and nothing outside the folders of the operator."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from lorabank.page.errors import PageError
from lorabank.page.jobs.sources import Sources


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    (folder / "rows.jsonl").write_text("{}")
    (folder / "deep" / "more.csv").write_text("text")
    (folder / "notes.md").write_text("no rows")
    (tmp_path / "secret.jsonl").write_text("{}")
    (folder / "link.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (folder / "out").symlink_to(tmp_path)
    (folder / "inside.jsonl").symlink_to(folder / "rows.jsonl")
    return folder


@pytest.fixture
def sources(data: Path, tmp_path: Path) -> Sources:
    return Sources(tmp_path / "uploads", [data], 100)


def status(call: object, *given: object) -> int:
    with pytest.raises(PageError) as caught:
        call(*given)  # type: ignore[operator]
    return caught.value.status


def test_files_of_an_allowed_folder_are_read(sources: Sources, data: Path) -> None:
    assert sources.checked(f"{data}/rows.jsonl") == data / "rows.jsonl"
    assert sources.checked(f"{data}/deep/../deep/more.csv") == data / "deep" / "more.csv"
    assert sources.checked(f"{data}/inside.jsonl") == data / "rows.jsonl"
    assert sources.listed() == [data / "deep" / "more.csv", data / "rows.jsonl"]


@pytest.mark.parametrize(
    "text",
    [
        "{data}/../secret.jsonl", "{data}/link.jsonl", "{data}/out/secret.jsonl", "{data}/out/nothing.jsonl",
        "/etc/passwd", "rows.jsonl", "", "hf:imdb", "{data}x/rows.jsonl", "~/rows.jsonl", "{data}/\0", "file://{data}/rows.jsonl",
    ],
)  # fmt: skip
def test_others_are_refused_whether_or_not_they_exist(sources: Sources, data: Path, text: str) -> None:
    assert status(sources.checked, text.format(data=data)) == 403


@pytest.mark.parametrize("text", ["{data}/nothing.jsonl", "{data}", "{data}/deep"])
def test_what_is_not_a_file_of_an_allowed_folder_is_not_found(sources: Sources, data: Path, text: str) -> None:
    assert status(sources.checked, text.format(data=data)) == 404


def test_an_upload_gets_a_name_of_our_own(sources: Sources, tmp_path: Path) -> None:
    kept = sources.keep("../../<script>.JSONL", b"{}\r\n\0")
    assert kept.path.parent == tmp_path / "uploads"
    assert kept.path.name.removesuffix(".jsonl").isalnum()
    assert kept.path.read_bytes() == b"{}\r\n\0"
    assert (kept.path.stat().st_mode & 0o777, kept.path.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert sources.checked(str(kept.path)) == kept.path
    assert [one.name for one in sources.uploads()] == ["../../<script>.JSONL"]
    again = Sources(tmp_path / "uploads", [], 100)
    assert [one.path for one in again.uploads()] == [kept.path]


def test_uploads_are_limited(sources: Sources) -> None:
    assert status(sources.keep, "a.jsonl", b"x" * 101) == 413
    assert status(sources.keep, "a.exe", b"x") == 422
    assert status(sources.keep, "a.jsonl", b"") == 422
    for _ in range(8):
        sources.keep("a.jsonl", b"x" * 100)
    assert status(sources.keep, "a.jsonl", b"x") == 413
    sources.delete(sources.uploads()[0].path.name)
    sources.keep("a.jsonl", b"x")
    assert status(sources.delete, "../rows.jsonl") == 404
    assert status(sources.delete, "") == 404


def test_uploads_at_the_same_time_share_the_limit(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first of two is about to be written, and room for one is left."""
    for _ in range(7):
        sources.keep("a.jsonl", b"x" * 100)
    opened, refused = os.open, []

    def another_comes(*words: Any) -> int:
        monkeypatch.setattr("os.open", opened)
        refused.append(status(sources.keep, "b.jsonl", b"x"))
        return opened(*words)

    monkeypatch.setattr("os.open", another_comes)
    sources.keep("a.jsonl", b"x" * 100)
    assert refused == [413]
    assert sum(one.bytes for one in sources.uploads()) == 800


def test_an_upload_that_failed_leaves_its_room(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open
    for _ in range(9):
        monkeypatch.setattr("os.open", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left")))
        assert status(sources.keep, "a.jsonl", b"x" * 100) == 507
    monkeypatch.setattr("os.open", opened)
    for _ in range(8):
        sources.keep("a.jsonl", b"x" * 100)


def test_a_file_system_that_cannot_be_written_is_said(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux refuses to delete there before it looks whether there is such a file."""

    def refused(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("os.open", refused)
    monkeypatch.setattr(Path, "unlink", refused)
    with pytest.raises(PageError, match="cannot be stored: Read-only file system") as caught:
        sources.keep("a.jsonl", b"x")
    assert caught.value.status == 507


def test_exports_go_only_below_an_allowed_folder(sources: Sources, data: Path, tmp_path: Path) -> None:
    assert sources.target(f"{data}/new") == data / "new"
    assert sources.target(f"{data}/deep/new") == data / "deep" / "new"
    assert status(sources.target, f"{data}/deep") == 409
    for text in (f"{data}", f"{tmp_path}/new", f"{data}/out/new", f"{tmp_path}/uploads/new", "new", f"{data}/../new"):
        assert status(sources.target, text) == 403
