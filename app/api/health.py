"""Alive, ready, metrics."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST

from app import __version__
from app.api.open import Open
from app.metrics import counted
from app.schemas import Health, Ready
from ingest.ledger import PassRecord
from ingest.notices import backlog
from retrieval.errors import FootnoteError

router = APIRouter(tags=["operations"])

CHECK_SECONDS = 3.0
"""Less than a probe waits (`deploy/kubernetes/app.yaml`, docker-compose.yml), so that it hears the answer."""
DISPENSABLE = {"broker"}
"""What the service does without for a while: jobs are found by looking into the catalog."""


@router.get("/healthz", response_model=Health)
async def healthz() -> Health:
    """The process is alive; asks nothing of anybody."""
    return Health(status="alive", version=__version__)


@router.get("/readyz", response_model=Ready, responses={503: {"model": Ready, "description": "a dependency does not answer"}})
async def readyz(service: Open) -> Response:
    """Each dependency's state; 503 until all answer; without its broker the service is only `degraded`."""
    checks = {
        "catalog": _state(service.catalog.list_collections(limit=1)),
        "store": _state(service.store.ping()),
        "files": _state(service.files.ping()),
        "broker": _state(service.broker.ping()),
    }
    states = dict(zip(checks, await asyncio.gather(*checks.values()), strict=True))
    away = {name for name, state in states.items() if state != "ok"}
    body = Ready(status="ready" if not away else "degraded" if away <= DISPENSABLE else "not_ready", checks=states)
    return JSONResponse(body.model_dump(), 503 if body.status == "not_ready" else 200)


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "in Prometheus's text format"}},
)
async def metrics(service: Open) -> Response:
    """Requests, latencies, jobs that wait and run, notices that the webhook has not taken, what was found and mended, and how
    many texts had been embedded before."""
    by_state = {"jobs": await service.jobs.depth(), "notices": await backlog(service.database)}
    lines = []
    for name, counts in by_state.items():
        lines.append(f"# TYPE footnote_{name} gauge")
        lines += [f'footnote_{name}{{state="{state}"}} {count}' for state, count in counts.items()]
    lines += _pass_lines(await service.reconciler.ledger.passes())
    texts = (await service.cache.counts()).items()
    lines.append("# TYPE footnote_embedded_texts_total counter")
    lines += [f'footnote_embedded_texts_total{{result="{result}"}} {count}' for result, count in texts]
    own = "\n".join([*lines, ""])
    return Response(counted() + own.encode(), media_type=CONTENT_TYPE_LATEST)


def _pass_lines(records: list[PassRecord]) -> list[str]:
    lines = []
    for name, kind in (("finished_at", "gauge"), ("checked", "counter"), ("found", "counter"), ("mended", "counter")):
        metric = "footnote_pass_finished_timestamp_seconds" if kind == "gauge" else f"footnote_pass_{name}_total"
        lines.append(f"# TYPE {metric} {kind}")
        lines += [f'{metric}{{pass="{record.name}"}} {getattr(record, name)}' for record in records]
    return lines


async def _state(check: Awaitable[object]) -> str:
    try:
        async with asyncio.timeout(CHECK_SECONDS):
            await check
    except FootnoteError as exc:
        return exc.message
    except TimeoutError:
        return f"did not answer within {CHECK_SECONDS:.0f} s"
    return "ok"
