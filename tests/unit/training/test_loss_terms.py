"""Terms that are read when the next step ends: the same numbers and the same refusal, one step later."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch

from lorabank.core.errors import DivergedError
from lorabank.models.tasks.classification import Classification
from lorabank.training.loop.loss_terms import LossTerms


@pytest.fixture
def late(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trainer that reads as on a GPU."""
    monkeypatch.setattr("lorabank.training.trainer.LossTerms", lambda late: LossTerms(late=True))


@pytest.fixture
def late_terms(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From its call on, trainers read as on a GPU."""
    return lambda: monkeypatch.setattr("lorabank.training.trainer.LossTerms", lambda late: LossTerms(late=True))


def tell(terms: LossTerms, step: int, *values: tuple[str, float]) -> None:
    for name, value in values:
        terms.add(step, name, torch.tensor(value, requires_grad=True))
    terms.close(step)


def test_a_step_is_read_when_the_next_one_ends() -> None:
    terms = LossTerms(late=True)
    tell(terms, 1, ("loss", 1.0), ("loss", 2.0), ("norm", 0.5))
    assert terms.read == {}
    tell(terms, 2, ("loss", 3.0))
    assert terms.read == {"loss": 1.5, "norm": 0.5}
    terms.settle()
    terms.settle()
    assert terms.read == {"loss": 3.0}


@pytest.mark.parametrize("batch", [0, 1])
def test_what_is_not_finite_is_refused_in_any_batch_of_a_step(batch: int) -> None:
    terms, losses = LossTerms(late=True), [1.0, 1.0]
    losses[batch] = math.inf
    tell(terms, 4, *(("loss", loss) for loss in losses))
    with pytest.raises(DivergedError, match="diverged at step 4: loss = inf"):
        tell(terms, 5, ("loss", 1.0))


def test_read_at_once_each_batch_begins_anew() -> None:
    terms = LossTerms(late=False)
    tell(terms, 1, ("loss", 1.0), ("norm", 0.5))
    tell(terms, 2, ("loss", 3.0))
    assert terms.read == {"loss": 3.0}
    with pytest.raises(DivergedError, match=r"diverged at step 3: loss = 2\.0, norm = nan"):
        tell(terms, 3, ("loss", 2.0), ("norm", math.nan))


@pytest.mark.parametrize("late", [False, True])
def test_the_loss_of_a_step_is_the_mean_over_its_batches(late: bool) -> None:
    terms = LossTerms(late=late)
    for step, losses in ((1, (4.0, 1.0, 1.0)), (2, (0.25, 0.75))):
        tell(terms, step, *(("loss", loss) for loss in losses), ("norm", 0.5))
        terms.settle()
        assert terms.read == {"loss": sum(losses) / len(losses), "norm": 0.5}


@pytest.mark.parametrize("late", [False, True])
def test_the_curve_has_the_mean_of_accumulated_batches(train, recorder, late_terms, monkeypatch, late: bool) -> None:
    """Of a model that does not move, 11 and 11 rows have the mean loss of all 22."""
    if late:
        late_terms()
    still = {"learning_rate": 1e-30, "epochs": 1, "lora_dropout": 0.0}
    whole = train(work="whole", batch_size=22, **still)
    observer, loss, batches = recorder(), Classification.loss, []
    monkeypatch.setattr(Classification, "loss", lambda *given: batches.append(loss(*given)) or batches[-1])
    halves = train(observer, work="halves", batch_size=11, gradient_accumulation_steps=2, **still)
    assert len(halves.curve.losses) == len(whole.curve.losses) == 1
    assert halves.curve.losses == pytest.approx(whole.curve.losses, rel=1e-5)
    assert halves.metrics["final_loss"] == halves.curve.losses[0]
    assert abs(float(batches[-1].detach()) - halves.curve.losses[0]) > 1e-4, "the last batch alone would not be seen"


def test_a_training_ends_with_the_same_bytes_and_terms(train, recorder, factors_of, monkeypatch) -> None:
    at_once, later = recorder(), recorder()
    expected = train(at_once, work="a")
    monkeypatch.setattr("lorabank.training.trainer.LossTerms", lambda late: LossTerms(late=True))
    found = train(later, work="b")
    assert all(torch.equal(factors_of(found)[name], tensor) for name, tensor in factors_of(expected).items())
    assert later.values == [{}, *at_once.values[:-1]]
    assert found.metrics == expected.metrics  # the terms of the last step among them


def test_no_checkpoint_is_written_of_a_step_that_diverged(late, train, recorder, monkeypatch, tmp_path) -> None:
    loss, calls = Classification.loss, []

    def breaks(*given):
        calls.append(1)
        return loss(*given) * (math.nan if len(calls) == 3 else 1)

    monkeypatch.setattr(Classification, "loss", breaks)
    with pytest.raises(DivergedError, match="diverged at step 3: loss = nan"):
        train(recorder(), save_steps=1)
    assert {path.name for path in (tmp_path / "work").glob("checkpoint-*")} <= {"checkpoint-1", "checkpoint-2"}


def test_a_last_step_that_diverged_is_refused_when_the_training_ends(late, train, recorder, monkeypatch) -> None:
    monkeypatch.setattr(Classification, "loss", lambda self, model, inputs: model.classifier.weight.sum() * math.nan)
    with pytest.raises(DivergedError, match="diverged at step 1: loss = nan"):
        train(recorder(), batch_size=22, epochs=1)


def test_the_curve_is_that_of_numbers_that_are_read_at_once(train, recorder, late_terms) -> None:
    at_once = train(work="a", save_steps=2)
    late_terms()
    assert train(work="b", save_steps=2).curve == at_once.curve
    with pytest.raises(KeyboardInterrupt):
        train(recorder(stop_after=9), save_steps=2)
    assert train(save_steps=2, resume=True).curve == at_once.curve
