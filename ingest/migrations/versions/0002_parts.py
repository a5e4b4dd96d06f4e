"""Documents that came out of another document (attachments, members of archives), and chunks embedded without context."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("documents", sa.Column("parent_id", sa.String(40)))
    op.create_index("ix_documents_parent_id", "documents", ["parent_id"])
    for table in ("collections", "generations"):
        op.add_column(table, sa.Column("chunk_context", sa.Boolean, nullable=False, server_default=sa.true()))
