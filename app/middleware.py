"""Around every request: an id in each log line and response, a limit on the body, metrics, and no bare 500."""

from __future__ import annotations

import json
import re
import secrets
from time import perf_counter

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import RequestTooLarge, problem

log = structlog.get_logger(__name__)

REGISTRY = CollectorRegistry()
REQUESTS = Counter(
    "footnote_http_requests_total", "HTTP requests by route and status", ["method", "route", "status"], registry=REGISTRY
)
SECONDS = Histogram(
    "footnote_http_request_seconds",
    "Seconds from a request to the start of its response",
    ["method", "route"],
    registry=REGISTRY,
)


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
        began, status = perf_counter(), 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
                _observe(scope, status, perf_counter() - began)
            await send(message)

        try:
            await self.app(scope, _limited(scope, receive, self.max_body), send_with_id)
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


def _limited(scope: Scope, receive: Receive, limit: int) -> Receive:
    """Refuse a body that is too large while it streams, whether or not it says its length."""
    too_large = RequestTooLarge(
        f"the body is larger than {limit // 2**20} MiB; send fewer files at once, or raise FOOTNOTE_MAX_REQUEST_MB"
    )
    said = Headers(scope=scope).get("content-length", "")
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        if said.isdigit() and int(said) > limit:
            raise too_large
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > limit:
            raise too_large
        return message

    return counted


def _observe(scope: Scope, status: int, seconds: float) -> None:
    route = getattr(scope.get("route"), "path", "none")
    REQUESTS.labels(scope["method"], route, status).inc()
    SECONDS.labels(scope["method"], route).observe(seconds)


async def _internal_error(send: Send, request_id: str) -> None:
    detail = "an unexpected error; the service's log has it under this request_id"
    body = json.dumps(problem("internal_error", detail, request_id=request_id)).encode()
    headers = [(b"content-type", b"application/problem+json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 500, "headers": headers})
    await send({"type": "http.response.body", "body": body})
