"""Catalog databases for tests: SQLite always; PostgreSQL where FOOTNOTE_TEST_POSTGRES_URL names a server."""

from __future__ import annotations

import os
import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import make_url
from sqlalchemy.ext.asyncio import create_async_engine

POSTGRES = "FOOTNOTE_TEST_POSTGRES_URL"


async def urls(kind: str, folder: Path) -> AsyncIterator[str]:
    """A URL of an empty database of this kind, removed afterwards."""
    if kind == "sqlite":
        yield f"sqlite+aiosqlite:///{folder / 'catalog.sqlite'}"
        return
    if POSTGRES not in os.environ:
        if os.environ.get("CI"):
            pytest.fail(f"no PostgreSQL: CI must set {POSTGRES}")
        pytest.skip(f"no PostgreSQL: set {POSTGRES} to a server where databases can be created")
    server = make_url(os.environ[POSTGRES]).set(drivername="postgresql+asyncpg")
    name = f"footnote_{secrets.token_hex(6)}"
    engine = create_async_engine(server, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(sa.text(f"CREATE DATABASE {name}"))
    yield server.set(database=name).render_as_string(hide_password=False)
    async with engine.connect() as connection:
        await connection.execute(sa.text(f"DROP DATABASE {name} WITH (FORCE)"))
    await engine.dispose()
