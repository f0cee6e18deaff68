"""What hostile text is, and when what was written is harmless: shared by the tests of the command line."""

from __future__ import annotations

import os
import pty
import re
import termios
import threading
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

PAYLOADS = {
    "colour": "\x1b[31mred\x1b[0m",
    "clear": "\x1b[2J\x1b[H",
    "title": "\x1b]0;owned\x07",
    "link": "\x1b]8;;https://example.org\x1b\\click\x1b]8;;\x1b\\",
    "clipboard": "\x1b]52;c;cm0gLXJmIH4=\x07",
    "device status": "\x1b[6n",
    "string": "\x1bPq#0;2;0;0;0\x1b\\",
    "cursor up": "\x1b[1A\x1b[2K",
    "alternate screen": "\x1b[?1049h",
    "escape at the end": "name\x1b",
    "carriage return": "real\rfake",
    "backspace": "evil\b\b\b\bgood",
    "bell": "ding\x07",
    "shift out": "\x0e",
    "vertical tab": "a\x0bb\x0cc",
    "delete": "a\x7fb",
    "null": "a\x00b",
    "unit separators": "\x1c\x1d\x1e\x1f",
    "C1 sequence": "\x9b31mred",
    "C1 command": "\x9d52;c;aGk=\x9c",
    "next line": "a\x85b",
    "bidi override": "abc\u202egpj.exe",
    "bidi isolate": "a\u2066b\u2069c",
    "right-to-left mark": "a\u200fb",
    "Arabic letter mark": "a\u061cb",
    "zero width": "sp\u200bam",
    "joiner": "a\u200d\u2060b",
    "byte order mark": "\ufeffspam",
    "soft hyphen": "sp\xadam",
    "line separator": "one\u2028two\u2029three",
    "tag characters": "a\U000e0041\U000e007f",
    "interlinear": "a\ufff9b\ufffbc",
    "lone surrogate": "a\udc80b\ud800",
    "private use": "\ue000\U0010ffff",
    "script": "<script>alert(1)</script>",
    "image": '"><img src=x onerror=alert(1)>',
    "style": "</style><svg/onload=alert(1)>",
    "entity": "&lt;b&gt; {{ 7 * 7 }} {% raw %}",
    "formula": "=cmd|' /C calc'!A0",
    "SQL": "'; DROP TABLE tasks; --",
    "shell": "$(touch owned); `id`",
    "markup": "[link=https://example.org]x[/link] $\\frac{1$",
    "lines": "one\ntwo\nerror: none",
    "path": "../../etc/passwd",
}
ALL = " ".join(PAYLOADS.values())
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
FORMAT = re.compile("[\xad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]")


def assert_harmless(written: str) -> None:
    found = CONTROL.search(written) or FORMAT.search(written)
    assert found is None, repr(written[max(0, found.start() - 60) : found.end() + 20])
    written.encode()


LIVE = {"script", "img", "iframe", "object", "embed", "link", "base", "form", "audio", "video", "image"}


class Page(HTMLParser):
    """Elements and attributes that do something."""

    def __init__(self) -> None:
        super().__init__()
        self.live: list[str] = []
        self.policy = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "meta" and values.get("http-equiv") == "Content-Security-Policy":
            self.policy = values["content"] or ""
        if tag in LIVE:
            self.live.append(tag)
        for name, value in values.items():
            outside = name in {"href", "src", "xlink:href", "action"} and not (value or "").startswith("#")
            if name.startswith("on") or outside or "javascript:" in (value or ""):
                self.live.append(f"{tag} {name}={value}")


def assert_harmless_page(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert_harmless(text)
    page = Page()
    page.feed(text)
    assert page.live == []
    assert page.policy.startswith("default-src 'none'")
    assert "script-src" not in page.policy


@contextmanager
def terminal(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Both streams on a pseudo-terminal; gives a list that holds what was written to it, at the end."""
    master, slave = pty.openpty()
    settings = termios.tcgetattr(slave)
    settings[1] &= ~termios.OPOST  # the line feed stays one
    termios.tcsetattr(slave, termios.TCSANOW, settings)
    received: list[bytes] = []

    def drain() -> None:
        try:
            while data := os.read(master, 65536):
                received.append(data)
        except OSError:  # the other side was closed
            pass

    reader = threading.Thread(target=drain)
    reader.start()
    written: list[str] = []
    with monkeypatch.context() as patch, os.fdopen(slave, "w", encoding="utf-8") as stream:
        patch.setattr("sys.stdout", stream)
        patch.setattr("sys.stderr", stream)
        yield written
        stream.flush()
    reader.join(timeout=30)
    os.close(master)
    written.append(b"".join(received).decode())
