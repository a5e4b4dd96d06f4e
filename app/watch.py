"""Jobs as they change, for any number of listeners: one look at the catalog serves them all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress

import structlog

from app.api.open import job_out
from app.schemas import JobOut
from app.wiring import Service
from ingest.job_rows import Job
from ingest.records import FINAL
from retrieval.errors import FootnoteError, JobNotFound

LOOK_SECONDS = 0.5
HEARTBEAT_SECONDS = 15.0
"""Proxies close a connection on which nothing comes for long."""

log = structlog.get_logger(__name__)


class Watch:
    """Looks while anybody listens, at the jobs that are listened to. A slow listener misses states, and never the last one."""

    def __init__(self) -> None:
        self._listeners: dict[str, set[asyncio.Event]] = {}
        self._latest: dict[str, JobOut | None] = {}
        self._looking: asyncio.Task[None] | None = None
        self._closed = False

    async def states(self, service: Service, job: Job) -> AsyncGenerator[JobOut | None, None]:
        """The job as it is and after each change, its end last; None where nothing changed for `HEARTBEAT_SECONDS`.

        Ends before the job does if the service stops. Raises `JobNotFound` if the job goes with its collection.
        """
        [first] = await shown(service, [job])  # before the listener is noted: if this fails, nobody would take it away
        changed = asyncio.Event()
        self._listeners.setdefault(job.id, set()).add(changed)
        self._latest.setdefault(job.id, first)
        try:
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._look(service))
            told: JobOut | None = None
            while not self._closed:
                if (state := self._latest[job.id]) is None:
                    raise JobNotFound(f"job {job.id} went with its collection")
                changed.clear()
                yield state if state != told else None
                if state.state in FINAL:
                    return
                told = state
                with suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), HEARTBEAT_SECONDS)
        finally:
            self._leave(job.id, changed)

    def close(self) -> None:
        """End all streams, so that none holds up a stop."""
        self._closed = True
        for listeners in self._listeners.values():
            for changed in listeners:
                changed.set()

    def _leave(self, job_id: str, changed: asyncio.Event) -> None:
        listeners = self._listeners[job_id]
        listeners.discard(changed)
        if not listeners:
            del self._listeners[job_id], self._latest[job_id]

    async def _look(self, service: Service) -> None:
        while self._listeners and not self._closed:
            await asyncio.sleep(LOOK_SECONDS)
            ids = list(self._listeners)
            try:
                found = {job.id: job for job in await shown(service, await service.jobs.by_id(ids))}
            except FootnoteError as exc:
                log.warning("jobs_not_seen", code=exc.code, detail=exc.message)
                continue
            for job_id in self._listeners.keys() & set(ids):
                if self._latest[job_id] != found.get(job_id):
                    self._latest[job_id] = found.get(job_id)
                    for changed in self._listeners[job_id]:
                        changed.set()


async def shown(service: Service, jobs: Sequence[Job]) -> list[JobOut]:
    """Jobs as they go over the wire, with the time that each will take."""
    etas = await service.pace.etas(jobs)
    return [job_out(job, etas.get(job.id)) for job in jobs]
