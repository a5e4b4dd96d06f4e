"""The job queue: rows of the catalog, claimed by one guarded UPDATE with a lease, settled only by the one who holds it."""

from __future__ import annotations

import contextlib
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import monotonic, time
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ingest.claims import LONGEST_WAIT, LOT, Turns, Watch, lot_of, next_jobs, next_place, next_retry, overdue
from ingest.database import Clock, Database, note_queued
from ingest.documents import (
    SUPERSEDED,
    Exist,
    add_jobs,
    below,
    having_parts,
    lock_blobs,
    note_repaired,
    note_unrepaired,
    replace_parts,
    require_originals,
    require_texts,
    room_below,
    taken_for_granted,
    update_documents,
    write_entries,
)
from ingest.notices import write_notice
from ingest.records import FINAL, QUEUE_OF, Entry, Generation, Upload, new_job, repair_job
from ingest.schema import collections, documents, entries, jobs
from ingest.together import Together
from retrieval.errors import CatalogUnavailable, FilesRejected, FilesUnavailable, JobNotCancellable, JobNotFound, StorageFull

Outcome = Literal["settled", "superseded", "moved", "full"]
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

OUTAGES = (CatalogUnavailable, StorageFull, FilesUnavailable, FilesRejected)
"""Whose fault a document is not, so that those that are settled together need not find out one by one."""
S = TypeVar("S", bound=tuple[Any, ...])


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


