"""The Train page for programs: HTTP under /lorakit/v1, checked by the same declaration of settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from fastapi import APIRouter, Body, HTTPException, Query, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from lib_lora import __version__
from lib_lora.errors import LoraError
from lib_lora.train.config import CONCEPT, fields
from lib_lora.train.jobs import Run
from lib_lora.train.presets import PRESETS
from lib_lora.train.sections_data import Concept
from lib_lora.train.settings import Setting, settings_of
from lib_lora.train.story import events_after
from lib_lora.ui.this_machine import REFUSED, is_own
from lib_lora.ui.trainer import RunFacts, Trainer, TrainStatus

PREFIX = "/lorakit/v1"
MOST = 1 << 20  # bytes of events in one answer
TYPES = {bool: "boolean", int: "integer", float: "number", str: "string", tuple: "array"}


class Problem(BaseModel):
    """What went wrong, for the user."""

    detail: str


class Submitted(BaseModel):
    """The new job's id, by which it is asked for from now on."""

    id: str


class Told(BaseModel):
    """What was done, for the user."""

    message: str


class Events(BaseModel):
    """Events in order, and what to give as `after` next time."""

    events: list[dict[str, Any]]
    next: int


MISSING: dict[int | str, dict[str, Any]] = {404: {"model": Problem, "description": "There is no job of that id"}}
CONFLICT: dict[int | str, dict[str, Any]] = {
    **MISSING,
    409: {"model": Problem, "description": "The job does not stand so that this could be done"},
}


def add_api(app: Any, trainer: Trainer, dependencies: Sequence[Any] = ()) -> None:
    """Add the routes to a FastAPI app, each behind `dependencies`; those of the same path are replaced.

    They go before what is there: gradio answers any other path itself.
    """
    router = make_router(trainer, dependencies)
    names = {route.path for route in router.routes}
    kept = [route for route in app.router.routes if getattr(route, "path", None) not in names]
    app.router.routes[:] = [*router.routes, *kept]


def make_router(trainer: Trainer, dependencies: Sequence[Any] = ()) -> APIRouter:
    """All routes."""
    router = APIRouter(prefix=PREFIX, tags=["LoRA training"], dependencies=list(dependencies))
    _add_reading(router, trainer)
    _add_doing(router, trainer)

    def openapi() -> dict[str, Any]:
        """This description, of these routes alone."""
        return get_openapi(title="LoRA kit", version=__version__, routes=router.routes)

    router.add_api_route("/openapi.json", openapi, methods=["GET"], include_in_schema=False)
    return router


def of_this_machine(request: Request) -> None:
    """A dependency that lets no other site's page ask through the user's browser, under whatever name it calls us."""
    if not is_own(request.headers.get("host", ""), request.headers.get("origin")):
        raise HTTPException(403, REFUSED)


def settings_schema() -> dict[str, Any]:
    """What a job is described by, as JSON schema: every setting's type, default, range, choices and help."""
    properties = {item.key: _schema_of(item) for item in fields()}
    concepts = {item.name: _schema_of(item) for item in settings_of(CONCEPT, Concept)}
    return {
        "title": "Settings",
        "description": "The preset's and the host's values hold for what is left out.",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "preset": {"type": "string", "enum": list(PRESETS), "default": next(iter(PRESETS))},
            CONCEPT: {
                "type": "array",
                "description": "Several concepts in one run",
                "items": {"type": "object", "additionalProperties": False, "properties": concepts},
            },
            **properties,
        },
    }


def _schema_of(item: Setting) -> dict[str, Any]:
    found: dict[str, Any] = {"type": TYPES[item.type], "description": item.help}
    if item.type is tuple:
        found["items"] = {"type": "string"}
    default = list(item.default) if isinstance(item.default, tuple) else item.default
    given = {
        "default": default,
        "minimum": item.low,
        "maximum": item.high,
        "multipleOf": item.multiple,
        "enum": list(item.choices) or None,
    }
    return found | {name: value for name, value in given.items() if value is not None}


