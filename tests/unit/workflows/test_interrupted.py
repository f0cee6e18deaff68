"""Ctrl-C at moments spread over a piece of work: nothing half-written stays, inside the bank and outside."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import lorabank
from lorabank import api
from lorabank.core.config import TrainConfig
from lorabank.core.observer import SilentObserver
from tests.unit.workflows.carrying.test_hub import NAME, FakeHub, hub
from tests.unit.workflows.conftest import write_rows

__all__ = ["hub"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

HOME = str(Path(lorabank.__file__).parent)
MOMENTS = 8
SMALL: dict[str, Any] = {"epochs": 1, "batch_size": 8, "device": "cpu", "max_length": 16}
LOHA = TrainConfig(variant="peft:loha", strategy="isolated", set=("r=2", "alpha=4"), **SMALL)


def run(call: Callable[[], object], moment: int = 0) -> int:
    """Run something; raise KeyboardInterrupt when the function of lorabank with this number is called.

    Returns:
        How many functions of lorabank were called.
    """
    calls = 0

    def count(frame: FrameType, event: str, _: object) -> None:
        nonlocal calls
        if event == "call" and frame.f_code.co_filename.startswith(HOME):
            calls += 1
            if calls == moment:
                sys.setprofile(None)
                raise KeyboardInterrupt

    sys.setprofile(count)
    try:
        call()
    finally:
        sys.setprofile(None)
    return calls


class Place:
    """A bank with a task of factors and one of a tuner, and a folder of the tuner, copied for each moment."""

    def __init__(self, bank: Path, folder: Path, tuner: Path, rows: Path, hub: FakeHub) -> None:
        self.bank, self.folder, self.tuner, self.rows, self.hub = bank, folder, tuner, rows, hub

    def rows_of(self, **more: Any) -> TrainConfig:
        return TrainConfig(data=str(self.rows), **{**SMALL, **more})


WORK: dict[str, Callable[[Place], object]] = {
    "export": lambda at: api.export(at.bank, "second", at.folder / "out"),
    "export --merged": lambda at: api.export(at.bank, "second", at.folder / "out", merged=True),
    "import --as-lora": lambda at: api.import_adapter(
        at.bank, at.tuner, "cut", config=at.rows_of(), as_lora=2, observer=SilentObserver()
    ),
    "add-task with a tuner": lambda at: api.add_task(
        at.bank,
        "new",
        at.rows_of(variant="peft:loha", strategy="isolated", set=LOHA.set),
        observer=SilentObserver(),
    ),
    "push": lambda at: api.push(at.bank, NAME),
    "pull": lambda at: api.pull(at.folder / "deep/theirs", NAME),
}


@pytest.mark.parametrize("work", WORK)
def test_what_is_interrupted_is_done_whole_or_not_at_all(work: str, bank: Path, tmp_path: Path, hub: FakeHub) -> None:
    rows = write_rows(tmp_path / "rows.jsonl", ("no", "yes"))
    api.add_task(bank, "loha", TrainConfig(**{**vars(LOHA), "data": str(rows)}), observer=SilentObserver())
    api.export(bank, "loha", tmp_path / "tuner", own=True)
    if work == "pull":
        api.push(bank, NAME)
    sent, known = dict(hub.files.get(NAME, {})), [task.name for task in api.overview(bank).tasks]

    def at(name: str) -> Place:
        place = tmp_path / name
        place.mkdir()
        own = Path(shutil.copytree(bank, place / "bank"))
        hub.files = {NAME: dict(sent)} if sent else {}
        return Place(own, place, tmp_path / "tuner", rows, hub)

    WORK[work](at("warm"))  # what is computed once in a process is no part of the count
    whole = at("whole")
    calls = run(lambda: WORK[work](whole))
    assert calls > MOMENTS
    interrupted = 0
    done = outside(whole), [task.name for task in api.overview(whole.bank).tasks]
    for number in range(MOMENTS):
        place = at(str(number))
        try:
            run(lambda: WORK[work](place), 1 + number * (calls - 2) // (MOMENTS - 1))  # noqa: B023
        except KeyboardInterrupt:
            interrupted += 1
        found = outside(place), [task.name for task in api.overview(place.bank).tasks]
        assert found[0] in ((), done[0])
        assert found[1] in (known, done[1])
        assert api.verify(place.bank, full=True) == ()
        for task in found[1]:
            api.remove(place.bank, task, cascade=True)  # no reservation stays that would keep others out
        repository = hub.files.get(NAME, {}).keys()
        assert repository <= {".gitattributes"} or {"bank.db", "bank.json", "README.md"} <= repository
    assert interrupted > MOMENTS // 2  # Python drops what is raised in a callback: the work then ends whole


def outside(place: Place) -> tuple[str, ...]:
    """What stands beside the bank."""
    return tuple(sorted(str(path.relative_to(place.folder)) for path in place.folder.glob("*") if path != place.bank))
