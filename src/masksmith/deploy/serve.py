"""A small server that segments images: one model, one thread that computes, a short queue.

What is beyond the queue is answered 429 at once. Bodies, pixels and seconds are bounded, a bad image is an answer
(422), and no answer depends on a name or type that the client tells. By default only this machine reaches it; others
need a token. Pages of other sites are refused by Origin, and names of other sites that lead to this machine by Host
(DNS rebinding).
"""

import asyncio
import html
import ipaddress
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from masksmith.core.arrays import Image
from masksmith.core.config import look_up
from masksmith.core.errors import InputError
from masksmith.core.progress import logger
from masksmith.data.decode.headers import image_size
from masksmith.data.decode.reader import ImageReader
from masksmith.data.tree import Tree
from masksmith.deploy.admission import (
    Limits,
    Refusal,
    Sent,
    Worker,
    check_length,
    check_sender,
    drain,
    read_image,
)
from masksmith.deploy.answers import ANSWERS, picture, summary, thresholds_of
from masksmith.deploy.listening import bind, import_fastapi
from masksmith.deploy.picture import shown_classes
from masksmith.deploy.segmenter import Segmenter
from masksmith.postprocess.classes import ClassRule
from masksmith.postprocess.rules import decision_of

if TYPE_CHECKING:
    from fastapi import FastAPI, Request

