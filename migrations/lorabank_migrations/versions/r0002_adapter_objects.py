"""Blobs that belong to an adapter, and rows kept for replay.

Revision 0002, after 0001.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table ``adapter_objects``; let a data set be the split ``replay``."""
    op.create_table(
        "adapter_objects",
        sa.Column("adapter", sa.Integer(), nullable=False),
        sa.Column("role", sa.Text(), nullable=False),
        sa.Column("blob", sa.Text(), nullable=False),
        sa.Column("row_digest", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["adapter"], ["adapters.id"], name=op.f("fk_adapter_objects_adapter_adapters")),
        sa.ForeignKeyConstraint(["blob"], ["blobs.digest"], name=op.f("fk_adapter_objects_blob_blobs")),
        sa.PrimaryKeyConstraint("adapter", "role", name=op.f("pk_adapter_objects")),
    )
    with op.batch_alter_table("datasets", recreate="always") as datasets:
        datasets.drop_constraint(op.f("ck_datasets_split"), type_="check")
        datasets.create_check_constraint(
            op.f("ck_datasets_split"), "split IN ('train', 'eval', 'calibration', 'replay')"
        )


def downgrade() -> None:
    """There is no way back: restore the copy in the bank's backups folder."""
    raise CommandError("restore the copy in the bank's backups folder")
