"""The job queue: rows of the catalog, claimed by one guarded UPDATE with a lease, settled only by the one who holds it."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic, time
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ingest.claims import LONGEST_WAIT, LOT, Turns, Watch, lot_of, next_jobs, next_place, next_retry, overdue
from ingest.database import Clock, Database
from ingest.documents import SUPERSEDED, add_jobs, below
from ingest.job_rows import Job, JobRows, claimed_by, job_of
from ingest.records import FINAL, QUEUE_OF, Generation, new_job, repair_job
from ingest.schema import jobs
from ingest.settling import Settling
from retrieval.errors import JobNotCancellable, JobNotFound

CLAIM_TRIES = 8
"""Collections to try when others are taking the jobs at the same moment."""
MADE_DUE = 1000
"""Jobs that have waited long enough and become due in one transaction."""
_COUNT = sa.func.count().label("count")
_BEAT = (
    sa.update(jobs)
    .where(jobs.c.id == sa.bindparam("which"))
    .values(
        beats=jobs.c.beats + 1,
        stage=sa.bindparam("at"),
        done=sa.bindparam("so_far"),
        total=sa.bindparam("of"),
        rate=sa.bindparam("lately"),
    )
)

S = TypeVar("S", bound=tuple[Any, ...])


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life: how far a job is, and at which `rate` of `done` per second."""

    job: Job
    stage: str
    done: int
    total: int | None
    rate: float | None = None

    def row(self) -> dict[str, Any]:
        return {"which": self.job.id, "at": self.stage, "so_far": self.done, "of": self.total, "lately": self.rate}