def _add_reading(router: APIRouter, trainer: Trainer) -> None:
    def status() -> TrainStatus:
        """Where the job in hand stands, or the latest one if none is, and what waits."""
        return trainer.status()

    def settings() -> dict[str, Any]:
        """Every setting of a job as JSON schema: type, default, range, choices and help."""
        return settings_schema()

    def jobs() -> list[RunFacts]:
        """Every job there is, the newest first, without points and samples."""
        return list(trainer.runs())

    def job(id: str) -> RunFacts:
        """One job with its points and samples."""
        return _known(trainer, id)

    def job_settings(id: str) -> dict[str, Any]:
        """The settings of a job, to send again with changes."""
        _known(trainer, id)
        with _told_as(422):
            return dict(trainer.settings_of(id))

    def events(id: str, after: int = Query(0, ge=0, le=2**62)) -> Events:  # noqa: B008 - FastAPI's way
        """What happened since the event after which the last answer's `next` stood; a mebibyte at most at once."""
        found, following = events_after(Run(_known(trainer, id).folder), after, MOST)
        return Events(events=found, next=following)

    add = router.add_api_route
    add("/status", status, methods=["GET"], response_model=TrainStatus)
    add("/settings", settings, methods=["GET"], response_model=dict[str, Any])
    add("/jobs", jobs, methods=["GET"], response_model=list[RunFacts])
    add("/jobs/{id}", job, methods=["GET"], response_model=RunFacts, responses=MISSING)
    add("/jobs/{id}/settings", job_settings, methods=["GET"], response_model=dict[str, Any], responses=MISSING)
    add("/jobs/{id}/events", events, methods=["GET"], response_model=Events, responses=MISSING)


def _add_doing(router: APIRouter, trainer: Trainer) -> None:
    def submit(settings: Any = Body(...)) -> Submitted:  # noqa: B008 - FastAPI's way
        """Queue a job; it begins when nothing else is trained."""
        with _told_as(422):
            return Submitted(id=trainer.submit(_object(settings)))

    def cancel(id: str) -> Told:
        """End the job after its step, with its state kept; or take it out of the queue."""
        _require(trainer, id, ("running", "paused", "interrupted"), waiting=True)
        return Told(message=trainer.cancel(id))

    def pause(id: str) -> Told:
        """Stop the job after its step, with the model free for drawing; the queue waits too."""
        _require(trainer, id, ("running",))
        return Told(message=trainer.pause())

    def save(id: str) -> Told:
        """Keep the network as it is after this step, and go on."""
        _require(trainer, id, ("running",))
        return Told(message=trainer.save_now())

    def resume(id: str, changes: Any = Body(None)) -> Told:  # noqa: B008 - FastAPI's way
        """Go on with a paused, cancelled, failed or interrupted job, and with the queue.

        Settings in the body take the place of the job's own: a smaller batch, or for a finished job more steps.
        """
        _known(trainer, id)
        with _told_as(409):
            return Told(message=trainer.resume(id, _object(changes)) if changes else trainer.resume(id))

    def forget(id: str) -> Told:
        """Delete a job's folder with its samples and checkpoints; what it finished elsewhere stays."""
        _known(trainer, id)
        with _told_as(409):
            return Told(message=trainer.forget(id))

    _route_doing(router, submit, forget, {"cancel": cancel, "pause": pause, "resume": resume, "save": save})


def _route_doing(router: APIRouter, submit: Any, forget: Any, deeds: Mapping[str, Any]) -> None:
    refused: dict[int | str, dict[str, Any]] = {422: {"model": Problem, "description": "A setting is not accepted"}}
    router.add_api_route(
        "/jobs",
        submit,
        methods=["POST"],
        status_code=201,
        response_model=Submitted,
        responses=refused,
        openapi_extra={"requestBody": {"content": {"application/json": {"schema": settings_schema()}}}},
    )
    for name, what in deeds.items():
        router.add_api_route(f"/jobs/{{id}}/{name}", what, methods=["POST"], response_model=Told, responses=CONFLICT)
    router.add_api_route("/jobs/{id}", forget, methods=["DELETE"], response_model=Told, responses=CONFLICT)


def _object(body: Any) -> Mapping[str, Any]:
    if not isinstance(body, dict):  # pydantic would make one of a list
        raise HTTPException(422, 'the settings are not an object; send {"section.name": value, ...}')
    return body


def _known(trainer: Trainer, id: str) -> RunFacts:
    """The job of that id, as the trainer finds it among those it lists; 404 if it does not."""
    with _told_as(404):
        return trainer.run(id)


def _require(trainer: Trainer, id: str, states: Sequence[str], waiting: bool = False) -> None:
    """409 unless the job is in hand in one of these states, or waits where that will do."""
    facts, status = _known(trainer, id), trainer.status()
    in_hand = status.id == id and status.state in states
    if not in_hand and not (waiting and id in status.waiting):
        raise HTTPException(409, f"job {id!r} is {facts.state}; it would have to be {' or '.join(states)}")


@contextmanager
def _told_as(code: int) -> Iterator[None]:
    """Errors of the user's own become answers of this code, with the message as detail."""
    try:
        yield
    except LoraError as error:
        raise HTTPException(code, str(error)) from error
