"""LanceDB, the embedded store: one table per index in a folder, shared by any number of processes.

Every change of a table is one commit, and every read opens the newest: a reader in another process sees a document's old
chunks or its new ones, at once. Writers of one table take turns by a lock file, because two commits that each insert a new
document under the same id do not conflict for LanceDB, and would leave both.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import random
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from datetime import timedelta
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from retrieval.digest import Digest
from retrieval.errors import ConfigurationError, FootnoteError, StorageFull, StoreRejected, StoreUnavailable
from retrieval.stores.filters import resolve
from retrieval.stores.lance_filter import in_list, literal, to_sql
from retrieval.stores.lance_import import ColumnOrdering, lancedb
from retrieval.stores.lance_resident import SETTLED, Resident, Residents
from retrieval.stores.lance_table import (
    CHUNK_COLUMNS,
    SEARCHED,
    any_of_terms,
    candidates,
    chunks_of,
    create_table,
    dimension_of,
    ensure_indexes,
    is_conflict,
    limited,
    replace_documents,
    retried,
    sound_rows,
    vectors_of,
)
from retrieval.stores.rows import check_dimension, check_vector, check_vectors, cosines, place_name
from retrieval.types import NO_CANDIDATES, Candidates, Chunk, EmbeddedChunk, Filter, Holding, Index, Vector

T = TypeVar("T")

log = logging.getLogger(__name__)

LOCK_PATIENCE = 120.0
"""Seconds that a writer waits for its turn."""
TIDY_COMMITS = 32
"""Commits after which the table's small files are merged at once."""
TIDY_DELAY = 3.0
"""Seconds after the last commit when they are merged anyway."""
HELD_UP_ROWS = 100_000
"""A merge of so many rows at most may hold up the writers who keep it from ending: the index of a million takes minutes."""
KEEP_VERSIONS = timedelta(minutes=10)
"""How long a reader may go on with the version that it opened."""
VECTOR_INDEX_ROWS = 20_000
"""Rows from which a table gets a vector index: below, a flat scan is exact and as fast."""
INDEX_CACHE_BYTES = 2 * 1024 * 1024 * 1024
"""At most, and taken only by large indexes: that of a million vectors takes 0.6 GB. Where it does not fit, each search reads it
again, in 130 to 450 ms instead of 22."""
METADATA_CACHE_BYTES = 16 * 1024 * 1024
"""LanceDB would keep 1 GiB of what it read of old versions, and counts a fourth of what that takes: workers grew by 0.2 MB a
commit."""
ROWS_AT_ONCE = 4096
"""Of a walk through a whole table."""
REMOVE_TRIES, REMOVE_PAUSE = 10, 0.1
PROBES = 20
REFINE = 3
EF = 200


async def open_lance(
    url: str,
    *,
    api_key: str | None = None,  # noqa: ARG001 - one signature for all stores
    vector_index_rows: int = VECTOR_INDEX_ROWS,
    settled: float = SETTLED,
) -> LanceStore:
    """Open the folder of `lance:/folder` (made if missing). `StoreUnavailable` if it cannot be written."""
    path = url.partition(":")[2]
    path = path.removeprefix("//") if path.startswith("//") else path
    if not path:
        raise ConfigurationError(f"{url!r} names no folder; write lance:/path/to/folder")
    folder = Path(path).expanduser().absolute()  # noqa: ASYNC240 - once, at the start
    with translated(folder):
        folder.mkdir(parents=True, exist_ok=True)
        caches = lancedb.Session(index_cache_size_bytes=INDEX_CACHE_BYTES, metadata_cache_size_bytes=METADATA_CACHE_BYTES)
        database = await lancedb.connect_async(str(folder), read_consistency_interval=timedelta(0), session=caches)
    return LanceStore(folder, database, vector_index_rows, settled)


