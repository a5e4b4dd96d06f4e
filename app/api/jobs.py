"""Jobs: look, listen, cancel, retry."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from app.api.errors import problems
from app.api.open import Cursor, Limit, Open, job_out, next_cursor
from app.api.streams import EventStream, documented, problem_event, sse
from app.schemas import CollectionName, JobList, JobOut, JobState
from app.watch import Watch, shown
from ingest.records import FINAL
from retrieval.errors import FootnoteError

router = APIRouter(tags=["jobs"])


@router.get("/jobs", response_model=JobList, responses=problems())
async def list_jobs(
    service: Open,
    state: JobState | None = None,
    collection: Annotated[CollectionName | None, Query()] = None,
    document_id: Annotated[str | None, Query(max_length=100)] = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> JobList:
    """Jobs, newest first."""
    found = await service.jobs.list_jobs(
        state=state, collection=collection, document_id=document_id, limit=limit, cursor=cursor
    )
    return JobList(jobs=await shown(service, found), next_cursor=next_cursor(found, limit))


@router.get("/jobs/{job_id}", response_model=JobOut, responses=problems(404))
async def get_job(service: Open, job_id: str) -> JobOut:
    """Stage, progress and time left of a job."""
    return (await shown(service, [await service.jobs.job(job_id)]))[0]


@router.get(
    "/jobs/{job_id}/events",
    response_class=Response,
    responses={200: documented(["progress", "done", "error"], "progress at each change, then done (the job)"), **problems(404)},
)
async def job_events(request: Request, service: Open, job_id: str) -> EventStream:
    """A job's progress as server-sent events, until its end: `progress` and last `done`, each with the job as its data."""
    watch: Watch = request.app.state.watch
    return EventStream(_events(watch.states(service, await service.jobs.job(job_id))))


async def _events(states: AsyncGenerator[JobOut | None, None]) -> AsyncGenerator[bytes, None]:
    async with aclosing(states):
        try:
            async for state in states:
                if state is None:
                    yield b": still here\n\n"
                else:
                    yield sse("done" if state.state in FINAL else "progress", state.model_dump_json())
        except FootnoteError as exc:
            yield problem_event(exc.code, exc.message)


@router.post("/jobs/{job_id}/cancel", response_model=JobOut, responses=problems(404, 409))
async def cancel_job(service: Open, job_id: str) -> JobOut:
    """Stop a job that has not ended; what was live before stays live."""
    return job_out(await service.jobs.cancel(job_id))


@router.post("/jobs/{job_id}/retry", response_model=JobOut, responses=problems(404, 409))
async def retry_job(service: Open, job_id: str) -> JobOut:
    """Queue a failed, dead or cancelled job again."""
    return job_out(await service.jobs.retry(job_id))
