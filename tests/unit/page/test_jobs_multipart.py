"""A form with a file: its bytes come through whole, and what is not one is refused."""

from __future__ import annotations

import os

import httpx
import pytest

from lorabank.page.errors import PageError
from lorabank.page.jobs.multipart import Part, read_multipart


@pytest.mark.parametrize(
    "content", [b"", b"\r\n", b"--", b"\r\n--", b"\r\n\r\n", bytes(range(256)) * 3, b"a\rb\nc\r\n", os.urandom(5000)]
)
def test_a_form_of_httpx_comes_back(content: bytes) -> None:
    files = {"file": ('ä "quoted" <b>.csv', content, "text/csv")}
    request = httpx.Request("POST", "http://x/", data={"form_token": "abc", "empty": ""}, files=files)
    found = read_multipart(request.headers["content-type"], request.read())
    assert {name: part.data for name, part in found.items()} == {"form_token": b"abc", "empty": b"", "file": content}
    assert found["form_token"].file is None
    assert found["file"].file is not None
    assert found["file"].file.endswith(".csv")


def test_a_form_of_a_browser() -> None:
    body = (
        b"------WebKitFormBoundaryAb\r\n"
        b'Content-Disposition: form-data; name="file"; filename="r\xc3\xa4w.jsonl"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n"
        b"{}\n\r\n"
        b"------WebKitFormBoundaryAb--\r\n"
    )
    found = read_multipart("multipart/form-data; boundary=----WebKitFormBoundaryAb", body)
    assert found == {"file": Part("file", "räw.jsonl", b"{}\n")}


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("application/x-www-form-urlencoded", b"a=1", 415), ("multipart/form-data", b"--x--", 415), ("", b"", 415),
        ("multipart/form-data; boundary=x", b"", 400), ("multipart/form-data; boundary=x", b"--x\r\n\r\n", 400),
        ("multipart/form-data; boundary=x", b"junk\r\n--x\r\n--x--", 400),
        ("multipart/form-data; boundary=x", b"--x\r\nno-disposition: 1\r\n\r\n1\r\n--x--", 400),
        ("multipart/form-data; boundary*=x; boundary*0=x", b"", 415),
        ("multipart/form-data; boundary=x", b"--x\r\ncontent-disposition: a; name*=a;name*0=b\r\n\r\n1\r\n--x--", 400),
        ("multipart/form-data; boundary=x", b"--x\r\n" * 30 + b"--x--", 400),
    ],
)  # fmt: skip
def test_what_is_not_such_a_form_is_refused(kind: str, body: bytes, status: int) -> None:
    with pytest.raises(PageError) as caught:
        read_multipart(kind, body)
    assert caught.value.status == status
