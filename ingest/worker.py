"""A worker process: claims jobs, runs several at once, renews their leases, and settles each exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from typing import Any

import structlog

from ingest.jobs import Job, Jobs, LeaseLost
from ingest.pace import Meter
from ingest.pipeline import Pipeline
from retrieval.errors import FootnoteError

IDLE_SECONDS = 0.25
HOUSEKEEPING_SECONDS = 30.0

log = structlog.get_logger(__name__)


class Worker:
    """Runs until `stop` is set, then gives back what it could not finish within `drain_seconds`."""

    def __init__(self, jobs: Jobs, pipeline: Pipeline, *, concurrency: int, drain_seconds: float = 20.0) -> None:
        self.jobs = jobs
        self.pipeline = pipeline
        self.concurrency = concurrency
        self.drain_seconds = drain_seconds
        self.name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop`. An unreachable catalog or store is waited for, not died of."""
        running: set[asyncio.Task[None]] = set()
        housekeeping = asyncio.create_task(self._housekeep())
        try:
            while not stop.is_set():
                job = await self._claim() if len(running) < self.concurrency else None
                if job is not None:
                    task = asyncio.create_task(self._work(job))
                    running.add(task)
                    task.add_done_callback(running.discard)
                else:
                    await _first_of(stop, running, IDLE_SECONDS)
            if running:
                await asyncio.wait(running, timeout=self.drain_seconds)
        finally:
            for task in (*running, housekeeping):
                task.cancel()
            await asyncio.gather(*running, housekeeping, return_exceptions=True)

    async def _claim(self) -> Job | None:
        try:
            return await self.jobs.claim(self.name)
        except FootnoteError as exc:
            log.warning("catalog_unreachable", code=exc.code, detail=exc.message)
            await asyncio.sleep(1.0)
            return None

    async def _work(self, job: Job) -> None:
        """Run one job with a heartbeat beside it; if the lease is lost, the work stops and nothing is settled."""
        progress: dict[str, Any] = {"stage": "starting", "done": 0, "total": None}
        work = asyncio.create_task(
            self.pipeline.run(job, lambda stage, done, total: progress.update(stage=stage, done=done, total=total))
        )
        beat = asyncio.create_task(self._beat(job, progress, work))
        context = {"job_id": job.id, "kind": job.kind, "document_id": job.document_id, "attempt": job.attempts}
        try:
            await work
            log.info("job_done", **context)
        except LeaseLost:
            log.warning("lease_lost", **context)
        except asyncio.CancelledError:
            if not beat.done():  # we are shutting down, and the lease is still ours to give back
                with contextlib.suppress(FootnoteError):
                    await self.jobs.release(job)
                raise
            log.warning("lease_lost", **context)
        except FootnoteError as exc:
            await self._fail(job, {"code": exc.code, "detail": exc.message, "retryable": exc.retryable}, exc.retry_after)
        except Exception:
            log.exception("job_crashed", **context)
            error = {
                "code": "internal_error",
                "detail": "an unexpected error; the log of the worker has the details",
                "retryable": True,
            }
            await self._fail(job, error, None)
        finally:
            work.cancel()
            beat.cancel()
            await asyncio.gather(beat, work, return_exceptions=True)

    async def _fail(self, job: Job, error: dict[str, Any], retry_after: float | None) -> None:
        try:
            state = await self.jobs.fail(job, error, retry_after=retry_after)
        except (LeaseLost, FootnoteError) as exc:  # the lease runs out and another worker takes the job
            log.warning("job_not_settled", job_id=job.id, error=str(exc))
            return
        log.warning("job_failed", job_id=job.id, kind=job.kind, document_id=job.document_id, state=state, **error)

    async def _beat(self, job: Job, progress: dict[str, Any], work: asyncio.Task[None]) -> None:
        """Renew the lease three times per term; a catalog that is away for a moment is not a lost lease."""
        meter = Meter()
        while True:
            await asyncio.sleep(min(1.0, self.jobs.lease_seconds / 3))
            try:
                await self.jobs.renew(job, **progress, rate=meter.rate(progress["done"], time.monotonic()))
            except LeaseLost:
                work.cancel()
                return
            except FootnoteError as exc:
                log.warning("lease_not_renewed", job_id=job.id, code=exc.code)

    async def _housekeep(self) -> None:
        while True:
            try:
                await self.pipeline.housekeep()
            except FootnoteError as exc:
                log.warning("housekeeping_failed", code=exc.code, detail=exc.message)
            await asyncio.sleep(HOUSEKEEPING_SECONDS)


async def _first_of(stop: asyncio.Event, running: set[asyncio.Task[None]], seconds: float) -> None:
    """Wait until told to stop, a job ends, or `seconds` passed."""
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({stopping, *running}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
