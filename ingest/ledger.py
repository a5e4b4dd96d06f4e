"""The catalog's side of reconciliation: what each index should hold, line by line, and what was found and done about it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from time import time
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ingest.database import Database
from ingest.documents import add_jobs
from ingest.records import Generation, repair_job, status_when_whole
from ingest.schema import collections, documents, entries, generations, jobs, passes

UNFINISHED = ("queued", "running")
PASS_LEASE_SECONDS = 300.0
"""After so long without a sign, whoever made a pass is taken for dead. Two at once cost time and nothing else."""
RETRY_SECONDS = 24 * 3600.0
"""A rebuild that failed is not tried again before."""

PassName = Literal["indexes", "files"]
DriftKind = Literal["missing", "stale", "orphaned"]


@dataclass(frozen=True, slots=True)
class Line:
    """What one generation should hold of one document that no job works on or waits for."""

    document_id: str
    version: int
    sha256: str
    text_key: str
    chunks: int
    digest: str | None
    indexed_at: float
    status: str


@dataclass(frozen=True, slots=True)
class Drift:
    """A document of which a store does not hold what it should."""

    document_id: str
    kind: DriftKind
    detail: str
    line: Line | None = None
    """What the ledger said when the store was read; None for an orphan, of which it says nothing."""
    known: bool = True
    """The catalog knows the document, so that only one of its jobs may touch what the store holds of it."""
    rebuildable: bool = True
    """Its original is there."""

    @property
    def error(self) -> dict[str, Any]:
        """What the document shows while it is degraded."""
        if self.rebuildable:
            return {
                "code": "index_drift",
                "detail": f"{self.detail}; it is rebuilt from the kept original",
                "retryable": True,
            }
        detail = f"{self.detail}, and its original is gone: upload the document again"
        return {"code": "original_lost", "detail": detail, "retryable": False}


@dataclass(frozen=True, slots=True)
class Totals:
    chunks: int
    is_quiet: bool
    """No job of the collection waits or runs, so that store and ledger must agree."""


@dataclass(frozen=True, slots=True)
class PassRecord:
    """All passes of one kind: when the last one ended (seconds since the epoch, 0: never), and sums over all of them."""

    name: str
    finished_at: float
    checked: int
    found: int
    mended: int


class Ledger:
    """Every method is one transaction."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def totals(self, generation: Generation) -> Totals:
        held = sa.select(sa.func.coalesce(sa.func.sum(entries.c.chunks), 0)).where(entries.c.generation_id == generation.id)
        busy = sa.select(jobs.c.id).where(jobs.c.collection == generation.collection, jobs.c.state.in_(UNFINISHED)).limit(1)
        async with self.database.reading() as connection:
            is_quiet = (await connection.execute(busy)).first() is None
            return Totals(int((await connection.execute(held)).scalar_one()), is_quiet)

    async def lines(
        self,
        generation: Generation,
        *,
        after: str = "",
        ids: Sequence[str] | None = None,
        status: str | None = None,
        limit: int,
    ) -> list[Line]:
        """Lines in ascending order of document id, those after the id `after`; of these ids, of this status."""
        query = _lines(generation).where(documents.c.id > after)
        if ids is not None:
            query = query.where(documents.c.id.in_(ids))
        if status is not None:
            query = query.where(documents.c.status == status)
        return [Line(**row) for row in await self.database.rows(query.limit(limit))]

    async def strangers(self, generation: Generation, ids: Collection[str]) -> dict[str, bool]:
        """Those of which the generation should hold nothing and no job is about to write: does the catalog know them?"""
        async with self.database.reading() as connection:
            return await self._strangers(connection, generation, ids)

    async def adopt(self, generation: Generation, digests: Mapping[Line, str]) -> None:
        """Note digests of lines that have none yet."""
        async with self.database.writing() as connection:
            for line, digest in digests.items():
                same = _entry(generation, line.document_id) & (entries.c.indexed_at == line.indexed_at)
                await connection.execute(sa.update(entries).where(same, entries.c.digest.is_(None)).values(digest=digest))

    async def whole(self, document_ids: Sequence[str]) -> int:
        """Documents that are degraded no more get the status back that their receipt speaks for; gives how many those are."""
        degraded = sa.select(documents.c.id, documents.c.receipt).where(
            documents.c.id.in_(document_ids), documents.c.status == "degraded"
        )
        async with self.database.writing() as connection:
            rows = (await connection.execute(degraded)).all()
            for row in rows:
                values = {"status": status_when_whole(row.receipt), "error": None, "updated_at": time()}
                await connection.execute(sa.update(documents).where(documents.c.id == row.id).values(**values))
        return len(rows)

    async def degrade(self, generation: Generation, drifts: Sequence[Drift], *, again: bool = False) -> int:
        """Show documents as degraded and queue their rebuilding, if the ledger still says of each what it said when the
        store was read; gives how many that are. A rebuild that has failed within a day is tried again only if `again`.
        """
        async with self.database.writing() as connection:
            await self.database.lock(connection, f"collection:{generation.collection}")
            live = sa.select(collections.c.live_generation).where(collections.c.name == generation.collection)
            if (await connection.execute(live)).scalar() != generation.id:
                return 0
            real = await self._unchanged(connection, generation, drifts)
            for drift in real:
                shown = sa.and_(
                    documents.c.id == drift.document_id, documents.c.status.in_(["ready", "needs_attention", "degraded"])
                )
                values = {"status": "degraded", "error": drift.error, "updated_at": time()}
                if drift.line is not None:
                    await connection.execute(sa.update(documents).where(shown).values(**values))
            tried = set() if again else await self._tried(connection, generation, [drift.document_id for drift in real])
            ids = [drift.document_id for drift in real if drift.rebuildable and drift.document_id not in tried]
            await add_jobs(connection, [repair_job(generation, each) for each in ids])
        return len(real)

    async def repairing(self, generation: Generation) -> int:
        """How many of its documents wait to be rebuilt."""
        query = sa.select(sa.func.count()).where(_repairs(generation), jobs.c.state.in_(UNFINISHED))
        [number] = await self.database.scalars(query)
        return int(number)

    async def compared(self, generation: Generation) -> None:
        """All of it was compared with the store just now; repairs that ended before yesterday are of no more use."""
        ended = sa.and_(_repairs(generation), jobs.c.finished_at < time() - RETRY_SECONDS)
        async with self.database.writing() as connection:
            await connection.execute(sa.update(generations).where(generations.c.id == generation.id).values(compared_at=time()))
            await connection.execute(sa.delete(jobs).where(ended, jobs.c.state.not_in(UNFINISHED)))

    async def last_compared(self, generation: Generation) -> float:
        """When, in seconds since the epoch; 0 for never."""
        query = sa.select(generations.c.compared_at).where(generations.c.id == generation.id)
        return float(next(iter(await self.database.scalars(query)), None) or 0.0)

    async def unreferenced(self, hashes: Collection[str]) -> set[str]:
        """Those that no document and no entry names. A hint: only `Catalog.remove_blob` knows for sure."""
        named = sa.union_all(
            sa.select(documents.c.sha256).where(documents.c.sha256.in_(hashes)),
            sa.select(entries.c.sha256).where(entries.c.sha256.in_(hashes)),
            sa.select(entries.c.text_key).where(entries.c.text_key.in_(hashes)),
        )
        return set(hashes) - set(await self.database.scalars(named))

    # --- passes ------------------------------------------------------------------------------------------------------------

    async def begin(self, name: PassName, worker: str, *, every: float) -> bool:
        """Take the pass, if the last one ended more than `every` seconds ago and nobody else is at it."""
        now = time()
        due = sa.and_(passes.c.name == name, passes.c.finished_at <= now - every, passes.c.lease_until < now)
        # Asked often: an idle worker must not take the write lock.
        if await self.database.first(sa.select(passes.c.name).where(due)) is None:
            return False
        async with self.database.writing() as connection:
            taken = sa.update(passes).where(due).values(worker=worker, lease_until=now + PASS_LEASE_SECONDS)
            return bool((await connection.execute(taken)).rowcount)

    async def note(
        self, name: PassName, worker: str, *, checked: int = 0, found: int = 0, mended: int = 0, ended: bool = False
    ) -> bool:
        """Add to what the pass has done, and go on or end it; False if another one has taken it over."""
        now = time()
        counts = {
            "checked": passes.c.checked + checked,
            "found": passes.c.found + found,
            "mended": passes.c.mended + mended,
        }
        times = {"lease_until": 0.0, "finished_at": now} if ended else {"lease_until": now + PASS_LEASE_SECONDS}
        mine = sa.and_(passes.c.name == name, passes.c.worker == worker)
        async with self.database.writing() as connection:
            return bool((await connection.execute(sa.update(passes).where(mine).values(**counts, **times))).rowcount)

    async def give_up(self, name: PassName, worker: str) -> None:
        """Leave a pass to the next who asks."""
        async with self.database.writing() as connection:
            mine = sa.and_(passes.c.name == name, passes.c.worker == worker)
            await connection.execute(sa.update(passes).where(mine).values(lease_until=0.0))

    async def passes(self) -> list[PassRecord]:
        names = [passes.c[name] for name in PassRecord.__dataclass_fields__]
        return [PassRecord(**row) for row in await self.database.rows(sa.select(*names))]

    # --- inside a transaction ------------------------------------------------------------------------------------------------

    async def _unchanged(self, connection: AsyncConnection, generation: Generation, drifts: Sequence[Drift]) -> list[Drift]:
        ids = [drift.document_id for drift in drifts]
        rows = await connection.execute(_lines(generation).where(documents.c.id.in_(ids)))
        now = {line.document_id: line for line in (Line(**row) for row in rows.mappings())}
        strange = await self._strangers(connection, generation, ids)
        return [
            drift
            for drift in drifts
            if (drift.line == now.get(drift.document_id) if drift.line else drift.document_id in strange)
        ]

    async def _strangers(self, connection: AsyncConnection, generation: Generation, ids: Collection[str]) -> dict[str, bool]:
        held = sa.select(entries.c.document_id).where(entries.c.generation_id == generation.id, entries.c.document_id.in_(ids))
        known = sa.select(documents.c.id, _is_busy().label("busy")).where(documents.c.id.in_(ids))
        expected = set((await connection.execute(held)).scalars())
        busy = {row.id: bool(row.busy) for row in (await connection.execute(known)).all()}
        return {each: each in busy for each in ids if each not in expected and not busy.get(each)}

    async def _tried(self, connection: AsyncConnection, generation: Generation, ids: Sequence[str]) -> set[str]:
        failed = sa.select(jobs.c.document_id).where(
            _repairs(generation),
            jobs.c.document_id.in_(ids),
            jobs.c.state.in_(["failed", "dead"]),
            jobs.c.finished_at > time() - RETRY_SECONDS,
        )
        return set((await connection.execute(failed)).scalars())


def _lines(generation: Generation) -> sa.Select[Any]:
    own = [entries.c[name] for name in ("document_id", "version", "sha256", "text_key", "chunks", "digest", "indexed_at")]
    return (
        sa.select(*own, documents.c.status)
        .select_from(entries.join(documents, documents.c.id == entries.c.document_id))
        .where(entries.c.generation_id == generation.id, ~_is_busy())
        .order_by(documents.c.id)
    )


def _is_busy() -> sa.ColumnElement[bool]:
    """A document that is going, or of which a job may change what the store holds."""
    unfinished = sa.exists().where(jobs.c.document_id == documents.c.id, jobs.c.state.in_(UNFINISHED))
    return sa.or_(documents.c.status == "deleting", unfinished)


def _entry(generation: Generation, document_id: str) -> sa.ColumnElement[bool]:
    return sa.and_(entries.c.document_id == document_id, entries.c.generation_id == generation.id)


def _repairs(generation: Generation) -> sa.ColumnElement[bool]:
    return sa.and_(jobs.c.kind == "rebuild", jobs.c.generation_id == generation.id)