TOKEN_VARIABLE = "MASKSMITH_TOKEN"
_MOST_TOLD = 5
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def make_app(
    model: Segmenter, limits: Limits, *, token: str | None = None, hosts: frozenset[str] | None = None
) -> "FastAPI":
    """Return the application.

    Args:
        model: What segments.
        limits: What a request may cost.
        token: What ``Authorization: Bearer TOKEN`` must say; None: nobody is asked.
        hosts: Names in the header Host that are answered; None: all.

    Raises:
        InputError: The extra ``serve`` is not installed.
    """
    import_fastapi()
    from fastapi import FastAPI, Request, Response
    from fastapi.responses import HTMLResponse, JSONResponse

    worker = Worker(limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()

    app = FastAPI(
        title="masksmith",
        version=version("masksmith"),
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )

    @app.middleware("http")
    async def guard(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        try:
            check_sender(request, token=token, hosts=hosts)
            answer = await proceed(request)
        except Refusal as refusal:
            answer = await refused(request, refusal)
        answer.headers.update(_HEADERS)
        return answer

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return JSONResponse({"error": refusal.text}, refusal.status, refusal.headers)

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return HTMLResponse(resources.files("masksmith.deploy").joinpath("serve.html").read_text("utf-8"))

    @app.get("/docs", include_in_schema=False)
    async def docs() -> Response:
        return HTMLResponse(docs_page(app.openapi()))

    @app.get("/health", summary="Whether the server is up, and how many requests are inside")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "inside": worker.inside, "queue": limits.queue}

    @app.get("/info", summary="What the model is")
    async def info() -> dict[str, Any]:
        return info_of(model, limits)

    @app.post("/segment", summary="Segment an image", openapi_extra=_schema(model), response_class=Response)
    async def segment(request: Request) -> Response:
        done = await _segment(request, model, worker)
        return Response(done.body, media_type=done.media_type, headers=done.headers)

    return app


async def _segment(request: "Request", model: Segmenter, worker: Worker) -> Sent:
    """Answer a request, or refuse it."""
    limits, query = worker.limits, dict(request.query_params)
    answer = query.pop("answer", "png")
    check_length(request, limits)

    async def within() -> Sent:
        numbers = _numbers(model, query)
        look_up({**ANSWERS, "picture": None}, answer, where="answer")
        async with worker.place() as place:
            raw = await read_image(request, limits)
            return await place.run(lambda: answer_of(model, raw, answer, numbers, limits))

    try:
        async with asyncio.timeout(limits.timeout_s):
            try:
                return await within()
            except Refusal as refusal:
                if refusal.status == 429:
                    await drain(request, limits)
                raise
    except TimeoutError:
        text = f"not done after {limits.timeout_s:g} s; send a smaller image, or try again later"
        raise Refusal(503, text) from None
    except InputError as error:
        raise Refusal(422, str(error)) from error


def _numbers(model: Segmenter, query: Mapping[str, str]) -> dict[str, float]:
    """Return the numbers that the model takes, of the query.

    Raises:
        InputError: One is missing or no finite number, or there is more in the query.
    """
    if set(query) != set(model.scalars):
        given, expected = ", ".join(query) or "nothing", ", ".join(["answer", *model.scalars])
        raise InputError(f"query: {given}; expected {expected}")
    try:
        numbers = {name: float(text) for name, text in query.items()}
    except ValueError as error:
        raise InputError(f"query: {error}; expected numbers") from error
    if not all(map(math.isfinite, numbers.values())):
        raise InputError(f"query: {numbers}; expected finite numbers")
    return numbers


# --- what is answered ---------------------------------------------------------------------------------------


def decode(raw: bytes, limits: Limits) -> Image:
    """Decode an image by what its bytes are.

    Raises:
        InputError: It is none, damaged, or has too many pixels.
    """
    size = image_size(raw)
    if size is not None:
        _check_pixels(size, limits)
    with tempfile.TemporaryDirectory(prefix="masksmith-serve-") as folder:
        path = Path(folder) / "image"  # never the client's name
        path.write_bytes(raw)
        image = ImageReader(Tree(path.parent, only=path)).image("image")
    _check_pixels(image.shape[:2], limits)
    return image


def _check_pixels(hw: tuple[int, ...], limits: Limits) -> None:
    if hw[0] * hw[1] > limits.max_pixels:
        raise InputError(
            f"image: {hw[0]}x{hw[1]} = {hw[0] * hw[1]:,} pixels; at most {limits.max_pixels:,} are segmented here, run "
            "`masksmith apply` on it, or cut it into tiles"
        )


def answer_of(model: Segmenter, raw: bytes, answer: str, numbers: dict[str, float], limits: Limits) -> Sent:
    """Decode, segment and encode.

    Raises:
        InputError: The image cannot be used, or cannot be answered so.
    """
    image = model.fit(decode(raw, limits))
    if answer == "picture":
        return Sent(*picture(image), {})
    found = model.segment(image, scalars=numbers or None)
    said = summary(model, found)
    told = json.dumps(said | {"unlike": said["unlike"][:_MOST_TOLD]})  # a header: short, in ASCII
    return Sent(*ANSWERS[answer](model, found), {"X-Masksmith": told})


def info_of(model: Segmenter, limits: Limits) -> dict[str, Any]:
    """Return what a client needs to know of the model."""
    facts, rule = model.bundle.facts, decision_of(model.rule)
    return {
        "name": facts.name,
        "task": model.task,
        "classes": list(model.classes),
        "outputs": model.target.outputs,
        "channels": facts.channels,
        "dtype": facts.dtype,
        "scalars": model.scalars,
        "rule": facts.rule_text,
        "thresholds": thresholds_of(model),
        "weights": list(rule.weights) if isinstance(rule, ClassRule) else [],
        "background": len(model.classes) - len(shown_classes(model.target)),
        "members": len(facts.members),
        "scores": facts.scores,
        "licence": facts.licence,
        "intended_use": facts.intended_use,
        "masksmith": version("masksmith"),
        "limits": {"bytes": limits.max_bytes, "pixels": limits.max_pixels, "seconds": limits.timeout_s},
    }


def _schema(model: Segmenter) -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    form = {
        "type": "object",
        "properties": {"file": {"type": "string", "format": "binary"}},
        "required": ["file"],
    }
    error = {"application/json": {"schema": {"type": "object", "properties": {"error": {"type": "string"}}}}}
    texts = {
        400: "a damaged multipart body",
        401: "no token, or a wrong one",
        403: "a page of another site",
        413: "a body that is too large",
        422: "an image that cannot be used",
        429: "the queue is full: try again after Retry-After seconds",
        503: "not done in time",
    }
    kinds = {
        "image/png": binary,
        "application/json": {"schema": {"type": "object"}},
        "application/x-npy": binary,
    }
    numbers = [
        {"name": name, "in": "query", "required": True, "schema": {"type": "number"}}
        for name in model.scalars
    ]
    answers = {"type": "string", "enum": [*ANSWERS, "picture"], "default": "png"}
    return {
        "description": "The body is an image file (PNG, JPEG, TIFF, DICOM …), or multipart with a part `file`. "
        "Answers: `png` the mask, `json` polygons, `rle` COCO run-lengths, `overlay` the image with it, `probs` "
        "probabilities as .npy of uint16 (h, w, k), 65535 being 1, `picture` the image as PNG. The header "
        "X-Masksmith says areas, confidence, and what is unlike the training set.",
        "parameters": [{"name": "answer", "in": "query", "schema": answers}, *numbers],
        "requestBody": {
            "required": True,
            "content": {"application/octet-stream": binary, "multipart/form-data": {"schema": form}},
        },
        "responses": {
            "200": {"description": "the segmentation", "content": kinds},
            **{str(status): {"description": text, "content": error} for status, text in texts.items()},
        },
    }


_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;color:#1d2733}
table{font-size:.9rem}th{text-align:left;padding-right:1.5rem;white-space:nowrap;vertical-align:top;font-weight:500}
h2{margin-top:2rem}"""


def _code(text: str) -> str:
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))


def docs_page(schema: dict[str, Any]) -> str:
    """Return the OpenAPI description as a plain page, without scripts."""
    parts = [
        f"<h1>{html.escape(schema['info']['title'])}</h1>",
        "<p>For programs: <a href=/openapi.json>openapi.json</a>. Try it: <a href=/>drop an image</a>.</p>",
    ]
    for path, methods in schema["paths"].items():
        for method, one in methods.items():
            parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
            parts += [f"<p>{_code(one.get(key, ''))}</p>" for key in ("summary", "description")]
            rows = [
                (f"{item['name']} (query)", json.dumps(item["schema"])) for item in one.get("parameters", [])
            ]
            rows += [(status, item["description"]) for status, item in one["responses"].items()]
            cells = (f"<tr><th>{html.escape(name)}<td>{html.escape(text)}" for name, text in rows)
            parts.append(f"<table>{''.join(cells)}</table>")
    head = f"<!doctype html><html lang=en><meta charset=utf-8><title>masksmith: API</title><style>{_STYLE}</style>"
    return f"{head}{''.join(parts)}</html>"


# --- the process --------------------------------------------------------------------------------------------


def serve_model(
    model: Segmenter,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token: str | None = None,
    limits: Limits | None = None,
) -> None:
    """Serve a model until Ctrl-C or SIGTERM; requests that are inside are finished.

    Args:
        model: What segments.
        host: Name or address that is listened on.
        port: TCP port, 0: any that is free.
        token: Required where other machines may ask; None: the environment variable MASKSMITH_TOKEN.
        limits: What a request may cost.

    Raises:
        InputError: The port is in use or not allowed, no such host, or no token for a host that others reach.
    """
    import_fastapi()
    import uvicorn

    limits = limits or Limits()
    token = token or os.environ.get(TOKEN_VARIABLE) or None
    own = _is_loopback(host)
    if not own and token is None:
        raise InputError(
            f"--host {host}: other machines may reach it; set {TOKEN_VARIABLE} to a secret that they must send, or "
            "leave --host out"
        )
    hosts = frozenset({"localhost", "127.0.0.1", "::1", host}) if own else None
    app = make_app(model, limits, token=token, hosts=hosts)
    listening = bind(host, port)
    config = uvicorn.Config(
        app,
        log_level=logging.WARNING,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_keep_alive=10,
        timeout_graceful_shutdown=math.ceil(limits.timeout_s),
    )
    shown = f"[{host}]" if ":" in host else host
    logger.info(
        "http://%s:%d/ serves %s; Ctrl-C ends it", shown, listening.getsockname()[1], model.bundle.facts.name
    )
    with listening:
        uvicorn.Server(config).run(sockets=[listening])


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
