"""Held-out rows: what is measured of them, which step is kept, when the training stops, and runs that are resumed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers import EarlyStoppingCallback, TrainerControl, TrainerState, TrainingArguments

from lorabank.core.errors import DivergedError
from lorabank.models.bases.resolving import folder_of
from lorabank.training.job import TrainedAdapter, TrainJob
from lorabank.training.loop.holding import Holding, Measured
from lorabank.training.run import train_adapter
from tests.unit.training.conftest import letters

TOTAL = 18


def looks(losses: list[float], patience: int | None, every: int = 2) -> Holding:
    """A holding that finds these losses, looked at until it stops."""
    found = iter(losses)
    holding = Holding(5, every, patience, lambda: Measured(next(found), 0.5))
    for step in range(1, every * len(losses) + 1):
        holding.look(step, 10_000, {"w": torch.tensor(float(step))})
        if holding.stopped:
            break
    return holding


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("patience", [1, 2, 4])
def test_it_stops_and_keeps_where_transformers_would(tmp_path, seed: int, patience: int) -> None:
    chance = random.Random(seed)
    losses = [round(chance.uniform(0, 1), 1) for _ in range(12)]  # rounded: some are equal
    callback = EarlyStoppingCallback(early_stopping_patience=patience)
    arguments = TrainingArguments(str(tmp_path), metric_for_best_model="loss", greater_is_better=False, use_cpu=True)
    state, control, expected, best = TrainerState(), TrainerControl(), 0, 0
    for number, loss in enumerate(losses, start=1):
        state.global_step = number
        callback.on_evaluate(arguments, state, control, {"eval_loss": loss})
        if state.best_metric is None or loss < state.best_metric:  # as Trainer's _determine_best_metric
            state.best_metric, best = loss, number
        expected = number
        if control.should_training_stop:
            break
    holding = looks(losses, patience)
    told = holding.told()
    assert told is not None
    assert told.steps == tuple(2 * number for number in range(1, expected + 1))
    assert (told.best, told.stopped) == (2 * best, control.should_training_stop)
    assert float(holding.best["w"]) == 2 * best
    assert told.lowest == min(told.losses)


def test_a_resumed_holding_goes_on_as_if_it_had_not_ended() -> None:
    losses = [0.5, 0.4, 0.6, 0.45, 0.7]
    whole, first = looks(losses, 3), looks(losses[:3], 3)
    rest = iter(losses[3:])
    again = Holding(5, 2, 3, lambda: Measured(next(rest), 0.5))
    again.resume(first.facts(), first.best)
    for step in (7, 8, 9, 10):
        again.look(step, 10_000, {"w": torch.tensor(float(step))})
    assert again.told() == whole.told()
    assert again.stopped
    assert torch.equal(again.best["w"], whole.best["w"])


def test_a_loss_that_is_not_finite_ends_the_training() -> None:
    with pytest.raises(DivergedError, match="after step 2 the loss of the held-out rows is nan"):
        looks([float("nan")], None)


def test_the_last_step_is_measured_too() -> None:
    holding = Holding(5, 4, 1, lambda: Measured(1.0, 0.5))
    assert [step for step in range(1, 11) if holding.look(step, 10, {})] == [4, 8, 10]
    told = holding.told()
    assert told is not None
    assert told.steps == (4, 8, 10)
    assert not told.stopped


@pytest.fixture
def learn(job: Callable[..., TrainJob], recorder: Any) -> Callable[..., TrainedAdapter]:
    """``learn(observer=None, rows=9, **as for job)``: with so many held-out rows."""
    texts, labels = letters(9, seed=5)

    def run(observer: Any = None, held: int = 9, **settings: Any) -> TrainedAdapter:
        made = replace(job(**settings), held_texts=texts[:held], held_targets=[str(label) for label in labels[:held]])
        return train_adapter(made, observer or recorder())

    return run


FAST = {"learning_rate": 0.05, "lora_alpha": 8.0, "batch_size": 4, "epochs": 3}


def tensors(trained: TrainedAdapter) -> dict[str, torch.Tensor]:
    factors = trained.factors
    return {f"A {k}": v for k, v in factors.A.items()} | {f"B {k}": v for k, v in factors.B.items()} | trained.head


def same(one: TrainedAdapter, other: TrainedAdapter) -> bool:
    first, second = tensors(one), tensors(other)
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_the_kept_step_is_the_training_that_ends_there(learn, train) -> None:
    kept = learn(work="held", eval_every=2, **FAST)
    held = kept.curve.held
    assert held is not None
    assert held.steps == tuple(range(2, TOTAL + 1, 2))
    assert held.best < TOTAL, "choose a rate at which the loss rises again"
    assert kept.steps == TOTAL
    assert same(kept, train(work="short", max_steps=held.best, **FAST))
    assert kept.metrics["best_step"] == held.best
    assert (kept.metrics["rows_held_out"], kept.metrics["stopped_early"]) == (9, False)


def test_what_is_measured_is_what_plain_transformers_computes(learn, base, recorder) -> None:
    """After the kept step, by folding the adapter into the weights by hand."""
    from transformers import AutoModelForSequenceClassification

    observer = recorder()
    kept = learn(observer, eval_every=3, **FAST)
    held = kept.curve.held
    model = AutoModelForSequenceClassification.from_pretrained(folder_of(base), num_labels=2).eval()
    model.classifier.load_state_dict({key.removeprefix("classifier."): value for key, value in kept.head.items()})
    texts, labels = letters(9, seed=5)
    losses, right = [], []
    with torch.no_grad():
        for name in kept.factors.A:
            model.get_submodule(name).weight += kept.factors.delta(name)
        for text, label in zip(texts, labels, strict=True):
            ids = torch.tensor([[0, *(4 + ord(letter) - ord("a") for letter in text.split()), 2]])
            logits = model(input_ids=ids).logits
            losses.append(float(F.cross_entropy(logits, torch.tensor([label]))))
            right.append(int(logits.argmax()) == label)
    place = held.steps.index(held.best)
    assert held.losses[place] == pytest.approx(sum(losses) / 9, rel=1e-5)
    assert held.accuracies[place] == pytest.approx(sum(right) / 9)
    told = [values for values in observer.values if "held_out_loss" in values]
    assert [values["held_out_loss"] for values in told] == list(held.losses)


def test_measuring_changes_no_step(learn, train, recorder) -> None:
    """Dropout draws the same, with and without measurements between."""
    without, beside = recorder(), recorder()
    train(without, work="a", **FAST)
    learn(beside, work="b", eval_every=1, **FAST)
    assert [values["loss"] for values in beside.values] == [values["loss"] for values in without.values]


@pytest.mark.parametrize("stop_after", [3, 5])
def test_a_resumed_training_keeps_and_stops_at_the_same_steps(learn, recorder, stop_after: int) -> None:
    settings = {"eval_every": 2, "early_stopping": 3, "save_steps": 2, **FAST}
    whole = learn(work="whole", **settings)
    assert whole.curve.held.stopped, "choose a rate at which it stops"
    assert whole.steps < TOTAL
    assert whole.steps > stop_after
    with pytest.raises(KeyboardInterrupt):
        learn(recorder(stop_after=stop_after), **settings)
    resumed = learn(resume=True, **settings)
    assert same(resumed, whole)
    assert resumed.curve == whole.curve
    assert resumed.metrics == whole.metrics
    assert resumed.steps == whole.steps


def test_a_run_that_was_killed_after_it_stopped_stops_there_again(learn, recorder, tmp_path) -> None:
    settings = {"eval_every": 2, "early_stopping": 3, "save_steps": 2, **FAST}
    whole = learn(**settings)
    assert whole.curve.held.stopped
    checkpoints = [int(path.name.removeprefix("checkpoint-")) for path in (tmp_path / "work").glob("checkpoint-*")]
    assert max(checkpoints) < whole.steps
    again = recorder()
    assert same(learn(again, resume=True, **settings), whole)
    assert len(again.values) == whole.steps - max(checkpoints)


def test_held_out_rows_that_are_too_long_are_told_as_those_of_the_training(learn, recorder) -> None:
    observer = recorder()
    kept = learn(observer, eval_every=6, max_length=6)
    cut = sum(len(text.split()) + 2 > 6 for text in letters(9, seed=5)[0])
    assert 0 < cut < 9
    assert f"{cut} of 9 held-out texts are truncated to 6 tokens" in observer.notices
    assert kept.metrics["rows_held_out"] == 9


def test_by_default_an_epoch_lies_between_two_measurements(learn, recorder) -> None:
    observer = recorder()
    trained = learn(observer, early_stopping=50, **FAST)
    assert trained.curve.held.steps == (6, 12, 18)
    told = (
        "9 of 31 training rows are held out (seed 0) and measured every 6 steps; the evaluation rows are not looked at"
    )
    assert told in observer.notices
