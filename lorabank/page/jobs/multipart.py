"""A form with a file, as browsers send it: RFC 7578, read whole from memory."""

from __future__ import annotations

from email.message import Message
from email.parser import HeaderParser
from typing import NamedTuple

from lorabank.page.errors import PageError

_KIND = "multipart/form-data"
_MOST_PARTS = 20
_MOST_HEADERS = 4096
"""Bytes of the headers of a part."""


class Part(NamedTuple):
    """One field.

    Attributes:
        name: The field.
        file: The name of the file as the browser sent it; None for a field without a file.
        data: The content.
    """

    name: str
    file: str | None
    data: bytes


def read_multipart(kind: str, body: bytes) -> dict[str, Part]:
    """The fields of a form; of a name that stands twice the last.

    Args:
        kind: The header Content-Type.
        body: The whole body.

    Raises:
        PageError: The body is not such a form.
    """
    header = Message()
    header["content-type"] = kind
    boundary = _parameter(header, "boundary", "content-type")
    if header.get_content_type() != _KIND or not boundary:
        raise PageError(415, "the body is not a form with a file")
    # A boundary stands nowhere in the content, so the parts are what lies between two of them.
    first, *parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1", "replace"), _MOST_PARTS + 1)
    if first or len(parts) < 2 or len(parts) > _MOST_PARTS or not parts[-1].startswith(b"--"):
        raise _unreadable()
    found = (_part(part) for part in parts[:-1])
    return {part.name: part for part in found}


def _part(text: bytes) -> Part:
    head, blank, data = text.partition(b"\r\n\r\n")
    if not blank or len(head) > _MOST_HEADERS:
        raise _unreadable()
    headers = HeaderParser().parsestr(head.decode("utf-8", "replace").lstrip("\r\n"))
    name = _parameter(headers, "name", "content-disposition")
    if name is None:
        raise _unreadable()
    return Part(name, _parameter(headers, "filename", "content-disposition"), data)


def _parameter(headers: Message, name: str, of: str) -> str | None:
    """A parameter of a header; None where there is none, or one that browsers do not write (RFC 2231)."""
    try:
        found = headers.get_param(name, header=of)
    except (TypeError, ValueError):  # parts of a value that cannot be put in order
        return None
    return found if isinstance(found, str) else None


def _unreadable() -> PageError:
    return PageError(400, "the form cannot be read")
