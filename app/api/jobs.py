"""Jobs: look, cancel, retry."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query

from app.api.errors import problems
from app.api.open import Cursor, Limit, Open, job_out, next_cursor
from app.schemas import CollectionName, JobList, JobOut, JobState

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
    return JobList(jobs=[job_out(each) for each in found], next_cursor=next_cursor(found, limit))


@router.get("/jobs/{job_id}", response_model=JobOut, responses=problems(404))
async def get_job(service: Open, job_id: str) -> JobOut:
    """Stage, progress and time left of a job."""
    return job_out(await service.jobs.job(job_id))


@router.post("/jobs/{job_id}/cancel", response_model=JobOut, responses=problems(404, 409))
async def cancel_job(service: Open, job_id: str) -> JobOut:
    """Stop a job that has not ended; what was live before stays live."""
    return job_out(await service.jobs.cancel(job_id))


@router.post("/jobs/{job_id}/retry", response_model=JobOut, responses=problems(404, 409))
async def retry_job(service: Open, job_id: str) -> JobOut:
    """Queue a failed, dead or cancelled job again."""
    return job_out(await service.jobs.retry(job_id))
