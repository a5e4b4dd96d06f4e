"""Indexes for listings: whatever jobs and documents are asked for by, a page of them is one stretch of an index."""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

INDEXES = {
    "jobs": {"state": ("state", "id"), "collection": ("collection", "id"), "collection_state": ("collection", "state", "id")},
    "documents": {"status": ("status", "id"), "collection_status": ("collection", "status", "id"), "name": ("name", "id")},
}


def upgrade() -> None:
    for table, indexes in INDEXES.items():
        for name, columns in indexes.items():
            op.create_index(f"ix_{table}_{name}", table, list(columns))
