"""What a training writes for those who follow it, and when that goes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from lorabank import api
from lorabank.bank import progress
from lorabank.bank.progress import FILE, Follower, Progress, steps_of
from lorabank.core.observer import SilentObserver
from tests.contract.conftest import Lab


class Followed(SilentObserver):
    """Follows the file beside the training, and notes the losses that an observer is told.

    Args:
        bank: The bank.
        stop: Step after which Ctrl-C comes.
    """

    def __init__(self, bank: Path, stop: int | None = None) -> None:
        self.bank, self.stop = bank, stop
        self.told: dict[int, dict[str, float]] = {}
        self.lines: list[Progress] = []
        self.follower: Follower | None = None

    def advance(self, done: int, values: Mapping[str, float]) -> None:
        self.told.setdefault(done, dict(values))
        if self.follower is None:
            (path,) = self.bank.glob("work/*")
            self.follower = Follower(path / FILE)
        self.lines += self.follower.new()
        if done == self.stop:
            raise KeyboardInterrupt

    def rest(self) -> list[Progress]:
        """All lines; the file is let go."""
        assert self.follower is not None
        self.lines += self.follower.new()
        self.follower.close()
        return self.lines


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_SECOND", 0.0)
    monkeypatch.setattr(progress, "_SHARE", 10**9)


def test_a_training_is_followed_to_its_score(lab: Lab, copy: Callable[..., Path], every_step: None) -> None:
    bank = copy("olora", 1)
    observer = Followed(bank)
    result = lab.add(bank, "two", observer, warmup=4, eval_every=2)
    lines = observer.rest()
    phases = list(dict.fromkeys(line.phase for line in lines))
    assert phases == ["loading", "training", "storing", "scoring", "done"]
    steps = steps_of(lines)
    assert [line.step for line in steps] == list(range(1, result.adapter.steps + 1))
    assert {line.of for line in steps} == {result.adapter.steps}
    for line in steps:
        told = observer.told[line.step]
        assert (line.loss, line.penalties["orthogonal"]) == (told["loss"], told["orthogonal"])
        assert line.learning_rate == pytest.approx(1e-2 * min(line.step - 1, 4) / 4)
        assert line.held_out.get("step", 0) == line.step // 2 * 2
    assert steps[-1].epoch == pytest.approx(2)
    assert steps[-1].seconds_left == 0
    assert not list(bank.glob("work/*"))


def test_an_interrupted_training_keeps_its_file_and_goes_back_to_the_checkpoint(
    lab: Lab, copy: Callable[..., Path], every_step: None
) -> None:
    bank = copy("olora", 1)
    first = Followed(bank, stop=4)
    with pytest.raises(KeyboardInterrupt):
        lab.add(bank, "two", first, save_steps=2)
    assert first.rest()[-1][1:2] == ("stopped",)
    assert [line.step for line in steps_of(first.lines)] == [1, 2, 3]
    second = Followed(bank)
    result = api.add_task(bank, "two", None, resume=True, observer=second)
    lines = second.rest()
    assert lines[: len(first.lines)] == first.lines
    assert [line.step for line in steps_of(lines)] == list(range(1, result.adapter.steps + 1))
    assert [line.step for line in lines if line.phase == "training" and line.loss is None] == [0, 2]
    assert not list(bank.glob("work/*"))
