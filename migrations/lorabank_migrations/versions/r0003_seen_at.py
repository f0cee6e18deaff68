"""When the process of a reservation was last seen alive.

Revision 0003, after 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column ``seen_at``; a reservation that is there already was seen when it was made."""
    with op.batch_alter_table("operations", recreate="never") as operations:
        operations.add_column(sa.Column("seen_at", sa.Text(), nullable=True))


def downgrade() -> None:
    """There is no way back: restore the copy in the bank's backups folder."""
    raise CommandError("restore the copy in the bank's backups folder")
