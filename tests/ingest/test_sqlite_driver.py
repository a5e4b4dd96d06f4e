"""SQLite behind one hop a statement, by way of SQLAlchemy as the catalog uses it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import sqlalchemy as sa

from ingest.database import Database, beside, open_database
from retrieval.errors import CatalogUnavailable

NOTES = sa.Table(
    "notes", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("text", sa.String, unique=True)
)


@pytest.fixture
async def database(tmp_path: Path):
    opened = await open_database(f"sqlite+aiosqlite:///{tmp_path}/catalog.sqlite")
    async with opened.writing() as connection:
        await connection.run_sync(NOTES.metadata.create_all)
    yield opened
    await opened.close()


async def write(database: Database, *texts: str) -> list[int]:
    async with database.writing() as connection:
        rows = await connection.execute(sa.insert(NOTES).values([{"text": text} for text in texts]).returning(NOTES.c.id))
        return list(rows.scalars())


async def test_rows_counts_and_ids_come_back(database):
    assert await write(database, "a", "b", "c") == [1, 2, 3]
    async with database.writing() as connection:
        assert (await connection.execute(sa.insert(NOTES).values(text="d"))).inserted_primary_key == (4,)
        await connection.execute(sa.insert(NOTES), [{"text": "e"}, {"text": "f"}])
        assert (await connection.execute(sa.update(NOTES).where(NOTES.c.id > 2).values(text=NOTES.c.text + "!"))).rowcount == 4
        assert (await connection.execute(sa.delete(NOTES).where(NOTES.c.id == 99))).rowcount == 0
    async with database.reading() as connection:
        found = await connection.execute(sa.select(NOTES).order_by(NOTES.c.id))
        assert [tuple(row) for row in found] == [(1, "a"), (2, "b"), (3, "c!"), (4, "d!"), (5, "e!"), (6, "f!")]
    assert await database.scalars(sa.select(NOTES.c.text).where(NOTES.c.id > 99)) == []


async def test_a_refused_statement_undoes_its_transaction_and_the_connection_goes_on(database):
    with pytest.raises(sa.exc.IntegrityError):
        await write(database, "a", "b", "a")
    assert await database.scalars(sa.select(sa.func.count()).select_from(NOTES)) == [0]
    assert await write(database, "a") == [1]


async def test_writers_of_one_process_take_turns(database):
    async def add(text: str) -> None:
        async with database.writing() as connection:
            [count] = (await connection.execute(sa.select(sa.func.count()).select_from(NOTES))).scalars()
            await asyncio.sleep(0.001)
            await connection.execute(sa.insert(NOTES).values(id=count + 1, text=text))

    await asyncio.gather(*(add(f"text {n}") for n in range(30)))
    assert await database.scalars(sa.select(NOTES.c.id).order_by(NOTES.c.id)) == list(range(1, 31))


async def test_a_writer_that_is_cancelled_leaves_nothing_and_no_lock(database):
    writing = asyncio.Event()

    async def write_for_ever() -> None:
        async with database.writing() as connection:
            await connection.execute(sa.insert(NOTES).values(text="gone"))
            writing.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(write_for_ever())
    await writing.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await write(database, "stays") == [1]


async def test_who_stands_in_line_for_too_long_hears_so(tmp_path):
    opened = beside(tmp_path / "notes.sqlite")
    impatient = Database(opened.engine, opened.announce, patience=0.2)
    async with impatient.writing():
        with pytest.raises(CatalogUnavailable, match="TimeoutError"):
            await write(impatient, "a")
    async with opened.writing() as connection:
        await connection.run_sync(NOTES.metadata.create_all)
    assert await write(opened, "a") == [1]
    await opened.close()
