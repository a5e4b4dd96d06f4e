"""A number per collection that grows with every write to its indexes, so that a remembered answer is known to be current."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("collections", sa.Column("revision", sa.BigInteger, nullable=False, server_default="0"))
