"""Around every request: an id in each log line and response, a limit on the body, metrics, and no bare 500."""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from contextlib import suppress
from time import perf_counter

import structlog
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import RequestTooLarge, problem
from app.metrics import REQUESTS, SECONDS
from app.settings import MIB

log = structlog.get_logger(__name__)

MAX_BUFFERED_MB = 64
"""Only files stream to disk; any other body is held in memory whole."""
SHORT_BYTES = 64 * 1024
"""So little is read to its end, whatever the answer is."""
LINGER_BYTES = 32 * MIB
LINGER_SECONDS = 2.0
METHODS = {"GET", "HEAD", "POST", "PATCH", "PUT", "DELETE", "OPTIONS"}


class Requests:
    """Pure ASGI, so that a stream passes through piece by piece and a client that goes away is noticed at once."""

    def __init__(self, app: ASGIApp, *, max_body: int) -> None:
        self.app = app
        self.max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_id = _request_id(Headers(scope=scope).get("x-request-id"))
        structlog.contextvars.clear_contextvars()
        structlog.contextvars.bind_contextvars(request_id=request_id)
        body = _Body(scope, receive, self.max_body)
        began, status = perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = request_id
                if body.is_unread:
                    headers["Connection"] = "close"  # else the server reads what is still to come, however much it is
                _observe(scope, status, perf_counter() - began)
            elif body.is_unread and not message.get("more_body"):
                await send({**message, "more_body": True})
                await body.linger()
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        try:
            await self.app(scope, body.receive, send_with_id)
        except Exception:
            log.exception("request_crashed", path=scope["path"])
            if status:
                raise  # the response has begun: the connection must break, so that nobody takes it for whole
            await _internal_error(send_with_id, request_id)
        finally:
            log.info(
                "request",
                method=scope["method"],
                path=scope["path"],
                status=status,
                ms=round((perf_counter() - began) * 1000, 1),
            )


def _request_id(given: str | None) -> str:
    """The caller's own id if it is fit for a log, else a new one."""
    return given if given and re.fullmatch(r"[\w.:/+=-]{1,128}", given, re.ASCII) else secrets.token_hex(8)


class _Body:
    """A request's body as it comes in: refused while it streams if it is too large, whether or not it says its length."""

    def __init__(self, scope: Scope, receive: Receive, limit: int) -> None:
        headers = Headers(scope=scope)
        cure = "send fewer files at once, or raise FOOTNOTE_MAX_REQUEST_MB"
        is_form = headers.get("content-type", "").lower().startswith("multipart/form-data")
        if not is_form and limit > MAX_BUFFERED_MB * MIB:
            limit, cure = MAX_BUFFERED_MB * MIB, "send larger documents as files, as multipart/form-data"
        said = headers.get("content-length", "")
        self._is_long = "transfer-encoding" in headers or (said.isdigit() and int(said) > SHORT_BYTES)
        self._receive = receive
        self._left = limit
        self._more = True
        self.too_large = said.isdigit() and int(said) > limit
        self._refusal = RequestTooLarge(f"the body is larger than {limit // MIB} MiB: {cure}")

    @property
    def is_unread(self) -> bool:
        """Whether much of it may still come though it is answered: it is too large, or what it asks for was refused at once."""
        return self.too_large or (self._more and self._is_long)

    async def receive(self) -> Message:
        if self.too_large:
            raise self._refusal
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        self._more = message.get("more_body", False)
        if self._left < 0:
            self.too_large = True
            raise self._refusal
        return message

    async def linger(self) -> None:
        """Read on for a moment: a connection that is closed over unread bytes is reset, and the refusal may be lost."""
        left = LINGER_BYTES
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                while self._more and left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    self._more = message.get("more_body", False)


def _observe(scope: Scope, status: int, seconds: float) -> None:
    route = getattr(scope.get("route"), "path", "none")
    method = scope["method"] if scope["method"] in METHODS else "other"  # a caller may invent any number of them
    REQUESTS.labels(method, route, status).inc()
    SECONDS.labels(method, route).observe(seconds)


async def _internal_error(send: Send, request_id: str) -> None:
    detail = "an unexpected error; the service's log has it under this request_id"
    body = json.dumps(problem("internal_error", detail, request_id=request_id)).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})
