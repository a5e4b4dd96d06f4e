"""`POST /query` and `POST /search`."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from time import perf_counter

import structlog
from fastapi import APIRouter, Request
from fastapi.responses import Response

from app.admission import Admission, settled
from app.answer import Delta, Event, Found, hit_out
from app.api.errors import problems
from app.api.filters import parse_filter
from app.api.inputs import printable
from app.api.open import Open
from app.api.streams import GONE, EventStream, documented, problem_event, sse, while_connected
from app.deadline import Deadline
from app.errors import QuestionTooLong
from app.schemas import Answer, Citation, QueryRequest, SearchRequest, SearchResponse
from app.wiring import Service
from retrieval.errors import FootnoteError, InvalidInput, NotYetVisible
from retrieval.types import Query

router = APIRouter(tags=["query"])
log = structlog.get_logger(__name__)

_EVENTS = documented(
    ["hits", "delta", "citation", "done", "error"],
    "the answer; with `stream` the events hits, delta, citation, then done (the answer) or error (a problem)",
)
LONGEST_RETRY_SECONDS = 600


@router.post("/search", response_model=SearchResponse, responses=problems(404, 409, 502, 504))
async def search(service: Open, body: SearchRequest, request: Request) -> Response:
    """The chunks that fit a question best, without an answer."""
    began = perf_counter()
    found = await while_connected(request, _search(service, body, request.app.state.admission))
    if found is None:
        return Response(status_code=GONE)
    timings = {**found.timings_ms, "total": (perf_counter() - began) * 1000}
    response = SearchResponse(
        hits=[hit_out(hit) for hit in found.hits],
        collection=found.collection,
        generation=found.generation,
        timings_ms={name: round(value, 2) for name, value in timings.items()},
    )
    return Response(response.model_dump_json(), media_type="application/json")


async def _search(service: Service, body: SearchRequest, admission: Admission) -> Found:
    query, deadline = _query(service, body), _deadline(service, body)
    async with deadline.kept():
        await _until_visible(service, body)
        async with admission:
            return await service.answerer.search(body.collection, query)


@router.post("/query", response_model=Answer, responses={200: _EVENTS, **problems(404, 409, 502, 504)})
async def query(service: Open, body: QueryRequest, request: Request) -> Response:
    """An answer from the collection's documents, every sentence with its footnote; `abstained` if nothing relevant is found."""
    asked, deadline = _query(service, body), _deadline(service, body)
    events = deadline.each(service.answerer.answer(body.collection, asked, history=body.history, model=body.llm))

    async def begin() -> Event:
        async with deadline.kept():
            await _until_visible(service, body)
            async with request.app.state.admission:
                return await anext(events)

    first = await while_connected(request, begin())  # what can be refused is refused here, with a status of its own
    if first is not None and body.stream:
        return EventStream(_stream(first, events))
    answer = await while_connected(request, _last(first, events)) if first is not None else None
    if answer is None:
        return Response(status_code=GONE)
    return Response(answer.model_dump_json(), media_type="application/json")


def _deadline(service: Service, body: SearchRequest) -> Deadline:
    longest = service.settings.max_query_seconds
    return Deadline(longest if body.timeout_seconds is None else min(body.timeout_seconds, longest))


async def _until_visible(service: Service, body: SearchRequest) -> None:
    """Raises `NotYetVisible` if the write that `consistent_with` names is not settled within `wait_seconds`."""
    if body.consistent_with is None or await settled(service, body.consistent_with, body.wait_seconds):
        return
    seconds = await service.pace.seconds_for(await service.pace.queued() + 1, unknown=10.0)
    raise NotYetVisible(
        f"what was written is not settled after {body.wait_seconds:g} s: give more wait_seconds, or ask again after the "
        "seconds in Retry-After",
        retry_after=min(seconds, LONGEST_RETRY_SECONDS),
    )


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


async def _stream(first: Event, events: AsyncGenerator[Event, None]) -> AsyncGenerator[bytes, None]:
    """Server-sent events. When the client goes away this generator is closed, and with it the model."""
    async with aclosing(events):
        try:
            yield _event(first)
            async for event in events:
                yield _event(event)
        except FootnoteError as exc:
            log.warning("stream_failed", code=exc.code, detail=exc.message)
            yield problem_event(exc.code, exc.message)
        except Exception:
            log.exception("stream_crashed")
            yield problem_event("internal_error", "an unexpected error; the log of the service has the details")


def _event(event: Event) -> bytes:
    match event:
        case Found():
            hits = ",".join(hit_out(hit).model_dump_json() for hit in event.hits)
            return sse("hits", f"[{hits}]")
        case Delta():
            return sse("delta", json.dumps({"text": event.text}, ensure_ascii=False))
        case Citation():
            return sse("citation", event.model_dump_json())
        case _:
            return sse("done", event.model_dump_json())
