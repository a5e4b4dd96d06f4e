"""What each entry's chunks are by a digest, when a generation was last compared with the store, and who compares it now."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("entries", sa.Column("digest", sa.String(32)))
    op.add_column("generations", sa.Column("compared_at", sa.Float))
    passes = op.create_table(
        "passes",
        sa.Column("name", sa.String(20), primary_key=True),
        sa.Column("worker", sa.Text),
        sa.Column("lease_until", sa.Float, nullable=False),
        sa.Column("finished_at", sa.Float, nullable=False),
        *(sa.Column(name, sa.BigInteger, nullable=False) for name in ("checked", "found", "mended")),
    )
    counts = dict.fromkeys(("lease_until", "finished_at", "checked", "found", "mended"), 0)
    op.bulk_insert(passes, [{"name": name, **counts} for name in ("indexes", "files")])
