"""Warm-up, and the number of steps, against transformers' own schedules; and runs that end within an epoch."""

from __future__ import annotations

import pytest
import torch
import transformers
from transformers import get_scheduler

from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.training.planning import check_warmup, few_steps, planned_steps

STEPS = 18


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
@pytest.mark.parametrize(("warmup", "steps"), [(0.0, 0), (5.0, 5), (0.2, 4), (1.0, 1)])
def test_the_learning_rate_of_each_step_is_that_of_transformers(
    train, schedule: str, warmup: float, steps: int
) -> None:
    trained = train(lr_scheduler_type=schedule, warmup=warmup, learning_rate=0.01)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.01)
    name = "constant_with_warmup" if schedule == "constant" and steps else schedule
    oracle = get_scheduler(name, optimizer, num_warmup_steps=steps, num_training_steps=STEPS)
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        oracle.step()
    assert trained.curve.steps == tuple(range(1, STEPS + 1))
    assert trained.curve.learning_rates == pytest.approx(expected, rel=1e-12, abs=0)
    assert (expected[0] == 0) == (steps > 0)


@pytest.mark.parametrize("most", [4, 6, 20])
def test_max_steps_stands_in_the_place_of_epochs(train, recorder, most: int) -> None:
    observer = recorder()
    trained = train(observer, max_steps=most, epochs=1)
    assert trained.steps == len(observer.values) == most
    assert observer.started == [("training (olora)", most)]


def test_the_first_steps_do_not_depend_on_where_the_training_ends(train, factors_of, recorder) -> None:
    """With a constant rate a training of 8 steps is the first 8 of 18; the order of the rows is the same."""
    long, short = recorder(), recorder()
    train(long, work="long")
    train(short, work="short", max_steps=8)
    assert short.values == long.values[:8]


@pytest.mark.parametrize("ends", [{"epochs": 0.5}, {"max_steps": 8}, {"max_steps": 6}, {}])
def test_a_run_that_is_resumed_at_its_last_step_makes_no_more(train, job, factors_of, recorder, ends) -> None:
    whole = train(work="run", save_steps=2, **ends)
    again = recorder()
    resumed = train(again, work="run", save_steps=2, resume=True, **ends)
    assert again.values == []
    assert resumed.steps == whole.steps
    assert all(torch.equal(one, factors_of(whole)[name]) for name, one in factors_of(resumed).items())
    assert resumed.head_digest == whole.head_digest
    assert resumed.curve == whole.curve
    final = {name: value for name, value in whole.metrics.items() if name.startswith("final_")}
    assert final
    assert {name: resumed.metrics[name] for name in final} == final


def test_what_is_planned_is_what_is_trained() -> None:
    assert planned_steps(100, TrainConfig(batch_size=8, epochs=2)) == 26
    assert planned_steps(100, TrainConfig(batch_size=8, epochs=2, max_steps=7)) == 7
    told = few_steps(100, TrainConfig(batch_size=8, max_steps=7))
    assert told == "7 optimizer steps are few, and a task is seldom learnt in fewer than 50: --max-steps 50 or more"
    assert few_steps(100, TrainConfig(batch_size=8, max_steps=50)) is None


@pytest.mark.parametrize(("warmup", "steps"), [(18, 18), (400.0, 18), (0.9, 9), (0.1, 1), (1.0, 1)])
def test_a_warm_up_that_is_the_whole_training_is_refused(warmup: float, steps: int) -> None:
    """As transformers counts it, and one step more is enough."""
    arguments = transformers.TrainingArguments("-", warmup_steps=warmup, report_to="none")
    taken = arguments.get_warmup_steps(steps)
    assert taken >= steps
    with pytest.raises(
        ConfigError, match=rf"^--warmup {warmup:g} takes {taken} steps?, and the training has {steps}:"
    ):
        check_warmup(steps, TrainConfig(warmup=warmup))
    more = next(one for one in range(steps, 500) if arguments.get_warmup_steps(one) < one)
    check_warmup(more, TrainConfig(warmup=warmup))
    check_warmup(1, TrainConfig())


def test_a_training_is_refused_whose_warm_up_is_as_long(train, recorder, tmp_path) -> None:
    observer = recorder()
    with pytest.raises(ConfigError, match="the learning rate would never reach its value"):
        train(observer, warmup=18)
    assert observer.started == []
