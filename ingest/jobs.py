"""The job queue: rows of the catalog, claimed by one guarded UPDATE with a lease, settled only by the one who holds it."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic, time
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ingest.claims import LONGEST_WAIT, Turns, Watch, next_job, next_place, next_retry, overdue
from ingest.database import Clock, Database, note_queued
from ingest.documents import (
    SUPERSEDED,
    Exist,
    add_jobs,
    below,
    lock_blobs,
    note_repaired,
    note_unrepaired,
    replace_parts,
    require_originals,
    require_texts,
    room_below,
    taken_for_granted,
)
from ingest.notices import write_notice
from ingest.records import FINAL, Entry, Generation, Upload, new_job
from ingest.schema import collections, documents, entries, generations, jobs
from retrieval.errors import JobNotCancellable, JobNotFound

Outcome = Literal["settled", "superseded", "moved", "full"]
CLAIM_TRIES = 8
"""Collections to try when others are taking the jobs at the same moment."""
MADE_DUE = 1000
"""Jobs that have waited long enough and become due in one transaction."""
_COUNT = sa.func.count().label("count")


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


class Jobs:
    """Claim, renew, settle. `clock` is the time of day, `steady` one that nobody sets; both in seconds.

    With `notify`, each end is noted for the webhook, in the transaction that settles it.
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
        self.notify = notify
        self.lease_seconds = lease_seconds
        self.max_attempts = max_attempts
        self.clock = clock
        self.steady = steady
        self._watch = Watch(lease_seconds)

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
        turns = turns or Turns()
        for _ in range(CLAIM_TRIES):
            place = await self._next_place(turns)
            if place is None:
                return None
            turns.served(*place)
            with contextlib.suppress(sa.exc.IntegrityError):  # another worker began a job of the same document
                if (job := await self._claim(worker, *place)) is not None:
                    return job
        return None

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

    async def _claim(self, worker: str, queue: str, collection: str) -> Job | None:
        now = self.clock()
        values = {
            "state": "running",
            "stage": "starting",
            "worker": worker,
            "beats": jobs.c.beats + 1,
            "started_at": now,
            "attempts": jobs.c.attempts + 1,
            "rate": None,
            "error": None,
        }
        chosen = self._unlocked(next_job(queue, collection)).scalar_subquery()
        async with self.database.writing() as connection:
            claimed = sa.update(jobs).where(jobs.c.id == chosen).values(**values).returning(*jobs.c)
            row = (await connection.execute(claimed)).mappings().first()
            if row is None:
                return None
            job = _job(row)
            await self._document_state(connection, job, "processing", None)
        return job

    def _unlocked(self, rows: sa.Select[tuple[str]]) -> sa.Select[tuple[str]]:
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
                await self._lose(connection, _job(row))
        return len(lost)

    async def _lose(self, connection: AsyncConnection, job: Job) -> None:
        if job.attempts < self.max_attempts or job.kind == "delete":
            await self._requeue(connection, job)
            return
        error = {
            "code": "worker_lost",
            "detail": f"its worker died or fell silent {self.max_attempts} times; the document may be what kills it",
            "retryable": True,
        }
        await self._give_up(connection, job, "dead", error)

    async def renew(self, job: Job, *, stage: str, done: int, total: int | None, rate: float | None = None) -> None:
        """Prolong the lease and show progress; `rate` is of `done`, per second. Raises `LeaseLost`.

        Nothing happens to a job that its worker settled in this moment: what the worker does after that must not be stopped.
        """
        values = {"beats": jobs.c.beats + 1, "stage": stage, "done": done, "total": total, "rate": rate}
        async with self.database.writing() as connection:
            result = await connection.execute(sa.update(jobs).where(self._mine(job)).values(**values))
            if not result.rowcount and not await self._has_settled(connection, job):
                raise LeaseLost

    async def settle_ingest(
        self,
        job: Job,
        written: Sequence[Entry],
        source: Mapping[str, Any],
        parts: Sequence[Upload] = (),
        *,
        exist: Exist = taken_for_granted,
        texts: Exist = taken_for_granted,
    ) -> Outcome:
        """Record what was written of a document's newest version and what came out of it, and end the job; all at once.

        `source` has the document's new `status`, `receipt`, `version`, `sha256` and `media_type`; `parts` take the place of
        the version's before, named within the document; `exist` and `texts` tell whether their bytes, and the texts of what
        was written, are stored. "superseded": the document has a newer version or is going, so nothing of this may stay.
        "moved": readers follow a generation that `written` lacks, so write there too and settle again. "full": the upload
        has no room for so many parts.
        Raises `LeaseLost` and `OriginalVanished`.
        """
        async with self.database.writing() as connection:
            await self.database.lock(connection, f"collection:{job.collection}")
            await self._require(connection, job)
            row = (await connection.execute(sa.select(documents).where(documents.c.id == job.document_id))).mappings().first()
            if row is None or row["version"] != job.version or row["status"] == "deleting":
                await self._end(connection, job, "cancelled", SUPERSEDED)
                return "superseded"
            live = sa.select(collections.c.live_generation).where(collections.c.name == job.collection)
            if (await connection.execute(live)).scalar() not in {entry.generation.id for entry in written}:
                return "moved"
            if parts and (await room_below(connection, row["id"])).fitting(parts) < len(parts):
                return "full"
            await self._lock_blobs(connection, written, parts)
            await require_texts(written, texts)
            for entry in written:
                await self._write_entry(connection, row["id"], entry, source)
            values = {name: source[name] for name in ("status", "receipt", "media_type")}
            values.update(error=None, updated_at=self.clock())
            await connection.execute(sa.update(documents).where(documents.c.id == row["id"]).values(**values))
            await require_originals(self.database, connection, parts, exist)
            await replace_parts(connection, row, parts)
            await self._end(connection, job, "succeeded")
        return "settled"

    async def settle_rebuild(
        self, job: Job, entry: Entry, source: Mapping[str, Any], *, texts: Exist = taken_for_granted
    ) -> Outcome:
        """Record what was written of a document's live version into a generation, and end the job.

        A document that was degraded because of the live one is whole again. Raises `LeaseLost` and `OriginalVanished`.
        """
        async with self.database.writing() as connection:
            await self.database.lock(connection, f"collection:{job.collection}")
            await self._require(connection, job)
            live = (
                sa.select(entries.c.version)
                .join(collections, collections.c.live_generation == entries.c.generation_id)
                .where(collections.c.name == job.collection, entries.c.document_id == job.document_id)
            )
            if (await connection.execute(live)).scalar() != source["version"]:
                await self._end(connection, job, "cancelled", SUPERSEDED)
                return "superseded"
            await self._lock_blobs(connection, [entry], ())
            await require_texts([entry], texts)
            await self._write_entry(connection, str(job.document_id), entry, source)
            if entry.generation.state == "live":
                await note_repaired(connection, str(job.document_id))
            await self._end(connection, job, "succeeded")
        return "settled"

    async def settle_delete(self, job: Job) -> list[str]:
        """Forget the document and end the job; gives the hashes of bytes that it used. Raises `LeaseLost`."""
        async with self.database.writing() as connection:
            await self._require(connection, job)
            blobs = set(
                (await connection.execute(sa.select(documents.c.sha256).where(documents.c.id == job.document_id))).scalars()
            )
            held = (
                await connection.execute(
                    sa.select(entries.c.sha256, entries.c.text_key).where(entries.c.document_id == job.document_id)
                )
            ).all()
            blobs.update(key for row in held for key in row)
            await self._end(connection, job, "succeeded")  # while the document's name can still be told
            await connection.execute(sa.delete(entries).where(entries.c.document_id == job.document_id))
            await connection.execute(
                sa.delete(documents).where(documents.c.id == job.document_id, documents.c.status == "deleting")
            )
        return sorted(blobs)

    async def succeed(self, job: Job) -> None:
        async with self.database.writing() as connection:
            await self._require(connection, job)
            await self._end(connection, job, "succeeded")

    async def fail(self, job: Job, error: Mapping[str, Any], *, retry_after: float | None = None) -> str:
        """End the job as failed, or queue it again if the error may pass; gives the new state.

        Waits 1, 2, 4, 8 ... seconds, at most 5 minutes, each shortened by up to half at random. Where the other side named
        a longer time, that is waited, and up to its own wait on top: all whom it told the same would come back at once.
        A deletion is tried until it is done: whoever asked for it was told that nothing will be found.
        """
        again = job.kind == "delete" or (error["retryable"] and job.attempts < self.max_attempts)
        async with self.database.writing() as connection:
            await self._require(connection, job)
            if again:
                wait = _back_off(job.attempts, retry_after)
                await self._requeue(connection, job, after=wait, stage="waiting", error=dict(error))
                return "queued"
            return await self._give_up(connection, job, "dead" if error["retryable"] else "failed", error)

    async def release(
        self, job: Job, *, after: float = 0.0, stage: str = "queued", done: int = 0, total: int | None = None
    ) -> None:
        """Give a job back, claimable `after` seconds from now and not counted as a try: its worker is going, or it waits."""
        async with self.database.writing() as connection:
            if (await connection.execute(sa.select(jobs.c.id).where(self._mine(job)).with_for_update())).first() is not None:
                progress = {"stage": stage, "done": done, "total": total}
                await self._requeue(connection, job, after=after, attempts=jobs.c.attempts - 1, **progress)

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
            raise JobNotFound(f"there is no job {job_id!r}; GET /jobs lists them")
        return _job(row)

    async def by_id(self, job_ids: Sequence[str]) -> list[Job]:
        """Those of these jobs that exist."""
        return [_job(row) for row in await self.database.rows(sa.select(jobs).where(jobs.c.id.in_(job_ids)))]

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
        return [_job(row) for row in await self.database.rows(query.order_by(jobs.c.id.desc()).limit(limit))]

    async def unfinished(self, job_ids: Sequence[str]) -> int:
        """How many of these jobs are not at their end, and of those for the documents that came out of theirs."""
        tree = below(sa.select(jobs.c.document_id).where(jobs.c.id.in_(job_ids)))
        own = jobs.c.id.in_(job_ids)
        of_parts = sa.and_(jobs.c.document_id.in_(sa.select(tree.c.id)), jobs.c.id.not_in(job_ids))
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
            job = await self._locked(connection, job_id)
            if job.state in FINAL or job.kind == "delete":
                why = "a deletion cannot be called back" if job.kind == "delete" else f"it is {job.state}"
                raise JobNotCancellable(f"job {job_id} cannot be cancelled: {why}")
            await self._document_state(connection, job, "failed", error)
            await self._end(connection, job, "cancelled", error)
        return await self.job(job_id)

    async def retry(self, job_id: str) -> Job:
        """Queue a failed, dead or cancelled job again. Raises `JobNotCancellable` where that makes no sense."""
        async with self.database.writing() as connection:
            job = await self._locked(connection, job_id)
            if job.state not in {"failed", "dead", "cancelled"} or (job.error or {}).get("code") == "superseded":
                raise JobNotCancellable(f"job {job_id} cannot be retried: it is {job.state}")
            await self._requeue(connection, job, attempts=0, finished_at=None)
        return await self.job(job_id)

    # --- inside a transaction ---------------------------------------------------------------------------------------------

    async def _requeue(self, connection: AsyncConnection, job: Job, *, after: float = 0.0, **changes: Any) -> None:
        """Put a job back into its queue; what can be claimed at once is announced."""
        run_after = self.clock() + after if after else 0.0
        values = {"state": "queued", "stage": "queued", "worker": None, "error": None, "run_after": run_after, **changes}
        await connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(**values))
        await self._document_state(connection, job, "queued", values["error"])
        if not after:
            note_queued(connection, job.queue, [job.id])

    def _mine(self, job: Job) -> sa.ColumnElement[bool]:
        """True of the row only while this claim of it stands: the next claim counts one more attempt."""
        return sa.and_(
            jobs.c.id == job.id, jobs.c.state == "running", jobs.c.worker == job.worker, jobs.c.attempts == job.attempts
        )

    async def _require(self, connection: AsyncConnection, job: Job) -> None:
        if (await connection.execute(sa.select(jobs.c.id).where(self._mine(job)).with_for_update())).first() is None:
            raise LeaseLost

    async def _locked(self, connection: AsyncConnection, job_id: str) -> Job:
        row = (await connection.execute(sa.select(jobs).where(jobs.c.id == job_id).with_for_update())).mappings().first()
        if row is None:
            raise JobNotFound(f"there is no job {job_id!r}; GET /jobs lists them")
        return _job(row)

    async def _has_settled(self, connection: AsyncConnection, job: Job) -> bool:
        claim = sa.and_(jobs.c.id == job.id, jobs.c.worker == job.worker, jobs.c.attempts == job.attempts)
        row = (await connection.execute(sa.select(jobs.c.state, jobs.c.error).where(claim))).first()
        return row is not None and (row.state == "succeeded" or row.error == SUPERSEDED)

    async def _end(self, connection: AsyncConnection, job: Job, state: str, error: Mapping[str, Any] | None = None) -> None:
        values = {
            "state": state,
            "stage": state,
            "error": dict(error) if error else None,
            "finished_at": self.clock(),
        }
        await connection.execute(sa.update(jobs).where(jobs.c.id == job.id).values(**values))
        if self.notify and job.kind != "rebuild" and error != SUPERSEDED:  # what superseded it has a notice of its own
            await write_notice(connection, job, error, self.clock())

    async def _lock_blobs(self, connection: AsyncConnection, written: Sequence[Entry], parts: Sequence[Upload]) -> None:
        """All at once and in one order, so that no two transactions wait for each other."""
        hashes = [*(entry.text_key for entry in written), *(part.sha256 for part in parts)]
        await lock_blobs(self.database, connection, hashes)

    async def _give_up(self, connection: AsyncConnection, job: Job, state: str, error: Mapping[str, Any]) -> str:
        """End a job that is not tried again; gives its state. Of a version that was overtaken meanwhile nobody is told."""
        if job.kind == "ingest" and (await connection.execute(sa.select(documents.c.id).where(_newest(job)))).first() is None:
            state, error = "cancelled", SUPERSEDED
        await self._document_state(connection, job, "failed", error)
        await self._end(connection, job, state, error)
        return state

    async def _document_state(
        self, connection: AsyncConnection, job: Job, status: str, error: Mapping[str, Any] | None
    ) -> None:
        if job.kind == "rebuild" and status == "failed" and error:
            await note_unrepaired(connection, str(job.document_id), error)
        if job.kind != "ingest":
            return
        values = {"status": status, "error": dict(error) if error else None, "updated_at": self.clock()}
        await connection.execute(sa.update(documents).where(_newest(job)).values(**values))

    async def _write_entry(
        self, connection: AsyncConnection, document_id: str, entry: Entry, source: Mapping[str, Any]
    ) -> None:
        place = {"document_id": document_id, "generation_id": entry.generation.id}
        await connection.execute(sa.delete(entries).where(*(entries.c[key] == value for key, value in place.items())))
        values = {key: source[key] for key in ("version", "sha256", "media_type")}
        held = {"text_key": entry.text_key, "chunks": entry.chunks, "digest": entry.digest, "indexed_at": self.clock()}
        await connection.execute(sa.insert(entries).values(**place, **values, **held))
        known = (
            await connection.execute(sa.select(generations.c.languages).where(generations.c.id == entry.generation.id))
        ).scalar() or []
        if new := entry.languages - set(known):
            await connection.execute(
                sa.update(generations).where(generations.c.id == entry.generation.id).values(languages=sorted({*known, *new}))
            )


def _back_off(attempt: int, retry_after: float | None) -> float:
    """Seconds to wait after the try number `attempt`."""
    own = min(300.0, 2.0 ** (attempt - 1))
    if retry_after is not None and retry_after > own:
        return min(LONGEST_WAIT, retry_after + random.uniform(0.0, own))  # noqa: S311
    return own * random.uniform(0.5, 1.0)  # noqa: S311


def _newest(job: Job) -> sa.ColumnElement[bool]:
    """True of the job's document while this is its newest version and stays."""
    return sa.and_(documents.c.id == job.document_id, documents.c.version == job.version, documents.c.status != "deleting")


def _rebuild_of(generation: Generation) -> sa.ColumnElement[bool]:
    return sa.and_(jobs.c.kind == "rebuild", jobs.c.generation_id == generation.id)


def _job(row: Mapping[Any, Any]) -> Job:
    return Job(**{name: row[name] for name in Job.__dataclass_fields__})
