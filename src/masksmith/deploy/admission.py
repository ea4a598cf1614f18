"""Which requests are let in: who asks, how much is read, and how many wait."""

import asyncio
import hmac
import math
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from fastapi import Request

_OPEN = frozenset({"/", "/health", "/docs", "/openapi.json"})
"""Paths that need no token: pages, and how to ask; they say no more of the model than the numbers it takes."""
_MULTIPART = 2**16
"""Bytes that a multipart body may have beyond the file's."""


@dataclass(frozen=True)
class Limits:
    """What one request may cost."""

    max_bytes: int = 64 * 2**20
    """Of an image's file."""
    max_pixels: int = 2**25
    """Of an image."""
    timeout_s: float = 60.0
    """For a request, with the wait."""
    queue: int = 8
    """Requests that wait while one is computed."""


class Refusal(Exception):
    """An answer that is no result."""

    def __init__(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.text, self.headers = status, text, headers or {}


class Sent(NamedTuple):
    """An answer."""

    body: bytes
    media_type: str
    headers: dict[str, str]


class Worker:
    """One thread that computes, and the count of the requests that are inside."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.inside = 0
        self.seconds = 1.0
        """Of a request, a moving mean."""
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="segment")

    @asynccontextmanager
    async def place(self) -> AsyncIterator["Place"]:
        """Take a place; it is free again when its work is done, even if nobody waits for that any more.

        Raises:
            Refusal: None is free.
        """
        if self.inside > self.limits.queue:
            wait = math.ceil(self.seconds * self.inside)
            raise Refusal(
                429, f"{self.inside} requests are inside; try again in {wait} s", {"Retry-After": str(wait)}
            )
        self.inside += 1
        place = Place(self)
        try:
            yield place
        finally:
            if place.future is None:
                self.inside -= 1

    def submit(self, work: Callable[[], Sent]) -> "Future[Sent]":
        """Start work when the thread is free."""
        loop = asyncio.get_running_loop()

        def leave(_: object) -> None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._leave)

        def timed() -> Sent:
            start = time.monotonic()
            try:
                return work()
            finally:
                self.seconds += 0.2 * (time.monotonic() - start - self.seconds)

        future = self._pool.submit(timed)
        future.add_done_callback(leave)
        return future

    def _leave(self) -> None:
        self.inside -= 1

    def close(self) -> None:
        """End the thread when its work is done."""
        self._pool.shutdown(wait=False, cancel_futures=True)


class Place:
    """A request's place in the queue."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.future: Future[Sent] | None = None

    async def run(self, work: Callable[[], Sent]) -> Sent:
        """Return what work returns."""
        self.future = self.worker.submit(work)
        return await asyncio.wrap_future(self.future)


def check_sender(request: "Request", *, token: str | None, hosts: frozenset[str] | None) -> None:
    """Refuse who may not ask; see make_app.

    Raises:
        Refusal: 403: a page of another site; 421: another Host; 401: no token, or a wrong one.
    """
    host = request.headers.get("host", "")
    origin = request.headers.get("origin")
    if origin is not None and origin.partition("://")[2] != host:
        raise Refusal(403, f"Origin {origin!r}: pages of other sites are not answered")
    if hosts is not None and _name_of(f"//{host}") not in hosts:
        raise Refusal(421, f"Host {host!r} is not answered; expected {' or '.join(sorted(hosts))}")
    if token is not None and request.url.path not in _OPEN:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(
            given.strip().encode("latin-1"),
            token.encode(),  # as which headers are decoded
        ):
            raise Refusal(
                401, "expected the header `Authorization: Bearer TOKEN`", {"WWW-Authenticate": "Bearer"}
            )


def _name_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def check_length(request: "Request", limits: Limits) -> None:
    """Refuse a body by what its header says, before any of it is read.

    Raises:
        Refusal: 413.
    """
    length = request.headers.get("content-length")
    if length is not None and length.isdecimal() and int(length) > limits.max_bytes + _MULTIPART:
        raise _too_large(limits)


def _too_large(limits: Limits) -> Refusal:
    text = f"the body is larger than {limits.max_bytes / 2**20:g} MiB; send a smaller file, or run `masksmith apply`"
    return Refusal(413, text, {"Connection": "close"})


async def drain(request: "Request", limits: Limits) -> None:
    """Take in the body of a request that is refused: many clients read no answer before they have sent it all.

    Raises:
        Refusal: 413.
    """
    async for _ in _bounded(request, limits):
        pass


async def _bounded(request: "Request", limits: Limits) -> AsyncGenerator[bytes, None]:
    """Yield a body as it comes, with or without a length in its header."""
    from starlette.requests import ClientDisconnect

    size = 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limits.max_bytes + _MULTIPART:
                raise _too_large(limits)
            yield chunk
    except ClientDisconnect as error:
        raise Refusal(400, "the client went away") from error


async def read_image(request: "Request", limits: Limits) -> bytes:
    """Return the image's file: the part ``file`` of a multipart body, or the body.

    Raises:
        Refusal: It is too large, or a multipart body has no such part or is damaged.
    """
    raw = b"".join([chunk async for chunk in _bounded(request, limits)])
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "multipart/form-data":
        raw = await _part(request, raw)
    if len(raw) > limits.max_bytes:
        raise _too_large(limits)
    return raw


async def _part(request: "Request", raw: bytes) -> bytes:
    """Return the part ``file``; its name and type are not looked at."""
    from starlette.datastructures import UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def whole() -> AsyncGenerator[bytes, None]:
        yield raw

    try:
        form = await MultiPartParser(request.headers, whole(), max_files=1, max_fields=8).parse()
    except (MultiPartException, KeyError, ValueError) as error:
        text = getattr(error, "message", str(error))
        raise Refusal(400, f"the multipart body cannot be read ({text}); expected a part `file`") from error
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise Refusal(
                400,
                "the multipart body has no part `file` with a file; send one, or the file itself as the body",
            )
        return await file.read()
    finally:
        await form.close()
