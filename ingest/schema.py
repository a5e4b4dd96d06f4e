"""The catalog's tables, and their migration under a lock.

    collections ──< documents ──< entries >── generations
                        ├──< jobs
                        ├──< writes
                        └──< documents that came out of it

An entry is the ledger line of one document in one index generation: which version of it the store should hold, how many chunks,
and their digest. `collections.live_generation` is the switch that readers follow.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine

HEAD = "0007"
"""The newest migration; a test holds it to the scripts."""

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

collections = sa.Table(
    "collections",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("live_generation", sa.String(40)),
    sa.Column("embedder", sa.Text),  # set by `reindex --embedder`; null follows the setting
    sa.Column("chunk_size", sa.Integer, nullable=False),
    sa.Column("chunk_overlap", sa.Integer, nullable=False),
    sa.Column("chunk_context", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("max_documents", sa.Integer, nullable=False, server_default="0"),  # 0 is no limit, here and in the next
    sa.Column("max_bytes", sa.BigInteger, nullable=False, server_default="0"),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"),  # grows with every write into its live index
)

generations = sa.Table(
    "generations",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("collection", sa.String(64), nullable=False, index=True),
    sa.Column("state", sa.String(10), nullable=False),  # building, live, retired
    sa.Column("embedder", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.Text, nullable=False),
    sa.Column("schema", sa.String(40), nullable=False),
    sa.Column("dimension", sa.Integer, nullable=False),
    sa.Column("chunk_size", sa.Integer, nullable=False),
    sa.Column("chunk_overlap", sa.Integer, nullable=False),
    sa.Column("chunk_context", sa.Boolean, nullable=False, server_default=sa.true()),
    sa.Column("languages", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("retired_at", sa.Float),
    sa.Column("compared_at", sa.Float),  # when all of it was last compared with what the store holds
)

documents = sa.Table(
    "documents",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("collection", sa.String(64), nullable=False),
    # The name while the document lives, its id once it is being deleted: a new upload of the name is then a new document.
    # A part's key is of another form (`records.part_key`), so that no upload can take its place.
    sa.Column("key", sa.Text, nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False, index=True),
    sa.Column("size", sa.BigInteger, nullable=False),
    sa.Column("media_type", sa.Text, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("status", sa.String(20), nullable=False),
    sa.Column("error", sa.JSON),
    sa.Column("receipt", sa.JSON),
    sa.Column("job_id", sa.String(40), nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("updated_at", sa.Float, nullable=False),
    sa.Column("parent_id", sa.String(40), index=True),  # the document that this one came out of, as an attachment does
    sa.UniqueConstraint("collection", "key"),
    sa.Index(None, "collection", "id"),
    sa.Index("ix_documents_usage", "collection", "status", "size"),  # a quota is counted from this alone
    sa.Index("ix_documents_status", "status", "id"),  # this and the rest: a page of a listing is one stretch of an index
    sa.Index("ix_documents_collection_status", "collection", "status", "id"),
    sa.Index("ix_documents_name", "name", "id"),
)

entries = sa.Table(
    "entries",
    metadata,
    sa.Column("document_id", sa.String(40), primary_key=True),
    sa.Column("generation_id", sa.String(40), primary_key=True, index=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sha256", sa.String(64), nullable=False, index=True),
    sa.Column("media_type", sa.Text, nullable=False),
    sa.Column("text_key", sa.String(64), nullable=False, index=True),
    sa.Column("chunks", sa.Integer, nullable=False),
    sa.Column("indexed_at", sa.Float, nullable=False),
    sa.Column("digest", sa.String(32)),  # `retrieval.digest` of the chunks; null until the first pass after migration 0004
)

jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("kind", sa.String(10), nullable=False),  # ingest, delete, reindex, and rebuild: one document of a reindex
    sa.Column("queue", sa.String(12), nullable=False),  # delete, ingest, maintenance, reindex
    sa.Column("collection", sa.String(64), nullable=False),
    sa.Column("document_id", sa.String(40), index=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("generation_id", sa.String(40)),  # what a reindex builds
    sa.Column("state", sa.String(10), nullable=False),
    sa.Column("stage", sa.String(20), nullable=False),
    sa.Column("done", sa.Integer, nullable=False),
    sa.Column("total", sa.Integer),
    sa.Column("rate", sa.Float),  # of `done` in a second, lately
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("run_after", sa.Float, nullable=False),  # 0 once the job is due, so that what is due is one stretch of an index
    sa.Column("worker", sa.Text),
    sa.Column("beats", sa.Integer, nullable=False, server_default="0"),  # one more with each claim and each renewal
    sa.Column("error", sa.JSON),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("finished_at", sa.Float, index=True),
    sa.Index("ix_jobs_due", "state", "queue", "run_after", "collection", "id"),
    sa.Index("ix_jobs_state", "state", "id"),
    sa.Index("ix_jobs_collection", "collection", "id"),
    sa.Index("ix_jobs_collection_state", "collection", "state", "id"),
    # Two jobs of one document never run at once, whatever the claimers do.
    sa.Index(
        "uq_jobs_running_document",
        "document_id",
        unique=True,
        sqlite_where=sa.text("state = 'running'"),
        postgresql_where=sa.text("state = 'running'"),
    ),
)

metadata_keys = sa.Table(
    "metadata_keys",
    metadata,
    sa.Column("collection", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("type", sa.String(10), primary_key=True),
)

passes = sa.Table(
    "passes",
    metadata,
    sa.Column("name", sa.String(20), primary_key=True),  # indexes, files
    sa.Column("worker", sa.Text),  # who makes it, until `lease_until`
    sa.Column("lease_until", sa.Float, nullable=False),
    sa.Column("finished_at", sa.Float, nullable=False),
    sa.Column("checked", sa.BigInteger, nullable=False),  # this and the rest: of all passes together
    sa.Column("found", sa.BigInteger, nullable=False),
    sa.Column("mended", sa.BigInteger, nullable=False),
)

requests = sa.Table(
    "requests",
    metadata,
    sa.Column("key", sa.String(200), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("response", sa.JSON, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)

# Which documents a consistency token covers. What is settled needs no row: a token without rows is one of long ago.
writes = sa.Table(
    "writes",
    metadata,
    sa.Column("token", sa.String(40), primary_key=True),
    sa.Column("document_id", sa.String(40), primary_key=True),
)

# What is still to be told to the webhook, written in the transaction that it tells of.
notices = sa.Table(
    "notices",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("body", sa.Text, nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("run_after", sa.Float, index=True),  # null once it was given up
    sa.Column("created_at", sa.Float, nullable=False),
)


async def migrate(engine: AsyncEngine) -> None:
    """Bring the database to `HEAD`; safe to call from any number of processes at once."""
    if await _is_current(engine):
        return
    async with engine.connect() as connection:
        writing = await connection.execution_options(footnote_write=True)
        async with writing.begin():
            if engine.dialect.name == "postgresql":
                await writing.exec_driver_sql("SELECT pg_advisory_xact_lock(4604078)")
            await writing.run_sync(upgrade)


async def _is_current(engine: AsyncEngine) -> bool:
    try:
        async with engine.connect() as connection:
            return (await connection.execute(sa.text("SELECT version_num FROM alembic_version"))).scalar() == HEAD
    except sa.exc.DBAPIError:  # no such table: a new database
        return False


def upgrade(connection: sa.Connection, revision: str = "head") -> None:
    """Run the migrations up to `revision`, in the connection's transaction."""
    from alembic import command  # a third of a second to import, needed once per database
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)