@contextmanager
def translated(folder: Path) -> Iterator[None]:
    """Ours from LanceDB's: it has no tree of its own, only `ValueError` for what it refuses and `RuntimeError` for the rest."""
    try:
        yield
    except FootnoteError:
        raise
    except ValueError as exc:
        raise StoreRejected(f"LanceDB at {folder} refused the request: {exc}") from exc
    except (RuntimeError, OSError) as exc:
        if f"os error {errno.ENOSPC}" in str(exc) or getattr(exc, "errno", None) == errno.ENOSPC:
            raise StorageFull(f"no space left for LanceDB at {folder}; free some, then retry") from exc
        cure = "check that the folder exists and is writable"
        raise StoreUnavailable(f"LanceDB cannot read or write {folder}: {exc}; {cure}") from exc


class LanceStore:
    """A `VectorStore` on a local folder."""

    def __init__(
        self, folder: Path, database: Any, vector_index_rows: int = VECTOR_INDEX_ROWS, settled: float = SETTLED
    ) -> None:
        self.folder = folder
        self._vector_index_rows = vector_index_rows
        self._database = database
        self._commits: dict[str, int] = {}
        self._quiet_at: dict[str, float] = {}
        self._busy: dict[str, asyncio.Event] = {}
        self._tidying: dict[str, asyncio.Task[None]] = {}
        self._residents = Residents(folder, self._open, settled=settled)

    async def create(self, index: Index) -> None:
        name = place_name(index)
        with translated(self.folder):
            table = None
            with suppress(RuntimeError, ValueError):  # another is about to make it
                table = await self._open(name)  # mostly it is there, and nobody need wait for the writers of it
            if table is None:
                async with self._turn(name):
                    table = await self._open(name) or await create_table(self._database, name, index.dimension)
            check_dimension(index, await dimension_of(table))

    async def drop(self, index: Index) -> None:
        name = place_name(index)
        await self._stop_tidying(name)
        with translated(self.folder):
            async with self._turn(name):
                await self._remove(name)
            for each in (name, f"{name}.tidy"):
                self._lock_file(each).unlink(missing_ok=True)

    async def publish(self, index: Index) -> None:
        """Nothing to tell: the catalog knows which index is live, and LanceDB has no aliases."""

    async def replace(self, index: Index, documents: Mapping[str, Sequence[EmbeddedChunk]]) -> None:
        check_vectors(index, documents)
        if not documents:
            return
        name = place_name(index)
        with translated(self.folder):
            async with self._turn(name):
                table = await self._open(name)
                if table is None and not any(documents.values()):
                    return
                if table is None:
                    raise StoreRejected(f"the index {name} does not exist; create it before writing to it")
                check_dimension(index, await dimension_of(table))
                await replace_documents(table, documents)
        self._tidy_soon(name)

    async def nearest(self, index: Index, vector: Vector, limit: int, filter: Filter | None = None) -> Candidates:
        check_vector(index, vector)
        if resident := await self._resident(index, limit, filter):
            return resident.nearest(vector, limit)

        async def search(table: Any, where: str | None) -> Candidates:
            query = table.query().select([*SEARCHED, "_distance"]).nearest_to(vector).column("vector").distance_type("cosine")
            query = query.nprobes(PROBES).refine_factor(REFINE).ef(max(EF, REFINE * limit))
            rows = await limited(query, where, limit)
            return candidates(rows, cosines(vectors_of(rows), vector), limit)

        return await self._search(index, limit, filter, search)

    async def keyword(
        self,
        index: Index,
        terms: Sequence[str],
        limit: int,
        filter: Filter | None = None,
    ) -> Candidates:
        if not terms:
            return NO_CANDIDATES
        if resident := await self._resident(index, limit, filter):
            return resident.keyword(terms, limit)

        async def search(table: Any, where: str | None) -> Candidates:
            query = table.query().select([*SEARCHED, "_score"]).nearest_to_text(any_of_terms(terms))
            rows = await limited(query, where, limit)
            return candidates(rows, rows["_score"].to_numpy().astype(np.float64), limit)

        return await self._search(index, limit, filter, search)

    async def scan(
        self, index: Index, *, document_id: str | None = None, after: str | None = None, limit: int = 1000
    ) -> list[Chunk]:
        conditions = [] if document_id is None else [f"document_id = {literal(document_id)}"]
        conditions += [] if after is None else [f"id > {literal(after)}"]

        async def page(table: Any) -> list[Chunk]:
            query = table.query().select(list(CHUNK_COLUMNS)).order_by([ColumnOrdering(column_name="id")])
            return chunks_of(await limited(query, " AND ".join(conditions), limit))

        return await self._read(index, page, []) if limit > 0 else []

    async def count(self, index: Index, document_id: str | None = None) -> int:
        where = None if document_id is None else f"document_id = {literal(document_id)}"
        return await self._read(index, lambda table: table.count_rows(where), 0)

    async def size(self, index: Index) -> int:
        return await self.count(index)

    async def documents(self, index: Index) -> AsyncIterator[set[str]]:
        after = ""

        async def page(table: Any) -> list[str]:
            query = table.query().select(["document_id"]).order_by([ColumnOrdering(column_name="document_id")])
            rows = await limited(query, f"document_id > {literal(after)}" if after else None, ROWS_AT_ONCE)
            return list(rows["document_id"].to_pylist())

        while found := await self._read(index, page, list[str]()):
            yield set(found)
            after = found[-1]

    async def holdings(self, index: Index, document_ids: Sequence[str]) -> dict[str, Holding]:
        counts = dict.fromkeys(document_ids, 0)
        digests = {each: Digest() for each in document_ids}

        async def read(table: Any) -> None:
            batches = await table.query().where(in_list("document_id", document_ids)).to_batches(max_batch_length=ROWS_AT_ONCE)
            async for batch in batches:
                await asyncio.to_thread(add, pa.Table.from_batches([batch]))

        def add(rows: Any) -> None:
            for document_id in rows["document_id"].to_pylist():
                counts[document_id] += 1
            for row in sound_rows(rows):
                digests[row.chunk.document_id].add(row)

        if document_ids:
            await self._read(index, read, None)
        return {each: Holding(counts[each], digest.count, digest.hexdigest()) for each, digest in digests.items()}

    async def clean(self, index: Index, document_ids: Sequence[str]) -> None:
        """Nothing is ever left over: a commit is all or nothing."""

    async def ping(self) -> str:
        with translated(self.folder):
            if not os.access(self.folder, os.R_OK | os.W_OK | os.X_OK):
                raise StoreUnavailable(f"LanceDB's folder {self.folder} is missing or not writable; create it or set another")
        return _library()

    async def problems(self) -> list[str]:
        return []

    async def close(self) -> None:
        await self._residents.close()
        for name in list(self._tidying):
            await self._stop_tidying(name)
        self._database.close()

    async def tidy(self, index: Index) -> None:
        """Merge small files, bring the indexes up to date, and build the vector index once the table is large.

        Runs by itself in the background after writes; call it to wait for that.
        """
        with translated(self.folder):
            await self._tidy(place_name(index))

    async def _resident(self, index: Index, limit: int, filter_: Filter | None) -> Resident | None:
        """The index in memory, where that is its newest version and a search needs no more."""
        return await self._residents.get(place_name(index)) if filter_ is None and limit > 0 else None

    async def _search(
        self,
        index: Index,
        limit: int,
        filter_: Filter | None,
        search: Callable[[Any, str | None], Awaitable[Candidates]],
    ) -> Candidates:
        async def work(table: Any) -> Candidates:
            # A filter asks the columns that exist in the very version that is searched, so no other writer can be missed.
            node = True if filter_ is None else resolve(filter_, (await table.schema()).names)
            if isinstance(node, bool):
                return await search(table, None) if node else NO_CANDIDATES
            return await search(table, to_sql(node))

        return await self._read(index, work, NO_CANDIDATES) if limit > 0 else NO_CANDIDATES

    async def _read(self, index: Index, work: Callable[[Any], Awaitable[T]], empty: T) -> T:
        name = place_name(index)
        with translated(self.folder):
            try:
                table = await self._open(name)
                return empty if table is None else await work(table)
            except (RuntimeError, ValueError):
                if self._exists(name):
                    raise
                return empty  # dropped while we read

    async def _open(self, name: str) -> Any | None:
        """The newest version of a table; opened for each call (0.3 ms), for a kept handle would outlive a drop."""
        if not self._exists(name):
            return None
        return await self._database.open_table(name)

    def _exists(self, name: str) -> bool:
        """Whether the table has a version. A disk that was full when it was made leaves folders without any."""
        try:
            with os.scandir(self.folder / f"{name}.lance" / "_versions") as files:
                return any(file.name.endswith(".manifest") for file in files)
        except (FileNotFoundError, NotADirectoryError):
            return False

    async def _remove(self, name: str) -> None:
        """Also what never came to be a table, and what a process that tidies it puts back meanwhile."""
        folder = self.folder / f"{name}.lance"
        for _ in range(REMOVE_TRIES):
            with suppress(RuntimeError, ValueError):  # whatever it is, the folder tells whether it is gone
                if await self._open(name) is not None:
                    await self._database.drop_table(name)
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            if not folder.exists():
                return
            await asyncio.sleep(REMOVE_PAUSE)
        raise StoreUnavailable(f"{folder} cannot be removed; check that it is writable, and retry")

    def _lock_file(self, name: str) -> Path:
        return self.folder / f"{name}.lock"

    @asynccontextmanager
    async def _turn(self, name: str) -> AsyncIterator[None]:
        """The right to write a table, among all tasks and processes; the kernel takes it back from one that dies."""
        deadline = time.monotonic() + LOCK_PATIENCE
        descriptor = os.open(self._lock_file(name), os.O_CREAT | os.O_RDWR, 0o644)
        try:
            while not locked(descriptor):
                if time.monotonic() > deadline:
                    raise StoreUnavailable(f"other processes have kept {name} in {self.folder} busy too long; retry")
                await asyncio.sleep(random.uniform(0.002, 0.02))  # noqa: S311 - spreads the waiting writers
            yield
        finally:
            os.close(descriptor)

    def _tidy_soon(self, name: str) -> None:
        self._commits[name] = self._commits.get(name, 0) + 1
        self._quiet_at[name] = time.monotonic() + TIDY_DELAY
        busy = self._busy.setdefault(name, asyncio.Event())
        if self._commits[name] >= TIDY_COMMITS:
            busy.set()
        task = self._tidying.get(name)
        if task is None or task.done():
            self._tidying[name] = asyncio.create_task(self._tidy_later(name, busy), name=f"tidy {name}")

    async def _tidy_later(self, name: str, busy: asyncio.Event) -> None:
        while self._commits.get(name):
            while not busy.is_set() and (left := self._quiet_at[name] - time.monotonic()) > 0:
                with suppress(TimeoutError):
                    await asyncio.wait_for(busy.wait(), left)
            busy.clear()
            self._commits[name] = 0
            try:
                with translated(self.folder):
                    await self._tidy(name)
            except FootnoteError:
                # Only speed is lost, and the next write tries again.
                log.warning("could not tidy the LanceDB table %s", name, exc_info=True)

    async def _tidy(self, name: str) -> None:
        async with self._turn(f"{name}.tidy"):  # one process at a time builds the indexes
            table = await self._open(name)
            if table is None:
                return
            await retried(lambda: ensure_indexes(table, self._vector_index_rows))
            try:
                await retried(lambda: table.optimize(cleanup_older_than=KEEP_VERSIONS), attempts=2)
            except RuntimeError as exc:
                if not is_conflict(exc):
                    raise
                if await table.count_rows() > HELD_UP_ROWS:
                    return  # after the next commits, or when all is quiet
                async with self._turn(name):  # writers kept getting in first
                    await table.optimize(cleanup_older_than=KEEP_VERSIONS)

    async def _stop_tidying(self, name: str) -> None:
        self._commits.pop(name, None)
        self._quiet_at.pop(name, None)
        self._busy.pop(name, None)
        task = self._tidying.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.wait([task])


@cache
def _library() -> str:
    return f"LanceDB {version('lancedb')}"  # looked up on the disk, and asked for before each job


def locked(descriptor: int) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
