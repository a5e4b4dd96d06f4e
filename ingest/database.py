"""One async SQL database, SQLite or PostgreSQL, with two kinds of transactions: `reading` and `writing`."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ingest import sqlite_driver
from ingest.schema import migrate
from retrieval.errors import CatalogUnavailable, ConfigurationError, InvalidInput, StorageFull

Clock = Callable[[], float]
Announce = Callable[[str, Sequence[str]], None]
"""Told of the jobs that were written to a queue, once they are committed; returns at once and never fails."""
_QUEUED = "footnote_queued"
PASSING = ("08", "40", "53", "57")
"""Classes of PostgreSQL's error codes that may pass: connection lost, rolled back for another, no resources, going down."""

READERS = 8
"""Threads that read one statement each."""
POOL = 16
"""Connections to SQLite that are kept. None beyond: each would cost a thread and four pragmas, for a read of a millisecond."""


_ids, _last = threading.Lock(), [0, 0]


def new_id(prefix: str, *, at: float | None = None) -> str:
    """An opaque id that sorts by time of creation, so that a listing can page by it: 48 bits of time, 48 random ones.

    Those that one process makes in the same millisecond sort as they were made.
    """
    if at is not None:
        return f"{prefix}_{int(1000 * at):012x}{secrets.token_hex(6)}"
    now = int(1000 * time.time())
    with _ids:
        number = secrets.randbits(47) if now != _last[0] else _last[1] + 1 + secrets.randbits(24)
        _last[:] = now, number
    return f"{prefix}_{now:012x}{number:012x}"


def note_queued(connection: AsyncConnection, queue: str, job_ids: Sequence[str]) -> None:
    """Have it announced that these jobs can be claimed, once the transaction is committed."""
    connection.info[_QUEUED].setdefault(queue, []).extend(job_ids)


class Database:
    """Transactions on the catalog's database; everything that a driver raises leaves here as ours."""

    def __init__(self, engine: AsyncEngine, announce: Announce, *, patience: float = 30.0) -> None:
        """`patience`: seconds that a writer of SQLite stands in line."""
        self.engine = engine
        self.announce = announce
        self.is_sqlite = engine.dialect.name == "sqlite"
        self._direct = _direct_engine(engine.url) if self.is_sqlite else None
        # SQLite has one writer at a time, and who finds it busy sleeps: those of one process rather stand in line.
        self._line = asyncio.Lock()
        self._patience = patience
        self._threads = ThreadPoolExecutor(READERS, thread_name_prefix="catalog")  # started when first needed

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        with _translated():
            async with self.engine.connect() as connection:
                yield connection

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that commits at the end of the block, or rolls back if it raises."""
        with _translated():
            async with self._turn(), self.engine.connect() as connection:
                writing = await connection.execution_options(footnote_write=True)
                queued = writing.info[_QUEUED] = dict[str, list[str]]()
                async with writing.begin():
                    yield writing
        for queue, job_ids in queued.items():
            self.announce(queue, job_ids)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        if not self.is_sqlite:
            yield
            return
        async with asyncio.timeout(self._patience):
            await self._line.acquire()
        try:
            yield
        finally:
            self._line.release()

    async def rows(self, query: sa.Executable, values: Mapping[str, Any] | None = None) -> Sequence[sa.RowMapping]:
        """All rows of one statement that reads.

        On SQLite by one hop to a thread and back, at a fifth of what a transaction through the asynchronous driver costs.
        """
        if self._direct is None:
            async with self.reading() as connection:
                return (await connection.execute(query, values)).mappings().all()
        with _translated():
            return await asyncio.get_running_loop().run_in_executor(self._threads, _rows, self._direct, query, values)

    async def scalars(self, query: sa.Executable, values: Mapping[str, Any] | None = None) -> list[Any]:
        """The first value of each of its rows."""
        return [next(iter(row.values())) for row in await self.rows(query, values)]

    async def first(self, query: sa.Executable, values: Mapping[str, Any] | None = None) -> sa.RowMapping | None:
        """The first of its rows, which should be few."""
        return next(iter(await self.rows(query, values)), None)

    async def lock(self, connection: AsyncConnection, name: str) -> None:
        """Hold off other writers of `name` until this transaction ends. SQLite's writers exclude each other anyway."""
        if not self.is_sqlite:
            await connection.execute(sa.text("SELECT pg_advisory_xact_lock(hashtextextended(:name, 0))"), {"name": name})

    async def close(self) -> None:
        await self.engine.dispose()
        await asyncio.to_thread(self._threads.shutdown)
        if self._direct is not None:
            self._direct.dispose()


