"""Queues instead of priorities, what is due in one stretch of an index, and leases that no clock decides."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("queue", sa.String(12), nullable=False, server_default="reindex"))
    op.add_column("jobs", sa.Column("beats", sa.Integer, nullable=False, server_default="0"))
    jobs = sa.table("jobs", sa.column("kind"), sa.column("queue"), sa.column("state"), sa.column("run_after"))
    op.execute(sa.update(jobs).where(jobs.c.kind.in_(["delete", "ingest"])).values(queue=jobs.c.kind))
    op.execute(sa.update(jobs).where(jobs.c.state == "queued").values(run_after=0.0))
    op.drop_index("ix_jobs_state_priority_id", "jobs")
    op.drop_column("jobs", "priority")
    op.drop_column("jobs", "lease_until")
    op.create_index("ix_jobs_due", "jobs", ["state", "queue", "run_after", "collection", "id"])
