"""What processes tell each other; two of them are started as a launcher does."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from lorabank.core.errors import ConfigError
from lorabank.core.machine import distributed as processes

TALK = """
import json, math
import torch
from lorabank.core.machine import distributed as processes
from lorabank.core.errors import DataError

processes.join()
rank = processes.rank()
told = {"count": processes.count(), "gathered": processes.gathered(rank)}

# the mean of 1, 2 and 6: one term in one process, two in the other
values = [[1.0], [2.0, 6.0]][rank]
x = torch.ones((), requires_grad=True)
labels = torch.tensor([[0, -100], [1, 0]][rank])
loss, whole = processes.weighed(x * sum(values) / len(values), labels)
loss.backward()
told |= {"gradient": x.grad.item(), "whole": whole.item()}
told["not_finite"] = math.isnan(processes.weighed(torch.tensor([1.0, math.nan][rank]), labels)[1].item())

def refuse():
    raise DataError("row 3", hint="look")

told["main"] = processes.from_main(lambda: ["of", rank])
try:
    processes.from_main(refuse)
except DataError as error:
    told["error"] = [error.message, error.hint]
if rank == 1:
    told["failed"] = processes.failed_before(6)
processes.gathered(None)
if rank == 0:
    told["failed"] = processes.failed_before(1)
print(json.dumps(told))
"""


def test_two_processes_agree(launch: Callable[..., Any]) -> None:
    main, other = launch(2, "-c", TALK)
    assert (main.returncode, other.returncode) == (0, 0), main.stderr + other.stderr
    told = [json.loads(process.stdout) for process in (main, other)]
    # DistributedDataParallel gives every process the mean of their gradients
    assert sum(each.pop("gradient") for each in told) / 2 == pytest.approx(3.0)
    assert [each.pop("failed") for each in told] == [6, None]  # the second failed first, and says why
    assert told[0] == told[1]
    assert told[0] == {
        "count": 2,
        "gathered": [0, 1],
        "whole": 3.0,
        "not_finite": True,
        "main": ["of", 0],
        "error": ["row 3", "look"],
    }


def test_one_process_needs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")  # without a rank it is no launcher's
    monkeypatch.delenv("RANK", raising=False)
    processes.join()
    assert (processes.count(), processes.rank()) == (1, 0)
    assert processes.from_main(lambda: 3) == 3
    assert processes.gathered("x") == ["x"]
    assert processes.failed_before(6) is None
    assert processes.device_name("cuda:1") == "cuda:1"


def test_each_process_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "5"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "8")):
        monkeypatch.setenv(name, value)
    assert processes.device_name("cuda") == "cuda:1"
    assert processes.device_name("cpu") == "cpu"
    with pytest.raises(ConfigError, match="--device cuda:1 names one device for 8 processes"):
        processes.device_name("cuda:1")
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert processes.device_name("auto") == "cpu"
    assert processes.failed_before(6) == 6  # before they know each other the main process speaks


def test_a_split_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "0"), ("WORLD_SIZE", "2"), ("ACCELERATE_USE_FSDP", "true")):
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="FSDP"):
        processes.join()