def _rows(engine: sa.Engine, query: sa.Executable, values: Mapping[str, Any] | None) -> Sequence[sa.RowMapping]:
    with engine.connect() as connection:
        return connection.execute(query, values).mappings().all()


def _direct_engine(url: sa.URL) -> sa.Engine:
    """The same file without the asynchronous driver; its statements are read-only and each a transaction of its own."""
    engine = sa.create_engine(
        url.set(drivername="sqlite"),
        connect_args={"timeout": 30, "check_same_thread": False},
        isolation_level="AUTOCOMMIT",
        pool_size=READERS,
        max_overflow=0,
        pool_timeout=60,
        pool_reset_on_return=None,
    )
    sa.event.listen(engine, "connect", _forbid_writing)
    return engine


def _forbid_writing(connection: Any, _record: object) -> None:
    connection.execute("PRAGMA query_only=ON")


def _tell_nobody(_queue: str, _job_ids: Sequence[str]) -> None:
    """Those who look by themselves find the jobs."""


async def open_database(url: str, announce: Announce = _tell_nobody) -> Database:
    """Connect and migrate. Raises `ConfigurationError` for a malformed URL, `CatalogUnavailable` if nothing answers."""
    try:
        parsed = make_url(url)
        backend = parsed.get_backend_name()
    except sa.exc.ArgumentError as exc:
        raise ConfigurationError(
            "FOOTNOTE_CATALOG_URL is not a database URL, for example postgresql+asyncpg://user:password@host/database"
        ) from exc
    if backend not in {"sqlite", "postgresql"}:
        raise ConfigurationError(f"FOOTNOTE_CATALOG_URL names {backend!r}; known: sqlite, postgresql")
    driver = "sqlite+aiosqlite" if backend == "sqlite" else "postgresql+asyncpg"
    with _translated():
        database = Database(_engine(parsed.set(drivername=driver)), announce)
        try:
            await migrate(database.engine)
        except BaseException:
            await database.close()
            raise
    return database


def beside(file: Path) -> Database:
    """A SQLite file of its own, for what nobody would miss: it waits for no lock for long, and a power cut may cost the end."""
    database = Database(_engine(sa.URL.create("sqlite+aiosqlite", database=str(file))), _tell_nobody, patience=5.0)
    sa.event.listen(database.engine.sync_engine, "connect", _prepare_dispensable)
    return database


def _engine(url: sa.URL) -> AsyncEngine:
    if url.get_backend_name() == "postgresql":
        return create_async_engine(url, pool_size=10, max_overflow=20, pool_pre_ping=True)
    if url.database:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    options = {"timeout": 30, "async_creator_fn": sqlite_driver.connect}
    engine = create_async_engine(url, connect_args=options, pool_size=POOL, max_overflow=0, pool_timeout=60)
    sa.event.listen(engine.sync_engine, "connect", _prepare_sqlite)
    sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _prepare_sqlite(connection: Any, _record: object) -> None:
    connection.isolation_level = None  # the driver's own BEGIN comes too late: we say it ourselves
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "busy_timeout=30000", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _prepare_dispensable(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    for pragma in ("busy_timeout=5000", "synchronous=NORMAL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    """Writers take the lock at once: a reader that becomes a writer half-way cannot wait its turn, it fails."""
    immediate = connection.get_execution_options().get("footnote_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except sa.exc.IntegrityError:
        raise  # a lost race: the caller decides
    except (sa.exc.OperationalError, sa.exc.InterfaceError, sa.exc.InternalError, sa.exc.TimeoutError, OSError) as exc:
        if "disk is full" in str(exc):
            raise StorageFull("the disk that holds the catalog is full: free some room") from exc
        raise _unavailable(exc) from exc
    except Exception as exc:
        # PostgreSQL's own words: SQLAlchemy wraps what it says to a statement, and not what it says to a connection.
        state = str(getattr(getattr(exc, "orig", exc), "sqlstate", None) or "")
        if state == "53100":
            raise StorageFull("the disk that holds the catalog is full: free some room") from exc
        if state.startswith(PASSING):
            raise _unavailable(exc) from exc
        if isinstance(exc, sa.exc.DBAPIError) and "0x00" in str(exc):
            raise InvalidInput("a NUL byte is in a value, and PostgreSQL keeps none") from exc
        raise


def _unavailable(exc: Exception) -> CatalogUnavailable:
    reason = type(getattr(exc, "orig", None) or exc).__name__
    return CatalogUnavailable(f"the catalog does not answer; check FOOTNOTE_CATALOG_URL and that its server runs ({reason})")
