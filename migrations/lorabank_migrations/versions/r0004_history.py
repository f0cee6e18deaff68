"""The history of a bank, names, notes and tags that change, versions of a task, and which rows were trained on.

Revision 0004, after 0003.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

_NEW = {
    "tasks": (("note", sa.Text()), ("tags", sa.Text()), ("first_name", sa.Text()), ("replaces", sa.Integer())),
    "compositions": (("note", sa.Text()), ("tags", sa.Text())),
    "composition_members": (("known_as", sa.Text()),),
}


def upgrade() -> None:
    """Add the table ``events`` and columns that are empty in every row that is there."""
    op.create_table(
        "events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("undoes", sa.Integer(), nullable=True),
        sa.Column("version", sa.Text(), nullable=False),
        sa.Column("created_at", sa.Text(), nullable=False),
        sa.Column("row_digest", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["undoes"], ["events.id"], name=op.f("fk_events_undoes_events")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_events")),
        sa.UniqueConstraint("undoes", name=op.f("uq_events_undoes")),
    )
    for table, columns in _NEW.items():
        with op.batch_alter_table(table, recreate="never") as changed:
            for name, kind in columns:
                changed.add_column(sa.Column(name, kind, nullable=True))
    with op.batch_alter_table("datasets", recreate="always") as datasets:
        datasets.add_column(sa.Column("row_digests", sa.Text(), nullable=True))
        datasets.create_foreign_key(op.f("fk_datasets_row_digests_blobs"), "blobs", ["row_digests"], ["digest"])


def downgrade() -> None:
    """There is no way back: restore the copy in the bank's backups folder."""
    raise CommandError("restore the copy in the bank's backups folder")
