"""What of a bank is read, and when."""

from __future__ import annotations

import pytest

from lorabank.bank.bank import Bank
from lorabank.core.errors import NotFoundError
from lorabank.workflows.assemble import read_members


def test_a_task_without_statistics_is_a_member_that_cannot_be_routed_to(bank) -> None:
    opened = Bank.open(bank)
    snapshot = opened.snapshot()
    first, second = snapshot.tasks
    members = read_members(opened, snapshot, [first, second._replace(statistics=None)], samples=True)
    assert [(member.task, member.head, len(member.texts) > 0) for member in members] == [
        ("first", 0, True),
        ("second", 1, True),
    ]
    assert members[0].statistics().to_bytes() == opened.read_blob(first.statistics)
    with pytest.raises(NotFoundError, match="task 'second' keeps no routing statistics"):
        members[1].statistics()
