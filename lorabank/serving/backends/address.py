"""Where a backend is: ``NAME=URL``, or ``NAME=unix:PATH`` for a Unix socket."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from lorabank.core.commands import Command
from lorabank.core.errors import ConfigError

BACKENDS = ("vllm",)
"""The programs that can make the tokens."""

EXAMPLE = "vllm=http://127.0.0.1:8000"
"""What messages propose."""


@dataclass(frozen=True)
class Address:
    """Where a backend listens.

    Attributes:
        name: Which program it is.
        url: ``http`` or ``https``, host and port, and what stands before ``/v1`` in its paths.
        uds: Path of its Unix socket; None for a host.
    """

    name: str
    url: str
    uds: str | None = None


def read_address(given: str) -> Address:
    """The value of ``--backend``.

    Raises:
        ConfigError: It is not one.
    """
    name, separator, place = given.partition("=")
    if not separator or name not in BACKENDS:
        raise _refused(given, f"it begins with {' or '.join(f'{one}=' for one in BACKENDS)}")
    if place.startswith("unix:"):
        path = place.removeprefix("unix:")
        if not path or "\0" in path:
            raise _refused(given, "the path of the socket is missing, or has a NUL")
        return Address(name, "http://localhost", path)
    try:
        parts = urlsplit(place)
        _ = parts.port
    except ValueError as error:
        raise _refused(given, "its URL cannot be read") from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise _refused(given, "its URL begins with http:// or https:// and a host")
    if parts.username is not None or parts.query or parts.fragment:
        raise _refused(given, "its URL is a host, a port and a path, without a password")
    if not parts.netloc.isprintable() or " " in parts.netloc:
        raise _refused(given, "its host has a character that no host has")
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Address(name, f"{parts.scheme}://{parts.netloc}{path}")


def _refused(given: str, why: str) -> ConfigError:
    shown = "..." if {"@", "?", "#"} & set(given) else given  # a password may stand there
    return ConfigError(
        f"--backend {shown!r} is not the address of a backend: {why}",
        hint=f"for example {EXAMPLE}",
        commands=[Command("serve", "--backend", EXAMPLE)],
        unchanged="nothing was started",
    )
