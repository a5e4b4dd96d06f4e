"""`POST /query` and `POST /search`."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from time import perf_counter
from typing import Any

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from app.answer import Delta, Found, hit_out
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

_EVENTS = {
    "description": "the answer; with `stream` the events hits, delta, citation, then done (the answer) or error (a problem)",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
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
        return StreamingResponse(_stream(first, events), media_type="text/event-stream", headers=headers)
    async with aclosing(events):
        async for event in events:
            if isinstance(event, Answer):
                return Response(event.model_dump_json(), media_type="application/json")
    return JSONResponse({}, 500)  # pragma: no cover - an answer always ends with one


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


async def _stream(first: Any, events: AsyncGenerator[Any, None]) -> AsyncGenerator[bytes, None]:
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


def _event(event: Any) -> bytes:
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
