"""The HTTP side of the review: a page, its list and pictures, and two writes.

A write names the version of what it changes; where somebody else was faster the answer is 409 with what is there now.
Pages of other sites are refused by Origin before anything else is looked at, other names of this machine by Host. No
answer reads a path that a client tells: images are asked for by the ids of the catalogue.
"""

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined

from masksmith.core.errors import DiskFullError, InputError
from masksmith.deploy.admission import Refusal, check_sender
from masksmith.project.corrections import ACTIONS, ConflictError, wrong_values
from masksmith.reporting.causes import CAUSES
from masksmith.steps.review.live import add_live
from masksmith.steps.review.queue import ORDERS, STATES, Query, line, listed
from masksmith.steps.review.ranking import Ranking, Split
from masksmith.steps.review.views import MENDABLE, MissingError, Views

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_FILES = {
    "review.css": "text/css",
    **dict.fromkeys(
        ("review.js", "review_canvas.js", "review_keys.js", "review_live.js", "review_page.js"),
        "text/javascript",
    ),
}
_FOLDER = resources.files("masksmith") / "reporting"
_BYTES = "application/octet-stream"
_MAX_JSON = 2**16
_HOUR = "private, max-age=3600"


def make_app(views: Views, ranking: Ranking, *, hosts: frozenset[str]) -> "FastAPI":
    """Return the application.

    Args:
        views: What is shown of an image, and what people said of it.
        ranking: Which images come first.
        hosts: Names in the header Host that are answered.
    """
    from fastapi import FastAPI

    app = FastAPI(title="masksmith review", docs_url=None, redoc_url=None, openapi_url=None)
    _add_guards(app, hosts)
    _add_page(app, views, ranking)
    _add_images(app, views, ranking)
    _add_writes(app, views)
    add_live(app, views.project)
    return app


