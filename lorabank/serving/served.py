"""What the endpoints share: the engine, the catalogue, the limits, how questions are asked and errors answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from lorabank.core.errors import LorabankError
from lorabank.serving.calls import Call, CallerGone
from lorabank.serving.catalogue import Catalogue, names_of
from lorabank.serving.config import ServeConfig
from lorabank.serving.engine import Engine
from lorabank.serving.errors import CallError, Report, call_error, unknown_model
from lorabank.serving.jobs import Check
from lorabank.serving.metrics import Meter
from lorabank.workflows.asking.questions import Question

_SHOWN = 200
_PATH = "there is no such path; those of the API begin with /v1/"
_METHOD = "this path does not accept the method of the call; POST a question, GET anything else"


@dataclass(frozen=True)
class Served:
    """A bank that is served."""

    engine: Engine
    catalogue: Catalogue
    config: ServeConfig
    meter: Meter

    def models(self) -> list[dict[str, Any]]:
        """Tasks and compositions; ``servable`` says of each whether it can be answered here."""
        found, backend = self.catalogue.models(), self.engine.backend
        if backend is None:
            return found
        snapshot = self.catalogue.look()
        names = names_of(snapshot)
        return [
            one | {"servable": one["servable"] and one["id"] in names and not backend.refuses(snapshot, one["id"])}
            for one in found
        ]

    async def call(
        self,
        questions: Sequence[Question],
        *,
        param: str,
        pieces: bool = False,
        routing: bool = False,
        check: Check | None = None,
    ) -> Call:
        """Questions of one call, which may be asked.

        Args:
            questions: All about one model.
            param: The field of the body that holds their texts.
            pieces: As of `Call`.
            routing: As of `Call`.
            check: As of `Call`.

        Raises:
            CallError: There are too many of them, or there is no such model.
        """
        most = min(self.config.max_texts, self.config.max_queue)
        if len(questions) > most:
            raise CallError(422, f"a call has at most {most} texts, and this one has {len(questions)}", param=param)
        model = questions[0].model
        await run_in_threadpool(self._check_known, model)
        return Call(self.engine, questions, pieces=pieces, routing=routing, check=check)

    def _check_known(self, model: str) -> None:
        """Refuse a name that the bank does not have; it may be read for that."""
        if not self.catalogue.has(model):
            raise unknown_model(model, names_of(self.catalogue.look()))


def served_by(request: Request) -> Served:
    """The bank that an application serves."""
    found = request.app.state.served
    assert isinstance(found, Served)
    return found


def answer_errors(app: FastAPI, report: Report) -> None:
    """Answer every error in OpenAI's form; those of the server itself are reported too."""

    async def failed(request: Request, error: Exception) -> JSONResponse:
        report(f"a call to {request.url.path[:_SHOWN]} failed", error)
        return _answer(call_error(error))

    app.add_exception_handler(CallError, _known)
    app.add_exception_handler(LorabankError, failed)
    app.add_exception_handler(CallerGone, _gone)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _known)
    for status, message in ((400, "the body is not JSON"), (404, _PATH), (405, _METHOD)):
        app.add_exception_handler(status, _answering(CallError(status, message)))


async def _known(request: Request, error: Exception) -> JSONResponse:
    return _answer(call_error(error))


async def _gone(request: Request, error: Exception) -> JSONResponse:
    return _answer(CallError(499, "the caller has hung up"))


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    found = [(".".join(map(str, one["loc"][1:]))[:_SHOWN], str(one["msg"])[:_SHOWN]) for one in error.errors()]
    said = "; ".join(f"{place}: {message}" if place else message for place, message in found[:5])
    return _answer(CallError(422, said, param=found[0][0] or None if found else None))


def _answer(error: CallError) -> JSONResponse:
    return JSONResponse(error.body, error.status, error.headers)


def _answering(error: CallError) -> Callable[[Request, Exception], Awaitable[JSONResponse]]:
    async def handler(request: Request, _: Exception) -> JSONResponse:
        return _answer(error)

    return handler
