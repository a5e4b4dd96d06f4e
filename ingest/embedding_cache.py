"""Vectors of texts that were embedded before, whichever document or index they were in: only what is new is computed.

It holds hashes and vectors, and no text. On SQLite it is a file of its own, so that it never takes the catalog's lock; on
PostgreSQL a table of the catalog's database, shared by the workers of all machines. Nothing depends on it: where it fails,
the text is embedded again.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
import structlog
from sqlalchemy.dialects import postgresql, sqlite

from ingest.database import Clock, Database, beside
from ingest.together import Together
from retrieval.embedders import Embedder
from retrieval.errors import FootnoteError
from retrieval.types import Matrix, Vector

FILE = "embeddings.sqlite"

ROW_BYTES = 500
"""What a vector takes beside its numbers: its key, two indexes, and pages that are not full."""
KEEP_SHARE = 0.9
"""How much of the limit is left when room is made, so that it is seldom made."""
MEASURE_SHARE = 16
"""The size is counted again when a sixteenth of the limit was written, so it may be larger by as much."""
USED_SECONDS = 6 * 3600
"""The use of a vector is noted at most so often: else reading would always write."""
COUNT_SECONDS = 10
REST = 4.0
"""Times as long as the last writing took, the next one waits for company."""
CALLS_AT_ONCE = 32
"""Of documents that look for their vectors, or keep them, at the same time."""
PAUSE_SECONDS = 60
"""How long a cache that failed is left alone."""

log = structlog.get_logger(__name__)

_tables = sa.MetaData()
_vectors = sa.Table(
    "embeddings",
    _tables,
    sa.Column("key", sa.LargeBinary, primary_key=True),
    sa.Column("vector", sa.LargeBinary, nullable=False),  # float32, little-endian
    sa.Column("used_at", sa.Integer, nullable=False, index=True),
)
_counts = sa.Table(
    "embedding_counts",
    _tables,
    sa.Column("result", sa.Text, primary_key=True),  # cached, embedded
    sa.Column("texts", sa.BigInteger, nullable=False),
)
# Written to no log, and empty after a crash, as a cache may be; and vectors do not get smaller by compression.
_CHEAPLY = "ALTER TABLE embeddings SET UNLOGGED, ALTER COLUMN vector SET STORAGE EXTERNAL"
sa.event.listen(_vectors, "after_create", sa.DDL(_CHEAPLY).execute_if(dialect="postgresql"))  # type: ignore[no-untyped-call]


@asynccontextmanager
async def open_embedding_cache(catalog: Database, folder: Path, limit_bytes: int) -> AsyncIterator[EmbeddingCache]:
    """The cache that the workers of this catalog share; `folder` is where its file lies if the catalog is in SQLite.

    With a limit of 0, or where it cannot be opened, it keeps nothing.
    """
    database = await _open(catalog, folder / FILE) if limit_bytes else None
    cache = EmbeddingCache(database, limit_bytes)
    try:
        yield cache
    finally:
        await cache.flush()
        if database is not None and database is not catalog:
            await database.close()


class EmbeddingCache:
    """Embeds documents' texts; those seen before it only looks up. What was not used for longest goes first."""

    def __init__(self, database: Database | None, limit_bytes: int, *, clock: Clock = time.time) -> None:
        self._database = database
        self._limit = limit_bytes
        self._clock = clock
        self._unmeasured = limit_bytes  # what others wrote before us counts too
        self._counted: Counter[str] = Counter()
        self._count_at = clock() + COUNT_SECONDS
        self._resume_at = 0.0
        self._finding = Together(self._find, most=CALLS_AT_ONCE)
        self._keeping = Together(self._write, most=CALLS_AT_ONCE, rest=REST)

    async def embed(self, embedder: Embedder, texts: Sequence[str]) -> tuple[Matrix, int]:
        """Shape (len(texts), dimension), in order, and how many texts the model had to compute. Raises what it raises."""
        keys = [key_of(embedder.fingerprint, text) for text in texts]
        vectors = dict(await self._finding.do(embedder.dimension, frozenset(keys)))
        new = {key: text for key, text in zip(keys, texts, strict=True) if key not in vectors}
        if new:
            fresh = dict(zip(new, await embedder.embed_documents(list(new.values())), strict=True))
            await self._keeping.do(embedder.dimension, fresh)
            vectors.update(fresh)
        await self._count(cached=len(texts) - len(new), embedded=len(new))
        rows = [vectors[key] for key in keys]
        return np.asarray(rows, np.float32).reshape(len(rows), embedder.dimension), len(new)

    async def counts(self) -> dict[str, int]:
        """Texts by `cached` and `embedded`, of all workers since the cache was made; the last seconds of others may lack."""
        counted = Counter(self._counted)
        if (database := self._usable()) is not None:
            with self._spared():
                counted.update({row["result"]: row["texts"] for row in await database.rows(sa.select(_counts))})
        return dict(counted)

    async def flush(self) -> None:
        """Write down what was counted."""
        counted, self._counted = self._counted, Counter()
        self._count_at = self._clock() + COUNT_SECONDS
        if counted and (database := self._usable()) is not None:
            insert = _insert(database, _counts)
            added = insert.on_conflict_do_update(
                index_elements=["result"], set_={"texts": _counts.c.texts + insert.excluded.texts}
            )
            rows = [{"result": result, "texts": texts} for result, texts in sorted(counted.items())]
            with self._spared():
                async with database.writing() as connection:
                    await connection.execute(added, rows)

    async def _find(self, dimension: int, wanted: Sequence[frozenset[bytes]]) -> list[dict[bytes, Vector]]:
        """What is known of each of these calls' keys."""
        vectors = await self._known(frozenset().union(*wanted), dimension)
        return [{key: vectors[key] for key in keys if key in vectors} for keys in wanted]

    async def _known(self, keys: Collection[bytes], dimension: int) -> dict[bytes, Vector]:
        vectors: dict[bytes, Vector] = {}
        database = self._usable()
        if database is None:
            return vectors
        with self._spared():
            rows = await database.rows(sa.select(_vectors).where(_vectors.c.key.in_(keys)))
            old = self._clock() - USED_SECONDS
            await self._note_use(database, [row["key"] for row in rows if row["used_at"] < old])
            found = {row["key"]: _vector(row["vector"], dimension) for row in rows}
            vectors.update({key: vector for key, vector in found.items() if vector is not None})
        return vectors

    async def _note_use(self, database: Database, keys: Collection[bytes]) -> None:
        if not keys:
            return
        # What another worker writes at this moment is skipped: two that lock the same rows in unlike order would deadlock.
        unlocked = sa.select(_vectors.c.key).where(_vectors.c.key.in_(keys)).with_for_update(skip_locked=True)
        async with database.writing() as connection:
            await connection.execute(sa.update(_vectors).where(_vectors.c.key.in_(unlocked)).values(used_at=int(self._clock())))

    async def _write(self, _dimension: int, calls: Sequence[Mapping[bytes, Vector]]) -> list[None]:
        await self._keep({key: vector for fresh in calls for key, vector in fresh.items()})
        return [None] * len(calls)

    async def _keep(self, fresh: Mapping[bytes, Vector]) -> None:
        database = self._usable()
        if database is None:
            return
        now = int(self._clock())
        kept = [(key, np.asarray(fresh[key], "<f4").tobytes()) for key in sorted(fresh)]  # in one order, for the same reason
        rows = [{"key": key, "vector": vector, "used_at": now} for key, vector in kept]
        insert = _insert(database, _vectors)
        replacing = insert.on_conflict_do_update(
            index_elements=["key"], set_={"vector": insert.excluded.vector, "used_at": insert.excluded.used_at}
        )
        with self._spared():
            async with database.writing() as connection:
                await connection.execute(replacing, rows)
            self._unmeasured += sum(len(vector) + ROW_BYTES for _, vector in kept)
            if self._unmeasured >= self._limit / MEASURE_SHARE:
                await self._make_room(database)

    async def _make_room(self, database: Database) -> None:
        total = sa.func.coalesce(sa.func.sum(sa.func.length(_vectors.c.vector)), 0)
        [held] = await database.rows(sa.select(sa.func.count().label("count"), total.label("size")).select_from(_vectors))
        count, size = held["count"], int(held["size"]) + held["count"] * ROW_BYTES
        self._unmeasured = 0
        if size <= self._limit:
            return
        surplus = math.ceil(count * (1 - KEEP_SHARE * self._limit / size))
        oldest = sa.select(_vectors.c.key).order_by(_vectors.c.used_at).limit(surplus).with_for_update(skip_locked=True)
        async with database.writing() as connection:
            await connection.execute(sa.delete(_vectors).where(_vectors.c.key.in_(oldest)))

    async def _count(self, **texts: int) -> None:
        self._counted.update(texts)
        if self._clock() >= self._count_at:
            await self.flush()

    def _usable(self) -> Database | None:
        return self._database if self._clock() >= self._resume_at else None

    @contextmanager
    def _spared(self) -> Iterator[None]:
        """The cache's failure is logged and costs its use for a while; nobody's work fails by it."""
        try:
            yield
        except (FootnoteError, sa.exc.SQLAlchemyError) as exc:
            self._resume_at = self._clock() + PAUSE_SECONDS
            cure = (
                f"texts are embedded again meanwhile; if it lasts, stop the workers and remove {FILE} or the table embeddings"
            )
            log.warning("embedding_cache_failed", error=str(exc).splitlines()[0], detail=cure)


