"""A worker process: claims jobs, runs several at once, renews their leases, and settles each exactly once."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import structlog

from ingest.brokers import Broker
from ingest.claims import Turns
from ingest.job_rows import Job, LeaseLost
from ingest.jobs import Beat, Jobs
from ingest.pace import Meter
from ingest.pipeline import STORING, Pipeline
from ingest.records import QUEUES
from retrieval.errors import FootnoteError

LOOK_SECONDS = 2.0
"""How often a worker with nothing to do looks into the catalog by itself: what a broker lost is found then."""
HOUSEKEEPING_SECONDS = 30.0
BEAT_SECONDS = 1.0
"""How often jobs show their progress."""

log = structlog.get_logger(__name__)


class Worker:
    """Runs until `stop` is set, then gives back what it could not finish within `drain_seconds`."""

    def __init__(
        self,
        jobs: Jobs,
        pipeline: Pipeline,
        broker: Broker,
        *,
        queues: Sequence[str] = QUEUES,
        concurrency: int,
        drain_seconds: float = 20.0,
        chores: Sequence[Callable[[], Awaitable[None]]] = (),
    ) -> None:
        self.jobs = jobs
        self.pipeline = pipeline
        self.broker = broker
        self.turns = Turns(queues)
        self.concurrency = concurrency
        self.drain_seconds = drain_seconds
        self.chores = chores
        self._held: set[_Held] = set()
        self._ended = asyncio.Event()
        self.name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"

    async def run(self, stop: asyncio.Event, hurry: asyncio.Event | None = None) -> None:
        """Work until `stop`; `hurry` ends the draining. An unreachable catalog, store or broker is waited for, not died of."""
        running: set[asyncio.Task[None]] = set()
        watching = min(LOOK_SECONDS, self.jobs.lease_seconds / 4)
        beside = [
            asyncio.create_task(_every(watching, self.jobs.take_back)),
            asyncio.create_task(_every(min(BEAT_SECONDS, self.jobs.lease_seconds / 3), self._beat)),
            *(asyncio.create_task(_every(HOUSEKEEPING_SECONDS, act)) for act in (self.pipeline.housekeep, *self.chores)),
        ]
        try:
            while not stop.is_set():
                self._ended.clear()
                lot, wait = await self._claim() if self._has_room() else ([], None)
                for held in self._take(lot):
                    task = asyncio.create_task(self._work(held))
                    running.add(task)
                    task.add_done_callback(running.discard)
                if not lot:
                    await self._wait(stop, wait)
            await self._drain(running, hurry or asyncio.Event())
        finally:
            for each in running:
                each.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            if self._held:
                with contextlib.suppress(FootnoteError):
                    await self.jobs.release(*(held.job for held in self._held))
            for each in beside:
                each.cancel()
            await asyncio.gather(*beside, return_exceptions=True)

    def _has_room(self) -> bool:
        """For one more lot. What is left of several lots may be as much work as one."""
        return round(sum(each.share for each in self._held), 6) <= self.concurrency - 1

    def _take(self, lot: Sequence[Job]) -> list[_Held]:
        """Hold these. One that this worker has lost, and is still about to leave, is another claim of the same job."""
        fresh = [_Held(job, share=1 / len(lot)) for job in lot]
        for old in self._held:
            if old.job.id in {job.id for job in lot}:
                old.lose()
        self._held.update(fresh)
        return fresh

    async def _claim(self) -> tuple[list[Job], float]:
        """Some jobs, or none and how many seconds to wait at most before the next look."""
        try:
            lot = await self.jobs.claim_lot(self.name, self.turns)
            return lot, LOOK_SECONDS if lot else min(LOOK_SECONDS, await self.jobs.due_in(self.turns.queues))
        except FootnoteError as exc:
            log.warning("catalog_unreachable", code=exc.code, detail=exc.message)
            return [], LOOK_SECONDS

    async def _wait(self, stop: asyncio.Event, seconds: float | None) -> None:
        """Wait until told to stop or a job ends; with room for another, also until one is announced or `seconds` are over."""
        waiting: set[asyncio.Task[Any]] = {asyncio.create_task(stop.wait()), asyncio.create_task(self._ended.wait())}
        if seconds is not None:
            waiting.add(asyncio.create_task(self.broker.receive(self.turns.queues)))
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _drain(self, running: set[asyncio.Task[None]], hurry: asyncio.Event) -> None:
        """Let what runs come to its end, within the limit."""
        hurrying = asyncio.create_task(hurry.wait())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.drain_seconds):
                while running and not hurry.is_set():
                    await asyncio.wait({hurrying, *running}, return_when=asyncio.FIRST_COMPLETED)
        hurrying.cancel()
        if self._held:
            log.info("jobs_given_back", count=len(self._held))

    async def _work(self, held: _Held) -> None:
        """Run one job; if the lease is lost, the work stops and nothing is settled."""
        job = held.job
        held.work = asyncio.create_task(self.pipeline.run(job, held.note))
        context = {"job_id": job.id, "kind": job.kind, "document_id": job.document_id, "attempt": job.attempts}
        try:
            await held.work
            log.info("job_done", **context)
        except LeaseLost:
            held.is_lost = True
        except asyncio.CancelledError:
            if not held.is_lost:
                held.is_given_back = True
                raise
        except FootnoteError as exc:
            await self._fail(held, {"code": exc.code, "detail": exc.message, "retryable": exc.retryable}, exc.retry_after)
        except Exception:
            log.exception("job_crashed", **context)
            error = {
                "code": "internal_error",
                "detail": "an unexpected error; the log of the worker has the details",
                "retryable": True,
            }
            await self._fail(held, error, None)
        finally:
            held.work.cancel()
            await asyncio.gather(held.work, return_exceptions=True)
            if not held.is_given_back:
                self._held.discard(held)
            self._ended.set()
        if held.is_lost:
            log.warning("lease_lost", **context)
            await self._make_good(held)

    async def _make_good(self, held: _Held) -> None:
        """Where that fails, or we are killed before, the next comparison of the store with the ledger finds what is wrong."""
        try:
            if held.has_stored:
                await self.pipeline.make_good(held.job)
        except Exception:
            log.exception("not_made_good", job_id=held.job.id)

    async def _fail(self, held: _Held, error: dict[str, Any], retry_after: float | None) -> None:
        job = held.job
        try:
            state = await self.jobs.fail(job, error, retry_after=retry_after)
        except LeaseLost:
            held.is_lost = True
            return
        except FootnoteError as exc:  # the lease runs out and another worker takes the job
            log.warning("job_not_settled", job_id=job.id, error=str(exc))
            return
        log.warning("job_failed", job_id=job.id, kind=job.kind, document_id=job.document_id, state=state, **error)

    async def _beat(self) -> None:
        """Renew all leases: three times per term, so that a catalog that is away for a moment is not a lost lease."""
        now, held = time.monotonic(), [each for each in self._held if not each.is_lost]
        lost = await self.jobs.renew([each.beat(now) for each in held])
        for each in held:
            if each.job.id in lost:
                each.lose()


class _Held:
    """A job that this worker holds, its share of a lot, and how far it is."""

    def __init__(self, job: Job, share: float) -> None:
        self.job = job
        self.share = share
        self.is_lost = False
        self.has_stored = False
        self.is_given_back = False
        """The worker is going: its jobs are given back when all have stopped."""
        self.work: asyncio.Task[None] | None = None
        self._meter = Meter()
        self._progress: tuple[str, int, int | None] = ("starting", 0, None)

    def note(self, stage: str, done: int, total: int | None) -> None:
        self._progress = (stage, done, total)
        self.has_stored = self.has_stored or stage == STORING

    def beat(self, now: float) -> Beat:
        return Beat(self.job, *self._progress, rate=self._meter.rate(self._progress[1], now))

    def lose(self) -> None:
        self.is_lost = True
        if self.work is not None:
            self.work.cancel()


async def _every(seconds: float, act: Callable[[], Awaitable[object]]) -> None:
    """Do it again and again; a service that is away is tried again the next time."""
    while True:
        try:
            await act()
        except FootnoteError as exc:
            log.warning("housekeeping_failed", code=exc.code, detail=exc.message)
        except Exception:
            log.exception("housekeeping_crashed")  # and is tried again: without it, what a dead worker held would wait for ever
        await asyncio.sleep(seconds)