@dataclass(frozen=True, slots=True)
class _Settlement:
    """What `settle_ingest` was given."""

    job: Job
    written: Sequence[Entry]
    source: Mapping[str, Any]
    parts: Sequence[Upload]
    exist: Exist
    texts: Exist


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
        self._settling = Together(self._settle, most=LOT, of_all=OUTAGES)

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
            lot = sorted(map(_job, (await connection.execute(claimed)).mappings()), key=lambda job: job.id)
            await self._document_states(connection, lot, "processing", None)
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
                await self._lose(connection, _job(row))
        return len(lost)

    async def _lose(self, connection: AsyncConnection, job: Job) -> None:
        if job.attempts < self.max_attempts or job.kind == "delete":
            await self._requeue(connection, [job])
            return
        error = {
            "code": "worker_lost",
            "detail": f"its worker died or fell silent {self.max_attempts} times; the document may be what kills it",
            "retryable": True,
        }
        await self._give_up(connection, job, "dead", error)

    async def renew(self, beats: Sequence[Beat]) -> list[str]:
        """Prolong the leases and show progress; gives the ids of the jobs that are lost.

        Not lost is a job that its worker settled in this moment: what the worker does after that must not be stopped. One
        that somebody is changing at this moment is passed over, as two that lock many rows would wait for each other.
        """
        if not beats:
            return []
        mine = _claimed([each.job for each in beats])
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
        What is settled at the same time is one transaction. Raises `LeaseLost` and `OriginalVanished`.
        """
        alone = job.id if parts else ""  # how many parts there is room for, depends on those who were settled before
        outcome = await self._settling.do((job.collection, alone), _Settlement(job, written, source, parts, exist, texts))
        if outcome is None:
            raise LeaseLost
        return outcome

    async def _settle(self, place: tuple[str, str], lot: Sequence[_Settlement]) -> list[Outcome | None]:
        """None of a job whose lease is lost."""
        async with self.database.writing() as connection:
            await self.database.lock(connection, f"collection:{place[0]}")
            held = await self._held(connection, [each.job for each in lot])
            found = sa.select(documents).where(documents.c.id.in_([each.job.document_id for each in lot]))
            rows = {row["id"]: row for row in (await connection.execute(found)).mappings()}
            live = sa.select(collections.c.live_generation).where(collections.c.name == place[0])
            read = (await connection.execute(live)).scalar()
            outcomes = [_outcome(each, rows.get(each.job.document_id), read) if each.job.id in held else None for each in lot]
            for at, each in enumerate(lot):
                if outcomes[at] == "settled" and each.parts:
                    room = await room_below(connection, str(each.job.document_id))
                    outcomes[at] = "settled" if room.fitting(each.parts) == len(each.parts) else "full"
            over = [each.job for each, outcome in zip(lot, outcomes, strict=True) if outcome == "superseded"]
            await self._end(connection, over, "cancelled", SUPERSEDED)
            await self._record(
                connection, [each for each, outcome in zip(lot, outcomes, strict=True) if outcome == "settled"], rows
            )
        return outcomes

    async def _record(
        self, connection: AsyncConnection, lot: Sequence[_Settlement], rows: Mapping[str, Mapping[Any, Any]]
    ) -> None:
        """What became of these documents, whose newest versions are `rows`."""
        if not lot:
            return
        now = self.clock()
        written = [entry for each in lot for entry in each.written]
        await self._lock_blobs(connection, written, [part for each in lot for part in each.parts])
        for texts in {each.texts for each in lot}:  # bound methods of one object are equal, so it mostly is one
            await require_texts([entry for each in lot if each.texts == texts for entry in each.written], texts)
        await write_entries(
            connection, [(str(each.job.document_id), entry, each.source) for each in lot for entry in each.written], now
        )
        await update_documents(
            connection,
            [
                {"id": each.job.document_id, "error": None, "updated_at": now}
                | {name: each.source[name] for name in ("status", "receipt", "media_type")}
                for each in lot
            ],
        )
        parents = await having_parts(connection, [str(each.job.document_id) for each in lot])
        for each in lot:
            if each.parts or each.job.document_id in parents:
                await require_originals(self.database, connection, each.parts, each.exist)
                await replace_parts(connection, rows[str(each.job.document_id)], each.parts)
        await self._end(connection, [each.job for each in lot], "succeeded")

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
                await self._end(connection, [job], "cancelled", SUPERSEDED)
                return "superseded"
            await self._lock_blobs(connection, [entry], ())
            await require_texts([entry], texts)
            await write_entries(connection, [(str(job.document_id), entry, source)], self.clock())
            if entry.generation.state == "live":
                await note_repaired(connection, str(job.document_id))
            await self._end(connection, [job], "succeeded")
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
            await self._end(connection, [job], "succeeded")  # while the document's name can still be told
            await connection.execute(sa.delete(entries).where(entries.c.document_id == job.document_id))
            await connection.execute(
                sa.delete(documents).where(documents.c.id == job.document_id, documents.c.status == "deleting")
            )
        return sorted(blobs)

    async def succeed(self, job: Job) -> None:
        async with self.database.writing() as connection:
            await self._require(connection, job)
            await self._end(connection, [job], "succeeded")

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
                await self._requeue(connection, [job], after=wait, stage="waiting", error=dict(error))
                return "queued"
            return await self._give_up(connection, job, "dead" if error["retryable"] else "failed", error)

    async def release(
        self, *claimed: Job, after: float = 0.0, stage: str = "queued", done: int = 0, total: int | None = None
    ) -> None:
        """Give jobs back, those that are still held, claimable `after` seconds from now and not counted as a try: their
        worker is going, or they wait."""
        progress = {"stage": stage, "done": done, "total": total}
        async with self.database.writing() as connection:
            held = await self._held(connection, claimed)
            again = [job for job in claimed if job.id in held]
            await self._requeue(connection, again, after=after, attempts=jobs.c.attempts - 1, **progress)

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
            job = await self._locked(connection, job_id)
            if job.state in FINAL or job.kind == "delete":
                why = "a deletion cannot be called back" if job.kind == "delete" else f"it is {job.state}"
                raise JobNotCancellable(f"job {job_id} cannot be cancelled: {why}")
            await self._document_state(connection, job, "failed", error)
            await self._end(connection, [job], "cancelled", error)
        return await self.job(job_id)

    async def retry(self, job_id: str) -> Job:
        """Queue a failed, dead or cancelled job again. Raises `JobNotCancellable` where that makes no sense."""
        async with self.database.writing() as connection:
            job = await self._locked(connection, job_id)
            if job.state not in {"failed", "dead", "cancelled"} or (job.error or {}).get("code") == "superseded":
                raise JobNotCancellable(f"job {job_id} cannot be retried: it is {job.state}")
            await self._requeue(connection, [job], attempts=0, finished_at=None)
        return await self.job(job_id)

    # --- inside a transaction ---------------------------------------------------------------------------------------------

    async def _requeue(self, connection: AsyncConnection, again: Sequence[Job], *, after: float = 0.0, **changes: Any) -> None:
        """Put jobs back into their queues; what can be claimed at once is announced."""
        if not again:
            return
        run_after = self.clock() + after if after else 0.0
        values = {"state": "queued", "stage": "queued", "worker": None, "error": None, "run_after": run_after, **changes}
        await connection.execute(sa.update(jobs).where(jobs.c.id.in_([job.id for job in again])).values(**values))
        await self._document_states(connection, again, "queued", values["error"])
        if not after:
            for job in again:
                note_queued(connection, job.queue, [job.id])

    async def _held(self, connection: AsyncConnection, claimed: Sequence[Job]) -> set[str]:
        """Ids of those whose claims still stand, and will until the transaction ends; locked in one order by all."""
        mine = sa.select(jobs.c.id).where(_claimed(claimed), jobs.c.state == "running")
        query = mine.order_by(jobs.c.id).with_for_update()
        return set((await connection.execute(query)).scalars())

    async def _require(self, connection: AsyncConnection, job: Job) -> None:
        if not await self._held(connection, [job]):
            raise LeaseLost

    async def _locked(self, connection: AsyncConnection, job_id: str) -> Job:
        row = (await connection.execute(sa.select(jobs).where(jobs.c.id == job_id).with_for_update())).mappings().first()
        if row is None:
            raise JobNotFound(f"there is no job {job_id!r}; GET /jobs lists them")
        return _job(row)

    async def _end(
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

    async def _lock_blobs(self, connection: AsyncConnection, written: Sequence[Entry], parts: Sequence[Upload]) -> None:
        """All at once and in one order, so that no two transactions wait for each other."""
        hashes = [*(entry.text_key for entry in written), *(part.sha256 for part in parts)]
        await lock_blobs(self.database, connection, hashes)

    async def _give_up(self, connection: AsyncConnection, job: Job, state: str, error: Mapping[str, Any]) -> str:
        """End a job that is not tried again; gives its state. Of a version that was overtaken meanwhile nobody is told."""
        if job.kind == "ingest" and (await connection.execute(sa.select(documents.c.id).where(_newest(job)))).first() is None:
            state, error = "cancelled", SUPERSEDED
        await self._document_state(connection, job, "failed", error)
        await self._end(connection, [job], state, error)
        return state

    async def _document_state(
        self, connection: AsyncConnection, job: Job, status: str, error: Mapping[str, Any] | None
    ) -> None:
        if job.kind == "rebuild" and status == "failed" and error:
            await note_unrepaired(connection, str(job.document_id), error)
        await self._document_states(connection, [job], status, error)

    async def _document_states(
        self, connection: AsyncConnection, of_jobs: Sequence[Job], status: str, error: Mapping[str, Any] | None
    ) -> None:
        read = [job for job in of_jobs if job.kind == "ingest"]
        if read:
            values = {"status": status, "error": dict(error) if error else None, "updated_at": self.clock()}
            await connection.execute(sa.update(documents).where(_newest(*read)).values(**values))


def _back_off(attempt: int, retry_after: float | None) -> float:
    """Seconds to wait after the try number `attempt`."""
    own = min(300.0, 2.0 ** (attempt - 1))
    if retry_after is not None and retry_after > own:
        return min(LONGEST_WAIT, retry_after + random.uniform(0.0, own))  # noqa: S311
    return own * random.uniform(0.5, 1.0)  # noqa: S311


def _claimed(held: Sequence[Job]) -> sa.ColumnElement[bool]:
    """True of the rows of these jobs while these claims of them stand: the next claim counts one more attempt."""
    claims = [(job.id, job.worker, job.attempts) for job in held]
    these = jobs.c.id.in_([job.id for job in held])  # by which both databases seek
    return sa.and_(these, sa.tuple_(jobs.c.id, jobs.c.worker, jobs.c.attempts).in_(claims))


def _newest(*of_jobs: Job) -> sa.ColumnElement[bool]:
    """True of the jobs' documents while these are their newest versions and stay."""
    versions = [(job.document_id, job.version) for job in of_jobs]
    these = documents.c.id.in_([document_id for document_id, _ in versions])
    return sa.and_(these, sa.tuple_(documents.c.id, documents.c.version).in_(versions), documents.c.status != "deleting")


def _outcome(settlement: _Settlement, document: Mapping[Any, Any] | None, live: str | None) -> Outcome:
    """Whether it is the newest version that was written, and to where readers look; not yet whether its parts have room."""
    if document is None or document["version"] != settlement.job.version or document["status"] == "deleting":
        return "superseded"
    return "settled" if live in {entry.generation.id for entry in settlement.written} else "moved"


def _rebuild_of(generation: Generation) -> sa.ColumnElement[bool]:
    """Of a re-index: a repair of the same document and generation stands in another queue, and is none of its business."""
    return sa.and_(jobs.c.kind == "rebuild", jobs.c.generation_id == generation.id, jobs.c.queue == QUEUE_OF["rebuild"])


def _job(row: Mapping[Any, Any]) -> Job:
    return Job(**{name: row[name] for name in Job.__dataclass_fields__})
