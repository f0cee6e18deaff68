"""The curve of a training: bounded, the same when a run is resumed or numbers are read late, and safe to read."""

from __future__ import annotations

import json

import numpy as np
import pytest

from lorabank.core.errors import DamagedError
from lorabank.models.facts.curves import HeldOut, LearningCurve
from lorabank.training.loop.curve import CurveRecorder


def recorded(steps: int, *, late: bool = False, resumed_at: int | None = None) -> LearningCurve:
    """Loss 1/n and learning rate n at step n."""
    recorder = CurveRecorder()
    for step in range(1, steps + 1):
        recorder.rate(step, float(step))
        told = step - 1 if late else step
        if told:
            recorder.loss(told, 1 / told)
            recorder.loss(told, 99.0)  # told twice
        if step == resumed_at:
            recorder.loss(step, 1 / step)
            facts, recorder = json.loads(json.dumps(recorder.facts())), CurveRecorder()
            recorder.resume(facts)
    recorder.loss(steps, 1 / steps)
    return recorder.curve()


@pytest.mark.parametrize(("steps", "every"), [(1, 1), (255, 1), (256, 2), (511, 2), (512, 4), (1000, 4), (5000, 32)])
def test_each_point_is_the_mean_of_equally_many_steps(steps: int, every: int) -> None:
    curve = recorded(steps)
    assert curve.every == every
    assert len(curve.steps) <= 256
    ends = [*range(every, steps + 1, every), *([steps] if steps % every else [])]
    assert curve.steps == tuple(ends)
    assert curve.learning_rates == tuple(map(float, ends))
    losses = 1 / np.arange(1, steps + 1)
    expected = [losses[end - (end - 1) % every - 1 : end].mean() for end in ends]
    np.testing.assert_allclose(curve.losses, expected, rtol=1e-12)


@pytest.mark.parametrize("steps", [3, 300, 900])
def test_numbers_that_are_read_late_give_the_same_curve(steps: int) -> None:
    assert recorded(steps, late=True) == recorded(steps)


@pytest.mark.parametrize("at", [1, 2, 255, 256, 257, 512, 700])
@pytest.mark.parametrize("late", [False, True])
def test_a_resumed_recorder_gives_the_same_curve(at: int, late: bool) -> None:
    assert recorded(900, late=late, resumed_at=at) == recorded(900)


HELD = HeldOut(9, 2, 3, (2, 4), (0.5, 0.25), (0.5, 1.0), best=4, stopped=False)
CURVE = LearningCurve(1, (1, 2), (0.7, 0.1 + 0.2), (1e-3, 1e-3), HELD)


def test_what_is_kept_is_read_to_the_last_bit() -> None:
    assert LearningCurve.from_bytes(CURVE.to_bytes()) == CURVE
    alone = LearningCurve(1, (), (), ())
    assert LearningCurve.from_bytes(alone.to_bytes()) == alone
    assert (HELD.lowest, HELD.best) == (0.25, 4)


def changed(**fields: object) -> bytes:
    return json.dumps(json.loads(CURVE.to_bytes()) | fields).encode()


def held(**fields: object) -> bytes:
    plain = json.loads(CURVE.to_bytes())
    return json.dumps(plain | {"held": plain["held"] | fields}).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000, changed(more=1), changed(steps=[1]),
        changed(steps=[2, 1]),
        changed(steps="12"), changed(losses=[0.1, "x"]), changed(losses=[0.1, True]), changed(every=0),
        changed(every=1.5), changed(steps=[0, 1]), changed(losses=[0.1, float("nan")]), changed(held=7),
        held(best=3), held(stopped=1), held(rows=-1), held(patience="3"), held(losses=[1.0]), held(steps=[4, 4]),
        changed(steps=list(range(1, 5000)), losses=[0.0] * 4999, learning_rates=[0.0] * 4999), b" " * 2_000_000,
    ],
)  # fmt: skip
def test_anything_else_is_refused(data: bytes) -> None:
    with pytest.raises(DamagedError, match="a learning curve cannot be read"):
        LearningCurve.from_bytes(data)
