"""aiosqlite with one hop to its thread for each statement, where its own cursor takes four.

Most statements take SQLite some microseconds, and a hop there and back takes a busy event loop milliseconds. This reaches
into aiosqlite, as SQLAlchemy's dialect does: hence the bounds on its version.
"""

# ruff: noqa: SLF001

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Self

import aiosqlite


def connect(file: str, **options: Any) -> OneHop:
    """For SQLAlchemy's `async_creator_fn`: to be awaited once."""
    connection = OneHop(lambda: sqlite3.connect(file, **options), iter_chunk_size=64)
    connection._thread.daemon = True  # as SQLAlchemy has it
    return connection


class OneHop(aiosqlite.Connection):
    def cursor(self) -> Cursor:  # type: ignore[override]
        return Cursor(self)


class Cursor:
    """As much of aiosqlite's as SQLAlchemy asks for. The rows come with the statement."""

    def __init__(self, connection: OneHop) -> None:
        self._connection = connection
        self._rows: list[Any] = []
        self.description: Any = None
        self.rowcount = -1
        self.lastrowid: int | None = None
        self.arraysize = 1

    async def __aenter__(self) -> Self:
        return self

    async def execute(self, sql: str, parameters: Any = ()) -> None:
        await self._connection._execute(self._run, sqlite3.Cursor.execute, sql, parameters)  # type: ignore[no-untyped-call]

    async def executemany(self, sql: str, parameters: Sequence[Any]) -> None:
        await self._connection._execute(self._run, sqlite3.Cursor.executemany, sql, parameters)  # type: ignore[no-untyped-call]

    async def fetchall(self) -> list[Any]:
        return self._rows

    async def close(self) -> None:
        """It was closed with its statement."""

    def _run(self, method: Any, sql: str, parameters: Any) -> None:
        cursor = self._connection._conn.cursor()
        try:
            method(cursor, sql, parameters)
            self._rows = cursor.fetchall() if cursor.description else []
            self.description, self.rowcount, self.lastrowid = cursor.description, cursor.rowcount, cursor.lastrowid
        finally:
            cursor.close()
