"""Why a call is refused, as a status of HTTP and a body that OpenAI's clients understand."""

from __future__ import annotations

from typing import Any

from lorabank.core.errors import (
    BusyError,
    ConfigError,
    DataError,
    IncompatibleError,
    LorabankError,
    MissingExtraError,
    NotFoundError,
    StorageError,
)

_STATUS: tuple[tuple[type[LorabankError], int], ...] = (
    (NotFoundError, 404),
    (ConfigError, 422),
    (DataError, 422),
    (IncompatibleError, 422),
    (MissingExtraError, 422),
    (BusyError, 503),
    (StorageError, 503),
)
_KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_MOST = 1000


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
    """Any error as what its caller is told; of a bug no more than that there is one."""
    if isinstance(error, CallError):
        return error
    if isinstance(error, LorabankError):
        status = next((status for kind, status in _STATUS if isinstance(error, kind)), 500)
        said = f"{error.message} ({error.hint})" if error.hint else error.message
        return CallError(status, said, retry_after=1 if status == 503 else None)
    return CallError(500, "the server failed on this call; its log says why")


def unknown_model(name: str) -> CallError:
    """The refusal of a name that is neither a task nor a composition."""
    message = f"there is no task or composition {name[:80]!r}; GET /v1/models lists them"
    return CallError(404, message, param="model", code="model_not_found")


def queue_full(waiting: int, seconds: int) -> CallError:
    """The refusal of texts for which the queue has no room."""
    return CallError(429, f"{waiting} texts are waiting already", code="queue_full", retry_after=seconds)


def not_serving(why: str) -> CallError:
    """The refusal before the model is loaded and after the server was told to stop."""
    return CallError(503, f"the server is {why}", code="not_ready", retry_after=1)


def too_late(seconds: float) -> CallError:
    """The refusal of a text that waited too long."""
    return CallError(503, f"the text waited for {seconds:g} seconds and was not answered", retry_after=1)
