"""The adapters have the bytes that they had before the library was taken apart for other variants and sites.

The digests of ``same_bytes.json`` were written by the commit before the first move. They hold for one library of
kernels: a plain torch training of the same base comes first, and where it gives other bytes, the tests are skipped.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch

from lorabank.bank.bank import Bank
from tests.contract.conftest import KINDS, TASKS, Lab

STORED = Path(__file__).with_name("same_bytes.json")
STRATEGIES = ("olora", "inclora", "isolated", "seqlora", "replay", "ewc", "inflora", "amlora")


@pytest.fixture(scope="session", params=KINDS)
def lab(request: pytest.FixtureRequest, make_lab) -> Lab:
    return make_lab(request.param)


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def control(lab: Lab) -> str:
    """Digest of a linear layer's weights after ten steps of AdamW behind the base, by plain torch."""
    from transformers import AutoModel

    torch.manual_seed(0)
    model = AutoModel.from_pretrained(lab.base).train()
    head = torch.nn.Linear(model.config.hidden_size, 3)
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    ids = torch.randint(4, 20, (4, 9))
    more = {"decoder_input_ids": ids} if lab.kind == "t5" else {}
    for _ in range(10):
        hidden = model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).last_hidden_state
        torch.nn.functional.cross_entropy(head(hidden.mean(1)), torch.tensor([0, 1, 2, 0])).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return digest(head.weight.detach().numpy().tobytes())


def adapters(lab: Lab, strategy: str) -> dict[str, str]:
    """Digest of each task's tensors; names and settings beside them may change."""
    bank = lab.bank(strategy, len(TASKS))
    snapshot = Bank.open(bank).snapshot()
    folders = {task: bank / "adapters" / snapshot.adapter_of(task).digest for task in TASKS}
    return {task: digest((folder / "adapter_model.safetensors").read_bytes()) for task, folder in folders.items()}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_bytes_are_those_of_before(lab: Lab, strategy: str) -> None:
    stored = json.loads(STORED.read_text(encoding="utf-8"))[lab.kind]
    if control(lab) != stored["control"]:
        pytest.skip("plain torch gives other bytes on this machine than where the digests were written")
    assert adapters(lab, strategy) == stored[strategy]