class Jobs:
    """Claim, renew, give back, look up; `settle` ends a job whose work is done.

    `clock` is the time of day, `steady` one that nobody sets; both in seconds. With `notify`, each end is noted for the
    webhook, in the transaction that settles it.
    """

    def __init__(
        self,
        database: Database,
        *,
        lease_seconds: float,
        max_attempts: int,
        clock: Clock = time,
        steady: Clock = monotonic,
        notify: bool = False,
    ) -> None:
        self.database = database
        self.lease_seconds = lease_seconds
        self.max_attempts = max_attempts
        self.clock = clock
        self.steady = steady
        self._watch = Watch(lease_seconds)
        self.rows = JobRows(database, clock=clock, notify=notify)
        self.settle = Settling(self.rows)

    async def add_reindex(self, collection: str, generation: Generation) -> str:
        """Queue the building of a generation; one that is already under way is found again."""
        live = sa.select(jobs.c.id).where(
            jobs.c.kind == "reindex", jobs.c.generation_id == generation.id, jobs.c.state.in_(["queued", "running"])
        )
        async with self.database.writing() as connection:
            await self.database.lock(connection, f"collection:{collection}")
            if (found := (await connection.execute(live)).scalar()) is not None:
                return str(found)
            row = new_job("reindex", collection, generation_id=generation.id)
            await add_jobs(connection, [row])
        return str(row["id"])

    async def claim(self, worker: str, turns: Turns | None = None) -> Job | None:
        """Take the job whose turn it is with this worker; None if nothing is due, which costs reads and no lock."""
        return next(iter(await self.claim_lot(worker, turns or Turns(), most=1)), None)

    async def claim_lot(self, worker: str, turns: Turns, *, most: int = LOT) -> list[Job]:
        """Take the oldest jobs of the queue and collection whose turn it is: up to `most`, of small documents."""
        for _ in range(CLAIM_TRIES):
            place = await self._next_place(turns)
            if place is None:
                return []
            turns.served(*place)
            with contextlib.suppress(sa.exc.IntegrityError):  # another worker began a job of the same document
                if lot := await self._claim(worker, *place, most):
                    return lot
        return []

    async def _next_place(self, turns: Turns) -> tuple[str, str] | None:
        now, order = self.clock(), turns.order()
        whose = next_place(tuple(order))
        served_last = {f"last_{queue}": collection for queue, collection in order.items()}
        times = {"now": now, "never": now + LONGEST_WAIT}
        if await self.database.first(overdue(turns.queues, 1), times) is not None:
            await self._make_due(turns, times)
        row = await self.database.first(whose, served_last)
        return (row["queue"], row["collection"]) if row else None

    async def _make_due(self, turns: Turns, times: Mapping[str, float]) -> None:
        async with self.database.writing() as connection:
            waiting = sa.select(jobs.c.id).where(jobs.c.id.in_(overdue(turns.queues, MADE_DUE)), jobs.c.state == "queued")
            made_due = sa.update(jobs).where(jobs.c.id.in_(self._unlocked(waiting))).values(run_after=0.0)
            await connection.execute(made_due, times)

    async def _claim(self, worker: str, queue: str, collection: str, most: int) -> list[Job]:
        values = {
            "state": "running",
            "stage": "starting",
            "worker": worker,
            "beats": jobs.c.beats + 1,
            "started_at": self.clock(),
            "attempts": jobs.c.attempts + 1,
            "rate": None,
            "error": None,
        }
        async with self.database.writing() as connection:
            due = (await connection.execute(self._unlocked(next_jobs(queue, collection, most)))).mappings().all()
            if not due:
                return []
            claimed = sa.update(jobs).where(jobs.c.id.in_(lot_of(due))).values(**values).returning(*jobs.c)
            lot = sorted(map(job_of, (await connection.execute(claimed)).mappings()), key=lambda job: job.id)
            await self.rows.document_states(connection, lot, "processing", None)
        return lot

    def _unlocked(self, rows: sa.Select[S]) -> sa.Select[S]:
        """Only rows that nobody else is changing; SQLite has one writer at a time."""
        return rows if self.database.is_sqlite else rows.with_for_update(skip_locked=True, of=jobs)

    async def due_in(self, queues: Sequence[str]) -> float:
        """Seconds until the first of the waiting jobs is due; infinite if none waits."""
        [first] = await self.database.scalars(next_retry(tuple(queues)))
        return max(0.0, first - self.clock()) if first is not None else math.inf

    async def take_back(self) -> int:
        """Queue again what silent workers hold, and end what was taken `max_attempts` times without an end; gives how many.

        Such a job may be what kills its workers. To be called several times in a lease.
        """
        running = sa.select(jobs.c.id, jobs.c.beats).where(jobs.c.state == "running")
        beats = {row["id"]: row["beats"] for row in await self.database.rows(running)}
        silent = self._watch.silent(beats, self.steady())
        if not silent:
            return 0
        async with self.database.writing() as connection:
            held = self._unlocked(sa.select(jobs).where(jobs.c.id.in_(silent), jobs.c.state == "running"))
            rows = (await connection.execute(held)).mappings().all()
            lost = [row for row in rows if row["beats"] == beats[row["id"]]]
            for row in lost:
                await self._lose(connection, job_of(row))
        return len(lost)

    async def _lose(self, connection: AsyncConnection, job: Job) -> None:
        if job.attempts < self.max_attempts or job.kind == "delete":
            await self.rows.requeue(connection, [job])
            return
        error = {
            "code": "worker_lost",
            "detail": f"its worker died or fell silent {self.max_attempts} times; the document may be what kills it",
            "retryable": True,
        }
        await self.rows.give_up(connection, job, "dead", error)

    async def renew(self, beats: Sequence[Beat]) -> list[str]:
        """Prolong the leases and show progress; gives the ids of the jobs that are lost.

        Not lost is a job that its worker settled in this moment: what the worker does after that must not be stopped. One
        that somebody is changing at this moment is passed over, as two that lock many rows would wait for each other.
        """
        if not beats:
            return []
        mine = claimed_by([each.job for each in beats])
        running = self._unlocked(sa.select(jobs.c.id).where(mine, jobs.c.state == "running"))
        async with self.database.writing() as connection:
            held = set((await connection.execute(running)).scalars())
            rows = [each.row() for each in beats if each.job.id in held]
            if rows:
                await connection.execute(_BEAT, rows)
            rest = [each.job.id for each in beats if each.job.id not in held]
            kept = sa.select(jobs.c.id, jobs.c.state, jobs.c.error).where(mine)
            found = (await connection.execute(kept)).mappings().all() if rest else ()
        ours = {row["id"] for row in found if row["state"] in {"running", "succeeded"} or row["error"] == SUPERSEDED}
        return [job_id for job_id in rest if job_id not in ours]

    async def succeed(self, job: Job) -> None:
        async with self.database.writing() as connection:
            await self.rows.require(connection, job)
            await self.rows.end(connection, [job], "succeeded")

    async def fail(self, job: Job, error: Mapping[str, Any], *, retry_after: float | None = None) -> str:
        """End the job as failed, or queue it again if the error may pass; gives the new state.

        Waits 1, 2, 4, 8 ... seconds, at most 5 minutes, each shortened by up to half at random. Where the other side named
        a longer time, that is waited, and up to its own wait on top: all whom it told the same would come back at once.
        A deletion is tried until it is done: whoever asked for it was told that nothing will be found.
        """
        again = job.kind == "delete" or (error["retryable"] and job.attempts < self.max_attempts)
        async with self.database.writing() as connection:
            await self.rows.require(connection, job)
            if again:
                wait = _back_off(job.attempts, retry_after)
                await self.rows.requeue(connection, [job], after=wait, stage="waiting", error=dict(error))
                return "queued"
            return await self.rows.give_up(connection, job, "dead" if error["retryable"] else "failed", error)

    async def release(
        self, *claimed: Job, after: float = 0.0, stage: str = "queued", done: int = 0, total: int | None = None
    ) -> None:
        """Give jobs back, those that are still held, claimable `after` seconds from now and not counted as a try: their
        worker is going, or they wait."""
        progress = {"stage": stage, "done": done, "total": total}
        async with self.database.writing() as connection:
            held = await self.rows.held(connection, claimed)
            again = [job for job in claimed if job.id in held]
            await self.rows.requeue(connection, again, after=after, attempts=jobs.c.attempts - 1, **progress)

    async def add_rebuilds(self, generation: Generation, document_ids: Sequence[str]) -> None:
        """Queue the documents of a re-index, each once."""
        known = sa.select(jobs.c.document_id).where(
            _rebuild_of(generation), jobs.c.document_id.in_(document_ids), jobs.c.state.not_in(["cancelled", "succeeded"])
        )
        async with self.database.writing() as connection:
            await self.database.lock(connection, f"collection:{generation.collection}")
            busy = set((await connection.execute(known)).scalars())
            fresh = [each for each in document_ids if each not in busy]
            if fresh:
                rows = [new_job("rebuild", generation.collection, document_id=i, generation_id=generation.id) for i in fresh]
                await add_jobs(connection, rows)

    async def rebuild_again(self, generations: Sequence[Generation], document_id: str) -> None:
        """Queue a document's rebuilding in each of these, behind the jobs of it that run; once, however often it is called."""
        waiting = sa.select(jobs.c.generation_id).where(
            jobs.c.kind == "rebuild", jobs.c.document_id == document_id, jobs.c.state == "queued"
        )
        async with self.database.writing() as connection:
            known = set((await connection.execute(waiting)).scalars())
            await add_jobs(connection, [repair_job(each, document_id) for each in generations if each.id not in known])

    async def rebuilds(self, generation: Generation) -> dict[str, int]:
        """How many of a re-index's documents are in which state."""
        query = sa.select(jobs.c.state, _COUNT).where(_rebuild_of(generation)).group_by(jobs.c.state)
        return {row["state"]: row["count"] for row in await self.database.rows(query)}

    async def forget_rebuilds(self, generation: Generation) -> None:
        """A finished re-index needs its documents' jobs no more, nor should the next try find them failed."""
        async with self.database.writing() as connection:
            await connection.execute(sa.delete(jobs).where(_rebuild_of(generation)))

    async def job(self, job_id: str) -> Job:
        """Raises `JobNotFound`."""
        row = await self.database.first(sa.select(jobs).where(jobs.c.id == job_id))
        if row is None:
            raise JobNotFound(f"there is no job {job_id!r}; `footnote jobs` or GET /jobs lists them")
        return job_of(row)

    async def by_id(self, job_ids: Sequence[str]) -> list[Job]:
        """Those of these jobs that exist."""
        return [job_of(row) for row in await self.database.rows(sa.select(jobs).where(jobs.c.id.in_(job_ids)))]

    async def list_jobs(
        self,
        *,
        state: str | None = None,
        collection: str | None = None,
        document_id: str | None = None,
        limit: int,
        cursor: str | None = None,
    ) -> list[Job]:
        """Newest first; `cursor` is the last id of the page before."""
        query = sa.select(jobs).where(jobs.c.kind != "rebuild")
        for column, value in ((jobs.c.state, state), (jobs.c.collection, collection), (jobs.c.document_id, document_id)):
            if value is not None:
                query = query.where(column == value)
        if cursor is not None:
            query = query.where(jobs.c.id < cursor)
        return [job_of(row) for row in await self.database.rows(query.order_by(jobs.c.id.desc()).limit(limit))]

    async def unfinished(self, job_ids: Sequence[str]) -> int:
        """How many of these jobs are not at their end, and of those for the documents that came out of theirs."""
        tree = below(sa.select(jobs.c.document_id).where(jobs.c.id.in_(job_ids)))
        own = jobs.c.id.in_(job_ids)
        of_parts = sa.and_(jobs.c.document_id.in_(sa.select(tree.c.id)), jobs.c.id.not_in(job_ids), jobs.c.kind != "rebuild")
        count = sa.select(_COUNT).select_from(jobs).where(jobs.c.state.in_(["queued", "running"]))
        # Two counts, as an index serves each but not both in one.
        counts = [await self.database.scalars(count.where(these)) for these in (own, of_parts)]
        return sum(int(number) for [number] in counts)

    async def depth(self) -> dict[str, int]:
        """How many jobs wait and run."""
        query = sa.select(jobs.c.state, _COUNT).where(jobs.c.state.in_(["queued", "running"])).group_by(jobs.c.state)
        found = {row["state"]: row["count"] for row in await self.database.rows(query)}
        return {"queued": found.get("queued", 0), "running": found.get("running", 0)}

    async def cancel(self, job_id: str) -> Job:
        """Stop a job that has not ended; its worker notices at its next renewal. Raises `JobNotCancellable`."""
        error = {"code": "cancelled", "detail": "cancelled by request", "retryable": False}
        async with self.database.writing() as connection:
            job = await self.rows.locked(connection, job_id)
            if job.state in FINAL or job.kind == "delete":
                why = "a deletion cannot be called back" if job.kind == "delete" else f"it is {job.state}"
                raise JobNotCancellable(f"job {job_id} cannot be cancelled: {why}")
            await self.rows.document_state(connection, job, "failed", error)
            await self.rows.end(connection, [job], "cancelled", error)
        return await self.job(job_id)

    async def retry(self, job_id: str) -> Job:
        """Queue a failed, dead or cancelled job again. Raises `JobNotCancellable` where that makes no sense."""
        async with self.database.writing() as connection:
            job = await self.rows.locked(connection, job_id)
            if job.state not in {"failed", "dead", "cancelled"} or (job.error or {}).get("code") == "superseded":
                raise JobNotCancellable(f"job {job_id} cannot be retried: it is {job.state}")
            await self.rows.requeue(connection, [job], attempts=0, finished_at=None)
        return await self.job(job_id)


def _back_off(attempt: int, retry_after: float | None) -> float:
    """Seconds to wait after the try number `attempt`."""
    own = min(300.0, 2.0 ** (attempt - 1))
    if retry_after is not None and retry_after > own:
        return min(LONGEST_WAIT, retry_after + random.uniform(0.0, own))  # noqa: S311
    return own * random.uniform(0.5, 1.0)  # noqa: S311


def _rebuild_of(generation: Generation) -> sa.ColumnElement[bool]:
    """Of a re-index: a repair of the same document and generation stands in another queue, and is none of its business."""
    return sa.and_(jobs.c.kind == "rebuild", jobs.c.generation_id == generation.id, jobs.c.queue == QUEUE_OF["rebuild"])