def _add_guards(app: "FastAPI", hosts: frozenset[str]) -> None:
    """Refuse foreign senders, and answer every refusal as ``{"error": text}``."""
    from fastapi import Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from starlette.exceptions import HTTPException

    def answer_of(_: Request, error: Exception) -> Response:
        status, said = _answer(error)
        return JSONResponse(said, status, error.headers if isinstance(error, Refusal) else None)

    @app.middleware("http")
    async def guard(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            check_sender(request, token=None, hosts=hosts)
            answer = await proceed(request)
        except Refusal as refusal:
            answer = answer_of(request, refusal)
        answer.headers.update(_HEADERS)
        answer.headers.setdefault("Cache-Control", "no-store")
        return answer

    for kind in (Refusal, ConflictError, MissingError, HTTPException, RequestValidationError, InputError):
        app.add_exception_handler(kind, answer_of)


def _answer(error: Exception) -> tuple[int, dict[str, Any]]:
    """Return the status and the content that an error is answered with."""
    match error:
        case Refusal():
            return error.status, {"error": error.text}
        case ConflictError():
            text = "this image was changed in another window since it was opened"
            return 409, {"error": text, "now": asdict(error.now)}
        case MissingError():
            return 404, {"error": str(error)}
        case InputError():
            return 507 if isinstance(error, DiskFullError) else 422, {"error": str(error)}
    if hasattr(error, "errors"):  # a query that cannot be read
        wrong = (f"{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())
        return 422, {"error": "; ".join(wrong)}
    status = getattr(error, "status_code", 500)
    return status, {
        "error": "there is no such page" if status == 404 else getattr(error, "detail", str(error))
    }


def _add_page(app: "FastAPI", views: Views, ranking: Ranking) -> None:
    from fastapi import Response
    from fastapi.responses import HTMLResponse

    page, server = _page(views), time.time_ns()

    @app.get("/")
    def index() -> Response:
        return HTMLResponse(page)

    @app.get("/files/{name}")
    def file(name: str) -> Response:
        if name not in _FILES:
            raise MissingError("there is no such page")
        return Response((_FOLDER / name).read_text("utf-8"), media_type=_FILES[name])

    @app.get("/api/state")
    def state() -> dict[str, Any]:
        return _state(views, ranking) | {"server": server}

    @app.get("/api/list")
    def items(
        split: Split,
        order: str = "cost",
        cause: str = "",
        state: str = "all",
        find: str = "",
        offset: int = 0,
        limit: int = 60,
    ) -> dict[str, Any]:
        query = Query(order, cause, state, find, offset, limit)
        return listed(ranking.ranked[split], views.patches[split].rows, query)


def _add_images(app: "FastAPI", views: Views, ranking: Ranking) -> None:
    from fastapi import Response

    @app.get("/api/image")
    def image(split: Split, id: str) -> dict[str, Any]:
        facts, ranked, now = views.facts(split, id), ranking.ranked[split], views.patches[split].of(id)
        return facts | line(ranked, {id: now}, ranking.place(split, id))

    @app.get("/api/thumb")
    def thumb(split: Split, id: str) -> Response:
        return Response(views.thumb(split, id), media_type="image/jpeg", headers={"Cache-Control": _HOUR})

    @app.get("/api/picture")
    def picture(split: Split, id: str, kind: str = "image") -> Response:
        body, media_type = views.picture(split, id, kind)
        return Response(body, media_type=media_type)

    @app.get("/api/mask")
    def mask(split: Split, id: str, kind: str) -> Response:
        return Response(views.mask(split, id, kind), media_type=_BYTES)

    @app.get("/api/probabilities")
    def probabilities(split: Split, id: str, layer: int = 0) -> Response:
        return Response(views.probabilities(split, id, layer), media_type=_BYTES)


def _add_writes(app: "FastAPI", views: Views) -> None:
    from fastapi import Request
    from starlette.concurrency import run_in_threadpool

    @app.put("/api/judgement")
    async def judge(request: Request, split: Split, id: str, version: int) -> dict[str, Any]:
        views.check(split, id)
        action, note = _judgement(await _body(request, _MAX_JSON), id)
        say = views.patches[split].say
        return asdict(await run_in_threadpool(say, id, action, note=note, version=version))

    @app.put("/api/mask")
    async def mend(request: Request, split: Split, id: str, version: int, note: str = "") -> dict[str, Any]:
        facts = views.facts(split, id)
        if facts["why"]:
            raise InputError(f"{id!r}: {facts['why']}")
        height, width = facts["hw"]
        raw = await _body(request, height * width)
        if len(raw) != height * width:
            raise InputError(
                f"{id!r}: a mask of {len(raw)} bytes; expected {height} x {width}, a byte a pixel"
            )
        drawn = np.frombuffer(raw, np.uint8).reshape(height, width)
        if problem := wrong_values(drawn, views.values):
            raise InputError(f"{id!r}: {problem}; expected 0 to {views.values - 1}, and 255 for not judged")
        write = views.patches[split].mend
        return asdict(await run_in_threadpool(write, id, drawn, note=note, version=version))


async def _body(request: "Request", most: int) -> bytes:
    """Return the body of a request.

    Raises:
        Refusal: It is larger than ``most``, or the client went away before all of it came: nothing is written.
    """
    from starlette.requests import ClientDisconnect

    parts, size = list[bytes](), 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > most:
                raise Refusal(413, f"the body is larger than {most:,} bytes", {"Connection": "close"})
            parts.append(part)
    except ClientDisconnect as error:
        raise Refusal(400, "the client went away") from error
    return b"".join(parts)


def _judgement(raw: bytes, name: str) -> tuple[str, str]:
    """Return action and note.

    Raises:
        InputError: It is another thing.
    """
    try:
        value = json.loads(raw)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not all(isinstance(value.get(key), str) for key in ("action", "note")):
        raise InputError(f'{name!r}: expected {{"action": text, "note": text}}')
    return value["action"], value["note"]


def _page(views: Views) -> str:
    environment = Environment(
        loader=PackageLoader("masksmith", "reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    catalog = views.project.catalog
    return environment.get_template("review.html").render(
        title=Path(catalog.root).name,
        target=views.target,
        counts={"train": len(catalog.train), "test": len(catalog.test)},
        orders=ORDERS,
        states=STATES,
        actions=ACTIONS,
        mendable=views.target.task in MENDABLE,
    )


def _state(views: Views, ranking: Ranking) -> dict[str, Any]:
    """Return what the page needs to know of the project, and how far the ranking is."""
    project, predicted, target = views.project, ranking.predicted, views.target
    metric = predicted.metric
    return {
        "project": str(project.root.resolve()),
        "content": project.catalog.content_hash,
        "task": target.task,
        "classes": list(target.classes),
        "colours": views.colours,
        "background": views.background,
        "metric": metric.name if metric else "",
        "lower": metric is not None and not metric.higher_is_better,
        "said": predicted.said,
        "number": predicted.number,
        "causes": CAUSES,
        "splits": {
            split: {"done": one.done, "todo": one.todo, "edition": one.edition, "total": len(one.ids)}
            for split, one in ranking.ranked.items()
        },
    }