def key_of(fingerprint: str, text: str) -> bytes:
    """SHA-256 over all that makes the vector: the text with its context, and the model with its prefix and precision."""
    return hashlib.sha256(f"{fingerprint}\0{text}".encode("utf-8", "surrogatepass")).digest()


def _vector(data: bytes, dimension: int) -> Vector | None:
    """None for what cannot be what was kept."""
    vector = np.frombuffer(data, "<f4") if len(data) == 4 * dimension else np.zeros(1, "<f4")
    return vector if abs(float(np.linalg.norm(vector)) - 1) < 1e-3 else None


def _insert(database: Database, table: sa.Table) -> Any:
    return sqlite.insert(table) if database.is_sqlite else postgresql.insert(table)


async def _open(catalog: Database, file: Path) -> Database | None:
    """The database with its tables in it; None if it cannot be had. A file that is damaged is made anew."""
    for last in (False, True):
        database = beside(file) if catalog.is_sqlite else catalog
        try:
            async with database.writing() as connection:
                await database.lock(connection, "embedding cache")
                await connection.run_sync(_tables.create_all)
            return database
        except (FootnoteError, sa.exc.SQLAlchemyError) as exc:
            log.warning("embedding_cache_not_opened", error=str(exc).splitlines()[0])
            if database is not catalog:
                await database.close()
            if last or database is catalog or isinstance(exc, FootnoteError):
                return None
            for part in file.parent.glob(f"{file.name}*"):
                part.unlink(missing_ok=True)
    return None
