"""Alembic runs on the connection that `ingest.schema.migrate` opened, inside its transaction and under its lock."""

from __future__ import annotations

from alembic import context

from ingest.schema import metadata

context.configure(connection=context.config.attributes["connection"], target_metadata=metadata, transactional_ddl=False)
context.run_migrations()
