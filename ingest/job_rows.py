"""What happens to rows of the job queue within a transaction that somebody else has opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ingest.database import Clock, Database, note_queued
from ingest.documents import SUPERSEDED, note_unrepaired
from ingest.notices import write_notice
from ingest.schema import documents, jobs
from retrieval.errors import JobNotFound


@dataclass(frozen=True, slots=True)
class Job:
    id: str
    kind: str
    collection: str
    document_id: str | None
    version: int
    generation_id: str | None
    state: str
    stage: str
    done: int
    total: int | None
    rate: float | None
    attempts: int
    worker: str | None
    error: Mapping[str, Any] | None
    created_at: float
    started_at: float | None
    finished_at: float | None
    queue: str

    @property
    def eta_seconds(self) -> float | None:
        """Time left at the rate of the recent past."""
        if self.state != "running" or not self.total or not self.rate:
            return None
        return round((self.total - self.done) / self.rate, 1)


class LeaseLost(Exception):
    """Another worker took the job, or it was cancelled: stop, and settle nothing."""


class JobRows:
    """Locks, ends and queues again, with what that means for the jobs' documents.

    With `notify`, each end is noted for the webhook.
    """

    def __init__(self, database: Database, *, clock: Clock, notify: bool) -> None:
        self.database = database
        self.clock = clock
        self.notify = notify

    async def requeue(self, connection: AsyncConnection, again: Sequence[Job], *, after: float = 0.0, **changes: Any) -> None:
        """Put jobs back into their queues; what can be claimed at once is announced."""
        if not again:
            return
        run_after = self.clock() + after if after else 0.0
        values = {"state": "queued", "stage": "queued", "worker": None, "error": None, "run_after": run_after, **changes}
        await connection.execute(sa.update(jobs).where(jobs.c.id.in_([job.id for job in again])).values(**values))
        await self.document_states(connection, again, "queued", values["error"])
        if not after:
            for job in again:
                note_queued(connection, job.queue, [job.id])

    async def held(self, connection: AsyncConnection, claimed: Sequence[Job]) -> set[str]:
        """Ids of those whose claims still stand, and will until the transaction ends; locked in one order by all."""
        mine = sa.select(jobs.c.id).where(claimed_by(claimed), jobs.c.state == "running")
        query = mine.order_by(jobs.c.id).with_for_update()
        return set((await connection.execute(query)).scalars())

    async def require(self, connection: AsyncConnection, job: Job) -> None:
        if not await self.held(connection, [job]):
            raise LeaseLost

    async def locked(self, connection: AsyncConnection, job_id: str) -> Job:
        row = (await connection.execute(sa.select(jobs).where(jobs.c.id == job_id).with_for_update())).mappings().first()
        if row is None:
            raise JobNotFound(f"there is no job {job_id!r}; `footnote jobs` or GET /jobs lists them")
        return job_of(row)

    async def end(
        self, connection: AsyncConnection, ended: Sequence[Job], state: str, error: Mapping[str, Any] | None = None
    ) -> None:
        if not ended:
            return
        values = {
            "state": state,
            "stage": state,
            "error": dict(error) if error else None,
            "finished_at": self.clock(),
        }
        await connection.execute(sa.update(jobs).where(jobs.c.id.in_([job.id for job in ended])).values(**values))
        if not self.notify or error == SUPERSEDED:  # what superseded it has a notice of its own
            return
        for job in ended:
            if job.kind != "rebuild":
                await write_notice(connection, job, error, self.clock())

    async def give_up(self, connection: AsyncConnection, job: Job, state: str, error: Mapping[str, Any]) -> str:
        """End a job that is not tried again; gives its state. Of a version that was overtaken meanwhile nobody is told."""
        if job.kind == "ingest" and (await connection.execute(sa.select(documents.c.id).where(newest(job)))).first() is None:
            state, error = "cancelled", SUPERSEDED
        await self.document_state(connection, job, "failed", error)
        await self.end(connection, [job], state, error)
        return state

    async def document_state(self, connection: AsyncConnection, job: Job, status: str, error: Mapping[str, Any] | None) -> None:
        if job.kind == "rebuild" and status == "failed" and error:
            await note_unrepaired(connection, str(job.document_id), error)
        await self.document_states(connection, [job], status, error)

    async def document_states(
        self, connection: AsyncConnection, of_jobs: Sequence[Job], status: str, error: Mapping[str, Any] | None
    ) -> None:
        read = [job for job in of_jobs if job.kind == "ingest"]
        if read:
            values = {"status": status, "error": dict(error) if error else None, "updated_at": self.clock()}
            await connection.execute(sa.update(documents).where(newest(*read)).values(**values))


def claimed_by(held: Sequence[Job]) -> sa.ColumnElement[bool]:
    """True of the rows of these jobs while these claims of them stand: the next claim counts one more attempt."""
    claims = [(job.id, job.worker, job.attempts) for job in held]
    these = jobs.c.id.in_([job.id for job in held])  # by which both databases seek
    return sa.and_(these, sa.tuple_(jobs.c.id, jobs.c.worker, jobs.c.attempts).in_(claims))


def newest(*of_jobs: Job) -> sa.ColumnElement[bool]:
    """True of the jobs' documents while these are their newest versions and stay."""
    versions = [(job.document_id, job.version) for job in of_jobs]
    these = documents.c.id.in_([document_id for document_id, _ in versions])
    return sa.and_(these, sa.tuple_(documents.c.id, documents.c.version).in_(versions), documents.c.status != "deleting")


def job_of(row: Mapping[Any, Any]) -> Job:
    return Job(**{name: row[name] for name in Job.__dataclass_fields__})
