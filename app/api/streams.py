"""Server-sent events, and work that stops when the client that asked for it goes away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, TypeVar, cast

import structlog
from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Send

from app.errors import problem

T = TypeVar("T")

GONE = 499
"""For the log only: nobody reads a response whose client went away."""
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


def documented(names: Sequence[str], description: str) -> dict[str, Any]:
    """The response of a stream of such events, for the OpenAPI document."""
    data = {"type": "string", "description": "JSON"}
    event = {"type": "object", "required": ["event", "data"], "properties": {"event": {"enum": list(names)}, "data": data}}
    return {"description": description, "content": {"text/event-stream": {"schema": event}}}


class EventStream(StreamingResponse):
    """Closes its events however it ends: also when the client leaves while it has not taken what was sent."""

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers=HEADERS)

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        finally:
            await cast("AsyncGenerator[bytes, None]", self.body_iterator).aclose()


def sse(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()


def problem_event(code: str, detail: str) -> bytes:
    request_id = structlog.contextvars.get_contextvars().get("request_id", "")
    return sse("error", json.dumps(problem(code, detail, request_id=request_id), ensure_ascii=False))


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None if the client goes away before, and then `work` is stopped, and with it what it waits for."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
