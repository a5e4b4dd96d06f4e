"""Quotas of collections, the rate of a job, what a consistency token covers, and notices for the webhook."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("collections", sa.Column("max_documents", sa.Integer, nullable=False, server_default="0"))
    op.add_column("collections", sa.Column("max_bytes", sa.BigInteger, nullable=False, server_default="0"))
    op.create_index("ix_documents_usage", "documents", ["collection", "status", "size"])
    op.add_column("jobs", sa.Column("rate", sa.Float))
    op.create_index("ix_jobs_finished_at", "jobs", ["finished_at"])
    op.create_table(
        "writes",
        sa.Column("token", sa.String(40), primary_key=True),
        sa.Column("document_id", sa.String(40), primary_key=True),
    )
    op.create_table(
        "notices",
        sa.Column("id", sa.String(40), primary_key=True),
        sa.Column("body", sa.Text, nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("run_after", sa.Float, index=True),
        sa.Column("created_at", sa.Float, nullable=False),
    )
