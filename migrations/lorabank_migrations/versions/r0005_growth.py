"""What grows faster than the tasks: a row of a lineage may stand for a whole one, and scores are found by their task.

Revision 0005, after 0004.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import groupby

import sqlalchemy as sa
from alembic import op
from alembic.util import CommandError

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_CONTEXT = sa.table("adapter_context", *map(sa.column, ("adapter", "ordinal", "member", "part", "row_digest")))

Part = tuple[int, str | None]
"""A member, and what its row stands for."""


def upgrade() -> None:
    """Add the column ``part``, and write the long lists anew with it; the digests of all rows were checked before."""
    op.create_index(op.f("ix_evaluations_task_stage"), "evaluations", ["task", "stage"], unique=False)
    op.create_index(op.f("ix_evaluations_subject"), "evaluations", ["subject"], unique=False)
    connection = op.get_bind()
    shorter = _shorter(connection)
    for adapter in shorter:  # before the table is copied, whose most rows they are
        connection.execute(sa.delete(_CONTEXT).where(_CONTEXT.c.adapter == adapter))
    with op.batch_alter_table("adapter_context", recreate="always") as context:
        context.add_column(sa.Column("part", sa.Text(), nullable=True))
        context.create_check_constraint(op.f("ck_adapter_context_part"), "part IN ('lineage', 'without')")
    for adapter, parts in shorter.items():
        connection.execute(sa.insert(_CONTEXT), [_row(adapter, n, *one) for n, one in enumerate(parts)])


def _shorter(connection: sa.Connection) -> dict[int, Sequence[Part]]:
    """Fewer rows for each adapter that has more than it needs."""
    digests = {row.id: row.digest for row in connection.execute(sa.text("SELECT id, digest FROM adapters"))}
    query = sa.select(_CONTEXT.c.adapter, _CONTEXT.c.member).order_by(_CONTEXT.c.adapter, _CONTEXT.c.ordinal)
    whole: dict[int, list[int]] = {number: [number] for number in digests}
    found: dict[int, Sequence[Part]] = {}
    for adapter, group in groupby(connection.execute(query), lambda row: row.adapter):
        members = [row.member for row in group]
        if not all(member in digests and member < adapter for member in members):
            continue  # reading the bank refuses it
        whole[adapter] = [*members, adapter]
        on_others = [member for member in members if len(whole[member]) > 1]
        if not on_others:
            continue
        firsts = on_others[-1], max(on_others, key=lambda member: len(whole[member]))
        parts = min((_behind(whole[first], members, digests) for first in firsts), key=len)
        if len(parts) < len(members):
            found[adapter] = parts
    return found


def _behind(before: Sequence[int], members: Sequence[int], digests: dict[int, str]) -> Sequence[Part]:
    """The members as a list that ends with one of them, without some of it, and more; as they are where it is not."""
    wanted, there = set(members), set(before)
    own = [member for member in members if member not in there]
    same = [member for member in before if member in wanted] + own == list(members)
    if not same or len({digests[member] for member in before}) < len(before):
        return [(member, None) for member in members]
    without = [(member, "without") for member in before if member not in wanted]
    return [(before[-1], "lineage"), *without, *((member, None) for member in own)]


def _row(adapter: int, ordinal: int, member: int, part: str | None) -> dict[str, int | str | None]:
    """A row with its digest as this schema defines it, which covers the columns that hold something."""
    row = {"adapter": adapter, "ordinal": ordinal, "member": member, "part": part}
    content = ["adapter_context", [[name, value] for name, value in row.items() if value is not None]]
    digest = hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
    return {**row, "row_digest": digest}


def downgrade() -> None:
    """There is no way back: restore the copy in the bank's backups folder."""
    raise CommandError("restore the copy in the bank's backups folder")
