"""The best step of a training is kept whole: whatever the method, all is as if the training had ended there.

The other training ends at that step by transformers' own control, in the plan of the same number of steps; nothing is
held out of it, and nothing is put back.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from lorabank.core.config import TrainConfig
from lorabank.core.shelves import MIXTURES, STRATEGIES, VARIANTS
from lorabank.models.bases.loading import describe_base
from lorabank.models.bases.resolving import resolve_base
from lorabank.training import feeding
from lorabank.training.job import TrainedAdapter, TrainJob
from lorabank.training.loop.holding import Measured
from lorabank.training.run import train_adapter
from lorabank.training.tracking import Tracking
from tests.unit.training.conftest import letters
from tests.unit.training.variants.test_variants import SMALL, _goes

EPOCHS = 4
"""Of six steps each: four windows end after steps 6, 12 and 18."""

BEST = 6
"""Where a window of four ends, and behind what is decided in the first tenth."""

OTHERS = (1, 13)
"""Before anything was moved, and within a later window."""

PATIENCE = 8
"""Behind each of these steps there are so many others, in which plans go on."""


class StopAt(TrainerCallback):
    def __init__(self, step: int) -> None:
        self._step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = state.global_step == self._step


@pytest.fixture
def kept(
    job: Callable[..., TrainJob], recorder: Any, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TrainedAdapter]:
    """``kept(best, **as for job)``: stopped early, the held-out rows being best after that step by decree."""
    texts, labels = letters(9, seed=5)
    measure = feeding.measure

    def run(best: int, **settings: Any) -> TrainedAdapter:
        numbers = count(1)

        def measured(*args: Any) -> Measured:
            return Measured(1.0 + abs(next(numbers) - best), measure(*args).accuracy)

        monkeypatch.setattr(feeding, "measure", measured)
        made = job(work="kept", epochs=EPOCHS, eval_every=1, early_stopping=PATIENCE, **settings)
        held = {"held_texts": texts, "held_targets": [str(label) for label in labels]}
        return train_adapter(replace(made, **held, kept=(0, 3, 4)), recorder())

    return run


@pytest.fixture
def ended(job: Callable[..., TrainJob], recorder: Any) -> Callable[..., TrainedAdapter]:
    """``ended(step, **as for job)``: a training of which no more than so many steps are made."""

    def run(step: int, **settings: Any) -> TrainedAdapter:
        tracking = Tracking()
        tracking.callback = StopAt(step)  # type: ignore[assignment]
        made = replace(job(work="ended", epochs=EPOCHS, **settings), tracking=tracking, kept=(0, 3, 4))
        return train_adapter(made, recorder())

    return run


def check_same(one: TrainedAdapter, other: TrainedAdapter) -> None:
    """To the bit: the fold, or what is in its place, the head, and what the strategy recorded with the model."""
    mine, theirs = (trained.tuned.tensors if trained.tuned else {} for trained in (one, other))
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())
    for part in ("A", "B", "gain"):
        found, expected = getattr(one.factors, part), getattr(other.factors, part)
        assert found.keys() == expected.keys()
        for site, tensor in found.items():
            assert torch.equal(tensor, expected[site]), (part, site)
    assert all(torch.equal(tensor, other.head[name]) for name, tensor in one.head.items())
    assert one.objects == other.objects


def strategy_of(variant: str) -> str:
    """One that passes rows through the model when the training is over, if the variant goes with it."""
    names = ("online-lora", TrainConfig.strategy, *STRATEGIES)
    return next(name for name in names if _goes(strategy=name, variant=variant))


MOVING = [name for name, one in VARIANTS.items() if one.moves]


@pytest.mark.by_turns
@pytest.mark.parametrize(
    ("variant", "best"),
    [
        *((name, BEST) for name in (*VARIANTS, *MIXTURES)),
        *((name, best) for name in MOVING for best in OTHERS),
        ("autolora", 13),  # it decides after step 12
    ],
)
def test_every_variant_is_what_it_was_at_the_best_step(kept, ended, variant: str, best: int) -> None:
    settings = {"variant": variant, "strategy": strategy_of(variant), "set": SMALL.get(variant, ())}
    found = kept(best, **settings)
    assert found.curve is not None
    assert found.curve.held is not None
    assert found.curve.held.best == best < found.steps
    other = ended(best, **settings)
    assert other.steps == best
    check_same(found, other)


@pytest.mark.by_turns
@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_every_strategy_records_what_belongs_to_the_best_step(kept, ended, strategy: str) -> None:
    check_same(kept(BEST, strategy=strategy), ended(BEST, strategy=strategy))


@pytest.mark.parametrize("variant", MOVING)
def test_what_was_moved_since_is_gone_from_beside_a_quantised_weight(kept, ended, base, variant: str) -> None:
    quantised = describe_base(resolve_base(base.name), quantise="nf4")
    settings = {"variant": variant, "strategy": "online-lora", "on": quantised}
    check_same(kept(1, **settings), ended(1, **settings))


def test_a_training_that_was_resumed_behind_its_best_step_keeps_it(job, recorder, monkeypatch) -> None:
    """A window ends between that step and the checkpoint."""
    texts, labels = letters(9, seed=5)
    monkeypatch.setattr(feeding, "measure", lambda *args: Measured(float(next(losses)), 0.5))

    def run(work: str, observer: Any, **more: Any) -> TrainedAdapter:
        made = job(work=work, epochs=EPOCHS, eval_every=1, variant="relora", save_steps=8, **more)
        held = {"held_texts": texts, "held_targets": [str(label) for label in labels]}
        return train_adapter(replace(made, **held), observer)

    losses = iter([3, 2, 1, *range(2, 23)])
    whole = run("whole", recorder())
    losses = iter([3, 2, 1, *range(2, 23)])
    with pytest.raises(KeyboardInterrupt):
        run("again", recorder(stop_after=9))
    losses = iter(range(7, 23))  # of the steps behind the eighth
    resumed = run("again", recorder(), resume=True)
    assert resumed.curve == whole.curve
    check_same(resumed, whole)
