"""`POST /query` and `POST /search`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Coroutine
from contextlib import aclosing
from time import perf_counter
from typing import Any, TypeVar, cast

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.types import Send

from app.answer import Delta, Event, Found, hit_out
from app.api.errors import problems
from app.api.filters import parse_filter
from app.api.inputs import printable
from app.api.open import Open
from app.errors import QuestionTooLong, problem
from app.schemas import Answer, Citation, QueryRequest, SearchRequest, SearchResponse
from app.wiring import Service
from retrieval.errors import FootnoteError, InvalidInput
from retrieval.types import Query

router = APIRouter(tags=["query"])
log = structlog.get_logger(__name__)

T = TypeVar("T")

GONE = 499
"""For the log only: nobody reads a response whose client went away."""

_EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {
        "event": {"enum": ["hits", "delta", "citation", "done", "error"]},
        "data": {"type": "string", "description": "JSON"},
    },
}
_EVENTS = {
    "description": "the answer; with `stream` the events hits, delta, citation, then done (the answer) or error (a problem)",
    "content": {"text/event-stream": {"schema": _EVENT}},
}


@router.post("/search", response_model=SearchResponse, responses=problems(404, 409, 502))
async def search(service: Open, body: SearchRequest, request: Request) -> Response:
    """The chunks that fit a question best, without an answer."""
    began = perf_counter()
    query = _query(service, body)
    async with request.app.state.admission:
        found = await service.answerer.search(body.collection, query)
    timings = {**found.timings_ms, "total": (perf_counter() - began) * 1000}
    response = SearchResponse(
        hits=[hit_out(hit) for hit in found.hits],
        collection=found.collection,
        generation=found.generation,
        timings_ms={name: round(value, 2) for name, value in timings.items()},
    )
    return Response(response.model_dump_json(), media_type="application/json")


@router.post("/query", response_model=Answer, responses={200: _EVENTS, **problems(404, 409, 502)})
async def query(service: Open, body: QueryRequest, request: Request) -> Response:
    """An answer from the collection's documents, every sentence with its footnote; `abstained` if nothing relevant is found."""
    asked = _query(service, body)
    events = service.answerer.answer(body.collection, asked, history=body.history, model=body.llm)
    async with request.app.state.admission:
        first = await anext(events)  # what can be refused is refused here, with a status of its own
    if body.stream:
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return _EventStream(_stream(first, events), media_type="text/event-stream", headers=headers)
    answer = await _while_connected(request, _last(first, events))
    if answer is None:
        return Response(status_code=GONE)
    return Response(answer.model_dump_json(), media_type="application/json")


def _query(service: Service, body: SearchRequest) -> Query:
    longest = service.settings.max_question_chars
    if len(body.question) > longest:
        raise QuestionTooLong(
            f"question: has {len(body.question)} characters, at most {longest} are taken (FOOTNOTE_MAX_QUESTION_CHARS)"
        )
    text = printable(body.question, what="question").strip()
    if not text:
        raise InvalidInput("question: is empty")
    return Query(text, body.top_k, body.mode, parse_filter(body.filter))


async def _last(first: Event, events: AsyncGenerator[Event, None]) -> Answer | None:
    """The answer, which is what the events end with."""
    last = first
    async with aclosing(events):
        async for event in events:
            last = event
    return last if isinstance(last, Answer) else None


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None if the client goes away before, and then `work` is stopped, and with it the model."""
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


class _EventStream(StreamingResponse):
    """Closes its events however it ends: also when the client leaves while it has not taken what was sent."""

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        finally:
            await cast("AsyncGenerator[bytes, None]", self.body_iterator).aclose()


async def _stream(first: Event, events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    """Server-sent events. When the client goes away this generator is closed, and with it the model."""
    async with aclosing(events):
        try:
            yield _event(first)
            async for event in events:
                yield _event(event)
        except FootnoteError as exc:
            log.warning("stream_failed", code=exc.code, detail=exc.message)
            yield _problem_event(exc.code, exc.message)
        except Exception:
            log.exception("stream_crashed")
            yield _problem_event("internal_error", "an unexpected error; the log of the service has the details")


def _event(event: Event) -> bytes:
    match event:
        case Found():
            hits = ",".join(hit_out(hit).model_dump_json() for hit in event.hits)
            return _sse("hits", f"[{hits}]")
        case Delta():
            return _sse("delta", json.dumps({"text": event.text}, ensure_ascii=False))
        case Citation():
            return _sse("citation", event.model_dump_json())
        case _:
            return _sse("done", event.model_dump_json())


def _problem_event(code: str, detail: str) -> bytes:
    request_id = structlog.contextvars.get_contextvars().get("request_id", "")
    return _sse("error", json.dumps(problem(code, detail, request_id=request_id), ensure_ascii=False))


def _sse(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()
