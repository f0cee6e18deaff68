"""What of a bank is read, and when."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from lorabank.bank.bank import Bank
from lorabank.core.errors import DamagedError, NotFoundError
from lorabank.workflows.assemble import _read_alone, read_members


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


@pytest.mark.parametrize(
    "config",
    [
        [],
        {},
        {"peft_type": "HYDRALORA"},
        {"peft_type": "HYDRALORA", "heads": 0, "r": 2, "lora_alpha": 4.0, "use_rslora": False},
        {"peft_type": "HYDRALORA", "heads": "three", "r": 2, "lora_alpha": 4.0, "use_rslora": False},
        {"peft_type": "LOHA"},
    ],
    ids=str,
)
def test_an_adapter_without_factors_that_cannot_be_used_is_named_as_damaged(config, tmp_path) -> None:
    """Whoever made the bank: its digests can be right, and its contents are not what lorabank writes."""
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    tensors = {"m.hydra_A": torch.ones(2, 4), "m.hydra_B": torch.ones(6), "m.hydra_router": torch.ones(3, 4)}
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(DamagedError, match="what is stored cannot be used") as caught:
        _read_alone(lambda: tmp_path, lambda module: torch.ones(2, 2))
    assert str(tmp_path) in caught.value.message
