"""Alive, ready, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from app import __version__
from app.api.open import Open
from app.middleware import REGISTRY
from app.schemas import Health, Ready
from ingest.notices import backlog
from retrieval.errors import FootnoteError

router = APIRouter(tags=["operations"])

CHECK_SECONDS = 5.0


@router.get("/healthz", response_model=Health)
async def healthz() -> Health:
    """The process is alive; asks nothing of anybody."""
    return Health(status="alive", version=__version__)


@router.get("/readyz", response_model=Ready, responses={503: {"model": Ready, "description": "a dependency does not answer"}})
async def readyz(service: Open) -> Response:
    """Each dependency's state; 503 until all answer."""
    checks = {
        "catalog": _state(service.catalog.list_collections(limit=1)),
        "store": _state(service.store.ping()),
        "files": _state(service.files.ping()),
    }
    states = dict(zip(checks, await asyncio.gather(*checks.values()), strict=True))
    ready = all(state == "ok" for state in states.values())
    body = Ready(status="ready" if ready else "not_ready", checks=states)
    return JSONResponse(body.model_dump(), 200 if ready else 503)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "in Prometheus's text format"}},
)
async def metrics(request: Request, service: Open) -> Response:
    """Requests, latencies, how many jobs wait and run, and how many notices the webhook has not taken."""
    by_state = {"jobs": await service.jobs.depth(), "notices": await backlog(service.database)}
    lines = ["# TYPE footnote_queries_waiting gauge", f"footnote_queries_waiting {request.app.state.admission.queued}"]
    for name, counts in by_state.items():
        lines.append(f"# TYPE footnote_{name} gauge")
        lines += [f'footnote_{name}{{state="{state}"}} {count}' for state, count in counts.items()]
    memory = service.answerer.memory
    for name, count in (("hits", memory.hits), ("misses", memory.misses)):
        lines += [f"# TYPE footnote_query_cache_{name}_total counter", f"footnote_query_cache_{name}_total {count}"]
    own = "\n".join([*lines, ""])
    return Response(generate_latest(REGISTRY) + own.encode(), media_type=CONTENT_TYPE_LATEST)


async def _state(check: Awaitable[object]) -> str:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await check
    except FootnoteError as exc:
        return exc.message
    except TimeoutError:
        return f"did not answer within {CHECK_SECONDS:.0f} s"
    return "ok"
