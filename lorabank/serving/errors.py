"""Why a call is refused, as a status of HTTP and a body that OpenAI's clients understand.

Callers read what they can do; what names files of the server, only its operator reads (`Report`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lorabank.core.errors import (
    BusyError,
    DamagedError,
    DataError,
    DivergedError,
    LorabankError,
    NotFoundError,
    StorageError,
)
from lorabank.core.escaping import safe
from lorabank.core.machine.exhaustion import exhausted
from lorabank.core.settings import nearest

_OTHERS = "GET /v1/models lists what else can be asked"
_SAID: tuple[tuple[type[LorabankError], int, str], ...] = (
    (NotFoundError, 404, f"the bank does not have all that this model needs; {_OTHERS}"),
    (BusyError, 503, "another process holds the bank; ask again"),
    (StorageError, 503, "the server has too little memory or storage for this call; ask again, or send fewer texts"),
    (DamagedError, 500, f"a stored file of this model is damaged; {_OTHERS}"),
    (DivergedError, 500, f"this model computed numbers that are not finite; {_OTHERS}"),
    (LorabankError, 422, f"this model cannot be used on this server; {_OTHERS}"),
)
"""The status and the message of every error whose own words are the operator's."""

_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_MOST = 1000
"""Characters of a message, and messages that are remembered."""

_log = logging.getLogger(__name__)


class CallError(Exception):
    """A call that is not answered.

    Args:
        status: HTTP status.
        message: One sentence.
        param: The field of the body that it is about.
        code: A word for programs, as OpenAI's errors have one.
        retry_after: Seconds after which the same call may succeed.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message[:_MOST]
        self.param = param
        self.code = code
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Those that the status needs."""
        found = {} if self.retry_after is None else {"retry-after": str(self.retry_after)}
        return found | ({"www-authenticate": "Bearer"} if self.status == 401 else {})

    @property
    def body(self) -> dict[str, Any]:
        """OpenAI's form of an error."""
        kind = _KINDS.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": self.message, "type": kind, "param": self.param, "code": self.code}}


def call_error(error: BaseException) -> CallError:
    """Any error as its caller reads it.

    Only a `DataError`, which is about the caller's text, keeps its own words; those of any other may name files of the
    server.
    """
    if isinstance(error, CallError):
        return error
    if isinstance(error, DataError):
        return CallError(422, f"{error.message} ({error.hint})" if error.hint else error.message)
    known = error if isinstance(error, LorabankError) else exhausted(error)
    for kind, status, message in _SAID:
        if isinstance(known, kind):
            return CallError(status, message, retry_after=1 if status == 503 else None)
    return CallError(500, "the server failed on this call; its log says why")


class Report:
    """Logs errors for the operator, each message once until `forget`; of a bug with its traceback.

    Args:
        bank: The bank's folder, which the commands to type next are about.
    """

    def __init__(self, bank: str | Path) -> None:
        self._bank = str(bank)
        self._logged: set[str] = set()

    def __call__(self, what: str, error: BaseException) -> None:
        """Log an error.

        Args:
            what: What failed.
            error: Why.
        """
        known = error if isinstance(error, LorabankError) else exhausted(error)
        if known is None:
            said = f"{what}: {type(error).__name__}: {error}"
        else:
            next_steps = [*([known.hint] if known.hint else []), *(one.line(self._bank) for one in known.commands)]
            said = "; ".join([f"{what}: {known.message}", *next_steps])
        line = safe(said[:_MOST])
        if line not in self._logged:
            if len(self._logged) >= _MOST:
                self._logged.clear()
            self._logged.add(line)
            _log.error("%s", line, exc_info=error if known is None else None)

    def forget(self) -> None:
        """Log again what comes again: another state of the bank answers."""
        self._logged.clear()


def unknown_model(name: str, known: Iterable[str]) -> CallError:
    """The refusal of a name that is not among the ``known`` tasks and compositions; the nearest one is proposed."""
    name = name[:80]
    message = f"there is no task or composition {name!r}; GET /v1/models lists them{nearest(name, sorted(known))}"
    return CallError(404, message, param="model", code="model_not_found")


def not_loaded(name: str) -> CallError:
    """The refusal of a task or composition that is in the bank, in a state that the server could not load yet."""
    message = f"{name[:80]!r} is in the bank, and the server could not load it yet; its log says why"
    return CallError(503, message, code="not_ready", retry_after=1)


def queue_full(waiting: int, seconds: int) -> CallError:
    """The refusal of texts for which the queue has no room."""
    return CallError(429, f"{waiting} texts are waiting already", code="queue_full", retry_after=seconds)


def not_serving(why: str) -> CallError:
    """The refusal before the model is loaded and after a signal to stop."""
    return CallError(503, f"the server is {why}", code="not_ready", retry_after=1)


def too_late(seconds: float) -> CallError:
    """The refusal of a text that waited too long."""
    return CallError(503, f"the text waited for {seconds:g} seconds and was not answered", retry_after=1)
