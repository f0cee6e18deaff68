"""Why a backend did not answer, as callers read it, and what only the operator reads."""

from __future__ import annotations

from lorabank.core.errors import LorabankError
from lorabank.serving.errors import CallError

_LATER = 2
"""Seconds after which a call may succeed that found no backend."""


class BackendFailure(CallError):
    """A call that the backend did not answer.

    Args:
        status: HTTP status.
        message: One sentence for the caller.
        logged: What the operator should know; None for nothing.
        code: As of `CallError`.
        retry_after: As of `CallError`.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        logged: LorabankError | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(status, message, code=code, retry_after=retry_after)
        self.logged = logged


class UnknownAdapterError(Exception):
    """The backend does not know the adapter that was asked for."""


def unreachable(logged: LorabankError) -> BackendFailure:
    """The backend takes no connections, or ended one."""
    return BackendFailure(
        503,
        "the backend that generates the text cannot be reached; ask again",
        logged=logged,
        code="backend_unreachable",
        retry_after=_LATER,
    )


def busy(retry_after: int | None) -> BackendFailure:
    """The backend takes no further calls at present."""
    return BackendFailure(
        503,
        "the backend that generates the text takes no further calls at present; ask again",
        code="backend_busy",
        retry_after=retry_after or _LATER,
    )


def silent(seconds: float) -> BackendFailure:
    """The backend did not answer in time."""
    return BackendFailure(
        503, f"the backend did not answer within {seconds:g} seconds", code="backend_silent", retry_after=_LATER
    )


def garbled(logged: LorabankError) -> BackendFailure:
    """What the backend sent is not an answer."""
    return BackendFailure(
        502, "the backend sent something that is not an answer; the server's log says what", logged=logged,
        code="backend_garbled",
    )  # fmt: skip


def not_taken(message: str, logged: LorabankError | None = None) -> BackendFailure:
    """The backend, or lorabank for it, refuses what was asked."""
    return BackendFailure(422, message, logged=logged, code="backend_refused")
