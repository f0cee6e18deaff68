"""The pages on which tasks are added: rows, settings, dry run, and the trainings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Request
from fastapi.responses import RedirectResponse, Response, StreamingResponse

from lorabank.bank.objects.layout import check_name
from lorabank.core.commands import Command
from lorabank.core.errors import ConfigError, LorabankError
from lorabank.page.errors import PageError, sentence
from lorabank.page.jobs.events import events, progress
from lorabank.page.jobs.form import files_of, filled
from lorabank.page.jobs.multipart import Part, read_multipart
from lorabank.page.jobs.preview import Preview, preview
from lorabank.page.jobs.watching import Training, interrupt, training, trainings
from lorabank.page.jobs.workshop import Ran, Workshop
from lorabank.page.rendering import page
from lorabank.page.security import PREFIX, Changing, SentForm, check_sender
from lorabank.serving.limits import CLOSING, OVER
from lorabank.workflows.learning.past import typed
from lorabank.workflows.publish import report as write_report

PLACE = f"{PREFIX}/jobs"
UPLOAD = f"{PLACE}/upload"

router = APIRouter(prefix="/jobs")


async def sent_file(request: Request) -> Mapping[str, Part]:
    """The fields of a form with a file that was sent from this page.

    Raises:
        PageError: As `read_multipart` and `check_sender`.
    """
    form = read_multipart(request.headers.get("content-type", ""), await request.body())
    token = form.get("form_token")
    check_sender(request, "" if token is None else token.data.decode("latin-1"))
    return form


SentFile = Annotated[Mapping[str, Part], Depends(sent_file)]


@router.get("")
def overview(request: Request) -> Response:
    """What is under way, and where rows come from."""
    shop = _shop(request)
    return page(
        request,
        "jobs.j2",
        trainings=trainings(shop.bank, shop.jobs),
        uploads=shop.sources.uploads() if _may_change(request) else [],
        files=shop.sources.listed() if _may_change(request) else [],
        folders=shop.sources.folders,
        most=shop.sources.most,
    )


@router.post("/upload", dependencies=[Changing])
def upload(request: Request, form: SentFile) -> Response:
    """Keep a file."""
    part = form.get("file")
    if part is None or not part.file:
        raise PageError(422, "no file was chosen")
    kept = _shop(request).sources.keep(part.file, part.data)
    return RedirectResponse(f"{PLACE}/new?{urlencode({'data': str(kept.path)})}", 303)


@router.post("/delete", dependencies=[Changing])
def delete(request: Request, form: SentForm) -> Response:
    """Delete an upload."""
    _shop(request).sources.delete(form.get("upload", ""))
    return RedirectResponse(PLACE, 303)


@router.get("/new", dependencies=[Changing])
def settings(request: Request, data: str = "") -> Response:
    """The rows of a file at a glance, and the settings of a training on them."""
    return _settings(request, {"data": data})


@router.post("/new", dependencies=[Changing])
def begin(request: Request, form: SentForm) -> Response:
    """Check the settings, try them without training, or start."""
    return _settings(request, form)


def _settings(request: Request, form: Mapping[str, str]) -> Response:
    shop, action = _shop(request), form.get("action", "")
    data = str(shop.sources.checked(form.get("data", "")))
    given = dict(form)
    if other := given.get("eval_data", "").strip():
        given["eval_data"] = str(shop.sources.checked(other))
    found = filled(data, given)
    seen, problems = _look(shop, found.config)
    if seen is not None:
        found = filled(data, given, rows=seen.form)
    for other in files_of(found.config):
        shop.sources.checked(other)
    name, replace = form.get("name", "").strip(), form.get("replace") == "on"
    if action:
        problems = [*_unfit_name(shop, name, replace), *found.problems, *problems]
    command = Command("add-task", name or "NAME", *typed(found.config), *(["--replace"] if replace else []))
    ran: Ran | None = None
    if action == "dry-run" and not problems:
        ran = shop.run(Command(*command, "--dry-run"), request.scope[OVER])
    if action == "start" and not problems:
        if shop.jobs.add(name, command) is None:
            raise PageError(409, f"a training of {name} is under way already")
        return RedirectResponse(f"{PLACE}/of/{name}", 303)
    return page(
        request,
        "jobs_new.j2",
        status=422 if action and problems else 200,
        data=data,
        shown=next((one.name for one in shop.sources.uploads() if str(one.path) == data), data),
        seen=seen,
        sections=found.sections,
        problems=problems,
        name=name,
        replace=replace,
        line=shop.line(command),
        ran=ran,
    )


def _look(shop: Workshop, config: Any) -> tuple[Preview | None, list[str]]:
    """The rows at a glance, or why they cannot be read."""
    try:
        return preview(shop.bank.path, config), []
    except LorabankError as error:
        return None, [sentence(error)]


def _unfit_name(shop: Workshop, name: str, replace: bool) -> list[str]:
    """What is wrong with the name of a task to be."""
    try:
        check_name(name)
    except ConfigError as error:
        return [sentence(error)]
    snapshot = shop.bank.snapshot()
    if any(made.name == name for made in snapshot.compositions):
        return [f"a composition is called {name}"]
    taken = any(task.name == name for task in snapshot.tasks)
    if taken and not replace:
        return [f"there is a task {name} already; choose another name, or make a new version of it"]
    return [f"there is not a task {name} that a new version could replace"] if replace and not taken else []


@router.get("/of/{name}")
def watch(request: Request, name: str) -> Response:
    """One training; the page of a task that is learnt already, where its training is not remembered."""
    shop = _shop(request)
    found = training(shop.bank, shop.jobs, name)
    learnt = any(task.name == name for task in shop.bank.snapshot().tasks)
    if found is None and learnt:
        return RedirectResponse(f"{PREFIX}/named/{name}", 303)
    found = found or _found(shop, name)
    return page(
        request,
        "jobs_one.j2",
        training=found,
        line=None if found.command is None else shop.line(found.command),
        progress=progress(list(found.lines), listed=not found.under_way),
        learnt=learnt,
        folders=shop.sources.folders,
    )


@router.get("/of/{name}/events")
def follow(request: Request, name: str) -> Response:
    """The progress of one training as server-sent events."""
    shop = _shop(request)
    _found(shop, name)
    closing = request.scope[CLOSING]
    return StreamingResponse(
        events(lambda: training(shop.bank, shop.jobs, name), closing),
        media_type="text/event-stream",
        headers={"cache-control": "no-store", "x-accel-buffering": "no"},
    )


@router.post("/of/{name}/cancel", dependencies=[Changing])
def cancel(request: Request, name: str, form: SentForm) -> Response:
    """Stop a training as Ctrl-C does."""
    shop = _shop(request)
    if not interrupt(shop.bank, shop.jobs, name):
        raise PageError(409, f"no training of {name[:80]} is under way on this machine")
    return RedirectResponse(f"{PLACE}/of/{name}", 303)


@router.post("/of/{name}/resume", dependencies=[Changing])
def resume(request: Request, name: str, form: SentForm) -> Response:
    """Resume an interrupted training with its settings."""
    shop = _shop(request)
    if _found(shop, name).state != "interrupted" or shop.jobs.add(name, Command("add-task", name, "--resume")) is None:
        raise PageError(409, f"the training of {name} is not one that can be resumed now")
    return RedirectResponse(f"{PLACE}/of/{name}", 303)


@router.post("/of/{name}/drop", dependencies=[Changing])
def drop(request: Request, name: str, form: SentForm) -> Response:
    """Delete the checkpoints of an interrupted training, so that its name is free again."""
    shop = _shop(request)
    if _found(shop, name).state != "interrupted":
        raise PageError(409, f"there is not an interrupted training of {name}")
    shop.bank.discard(name)
    return RedirectResponse(PLACE, 303)


@router.post("/export", dependencies=[Changing])
def export(request: Request, form: SentForm) -> Response:
    """Write a task's adapter as a PEFT folder, where the operator allows it."""
    shop, name = _shop(request), form.get("name", "")
    if all(task.name != name for task in shop.bank.snapshot().tasks):
        raise PageError(404, "there is no such task")
    target = shop.sources.target(form.get("folder", ""))
    ran = shop.run(Command("export", name, str(target)), request.scope[OVER])
    return page(request, "jobs_ran.j2", title=f"Export {name}", ran=ran)


@router.get("/report")
def report(request: Request) -> Response:
    """The report of the bank as a file: it brings styles of its own, which pages of this server do not load."""
    with TemporaryDirectory() as folder:
        text = write_report(_shop(request).bank.path, Path(folder) / "report.html").read_bytes()
    return Response(
        text, media_type="text/html", headers={"content-disposition": 'attachment; filename="report.html"'}
    )


def _shop(request: Request) -> Workshop:
    found = request.app.state.workshop
    assert isinstance(found, Workshop)
    return found


def _may_change(request: Request) -> bool:
    return bool(request.app.state.config.allow_changes)


def _found(shop: Workshop, name: str) -> Training:
    found = training(shop.bank, shop.jobs, name)
    if found is None:
        raise PageError(404, "no training of this name is under way, interrupted or remembered")
    return found
