"""The loss of a step: task loss averaged over accumulated batches, each penalty once, nothing that is not finite."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorabank.algebra.stack import AdapterStack
from lorabank.core import shelf
from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError, DivergedError
from lorabank.core.shelves import PENALTIES
from lorabank.models.bases.loading import describe_base
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.tasks.classification import Classification
from lorabank.training.checkpoints import read_tensors
from lorabank.training.penalties.base import Penalty
from lorabank.training.planning import resolve_penalties
from lorabank.training.run import train_adapter
from lorabank.training.strategies.presets import OLORA

MODULES = {f"bert.encoder.layer.{i}.attention.self.{part}": (32, 32) for i in range(2) for part in ("query", "value")}


class EverySum(Penalty):
    """A penalty whose gradient is 1 at every entry of A and B."""

    default_weight = 1.0

    def __call__(self, groups) -> torch.Tensor:
        return torch.stack([group.A_new.sum() + group.B_new.sum() for group in groups]).sum()


@pytest.fixture
def every_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelf, "resolve_name", lambda path: EverySum if path == "test:EverySum" else load(path))
    monkeypatch.setitem(PENALTIES.table, "every-sum", "test:EverySum")


load = shelf.resolve_name


def momentum(train, recorder, tmp_path, *, steps: int, **config) -> dict[int, torch.Tensor]:
    """AdamW's first moment after some steps, by number of the parameter: 0.1 * sum_t 0.9^(steps - t) gradient_t."""
    with pytest.raises(KeyboardInterrupt):
        train(recorder(stop_after=steps + 1), save_steps=1, max_grad_norm=0.0, **config)
    stored = read_tensors(tmp_path / "work" / f"checkpoint-{steps}", "optimizer")
    return {int(key.partition(".")[0]): value for key, value in stored.items() if key.endswith(".exp_avg")}


# Six batches an epoch: four in one step leave two for the next.
@pytest.mark.parametrize(("batches", "steps"), [(1, 1), (3, 1), (6, 2), (4, 2)])
def test_a_penalty_counts_once_per_step(every_sum, monkeypatch, train, recorder, tmp_path, batches, steps) -> None:
    monkeypatch.setattr(Classification, "loss", lambda self, model, inputs: 0 * model.classifier.weight.sum())
    found = momentum(
        train,
        recorder,
        tmp_path,
        steps=steps,
        gradient_accumulation_steps=batches,
        penalty="every-sum",
        penalty_weight=0.3,
    )
    expected = 0.3 * sum(0.1 * 0.9**t for t in range(steps))
    adapters = [value for value in found.values() if value.shape in ((2, 32), (32, 2)) and value.any()]
    assert len(adapters) == 2 * len(MODULES)
    for value in adapters:
        torch.testing.assert_close(value, torch.full_like(value, expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize(("batches", "steps"), [(1, 1), (3, 1), (6, 2), (4, 2)])
def test_the_task_loss_is_the_mean_over_accumulated_batches(
    monkeypatch, train, recorder, tmp_path, batches, steps
) -> None:
    monkeypatch.setattr(Classification, "loss", lambda self, model, inputs: model.classifier.weight.sum())
    found = momentum(train, recorder, tmp_path, steps=steps, gradient_accumulation_steps=batches)
    (head,) = [value for value in found.values() if value.any()]
    expected = sum(0.1 * 0.9**t for t in range(steps))
    torch.testing.assert_close(head, torch.full((2, 32), expected), rtol=1e-5, atol=0)


def test_the_terms_are_reported_and_weighed(train, recorder, make_adapter) -> None:
    stack = AdapterStack.build({"a": make_adapter(MODULES, 3, 1.0, seed=1)})
    observer = recorder()
    trained = train(observer, earlier=stack, learning_rate=1e-30, epochs=1, set=("lambda_l2=0.01",))
    assert trained.penalties == {"orthogonal": 0.5, "norm": 0.01}
    assert len(observer.values) == trained.steps == 6
    # no parameter moved, so the penalties can be recomputed from what came out
    expected = sum(
        float(np.abs(stack.modules[name].A.double().numpy() @ trained.factors.A[name].double().numpy().T).sum())
        for name in MODULES
    )
    lengths = sum(float(np.linalg.norm(trained.factors.A[name].numpy())) for name in MODULES)
    for values in observer.values:
        assert set(values) == {"loss", "orthogonal", "norm"}
        assert values["orthogonal"] == pytest.approx(expected, rel=1e-5)
        assert values["norm"] == pytest.approx(lengths, rel=1e-5)
    assert trained.metrics["final_orthogonal"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("penalty", ["orthogonal", "orthogonal-normalized"])
def test_a_penalty_keeps_the_new_adapter_apart(train, make_adapter, penalty: str) -> None:
    stack = AdapterStack.build({"a": make_adapter(MODULES, 12, 1.0, seed=1)})
    free, held = (
        train(earlier=stack, penalty=penalty, penalty_weight=weight, epochs=20, work=f"w{weight}", learning_rate=1e-2)
        for weight in (0.0, 5.0)
    )
    assert free.metrics["overlap"]["a"] > 0.2
    assert held.metrics["overlap"]["a"] < 0.5 * free.metrics["overlap"]["a"]


def test_a_weight_of_zero_asks_for_no_penalty(every_sum, monkeypatch, train, recorder) -> None:
    monkeypatch.setattr(EverySum, "__call__", lambda self, groups: pytest.fail("was asked"))
    observer = recorder()
    train(observer, penalty="every-sum", penalty_weight=0.0, epochs=0.2)
    assert set(observer.values[0]) == {"loss"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"orthogonal": 0.5}),
        ({"penalty_weight": 2.0}, {"orthogonal": 2.0}),
        ({"penalty": "none"}, {}),
        ({"penalty": "orthogonal-normalized"}, {"orthogonal-normalized": 1.0}),
        ({"set": ("lambda_l2=0.1",)}, {"orthogonal": 0.5, "norm": 0.1}),
        ({"penalty": "frobenius", "set": ("lambda_l2=0.1",)}, {"frobenius": 0.5, "norm": 0.1}),
        ({"penalty": "orthogonal-normalized", "set": ("lambda_l2=0",)}, {"orthogonal-normalized": 1.0}),
        ({"penalty": "norm", "penalty_weight": 0.1}, {"norm": 0.1}),
    ],
)
def test_which_penalties_the_settings_ask_for(settings, expected) -> None:
    assert {name: weight for name, weight, _ in resolve_penalties(TrainConfig(**settings), OLORA)} == expected


@pytest.mark.parametrize("penalty", ["none", "l1", "norm"])
def test_a_weight_of_norms_beside_a_penalty_without_them_is_refused(penalty: str) -> None:
    old = {"lambda_l2": 0.1}
    with pytest.warns(DeprecationWarning, match="write --set lambda_l2=0.1"):
        config = TrainConfig(penalty=penalty, **old)
    with pytest.raises(ConfigError, match="there is no setting 'lambda_l2', which is one of penalty orthogonal, "):
        resolve_penalties(config, OLORA)


def test_a_weight_without_a_penalty_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"penalty_weight = 0\.5 has no penalty"):
        resolve_penalties(TrainConfig(penalty="none", penalty_weight=0.5), OLORA)


@pytest.fixture
def broken_base(tmp_path, save_base):
    """A base with an infinite weight: every logit is NaN."""
    from transformers import AutoModel

    folder = save_base(tmp_path / "broken")
    model = AutoModel.from_pretrained(folder)
    with torch.no_grad():
        model.encoder.layer[0].output.dense.weight[0, 0] = float("inf")
    model.save_pretrained(folder)
    return describe_base(resolve_base(str(folder)))


def test_a_broken_base_is_named(job, recorder, broken_base) -> None:
    with pytest.raises(DivergedError, match=r"in its tensor bert\.encoder\.layer\.0\.output\.dense\.weight"):
        train_adapter(job(on=broken_base), recorder())


def test_a_loss_that_is_not_finite_stops_the_run(job, recorder, monkeypatch) -> None:
    loss = Classification.loss
    monkeypatch.setattr(Classification, "loss", lambda *given: loss(*given) * float("nan"))
    observer = recorder()
    with pytest.raises(DivergedError, match=r"diverged at step 1: loss = nan") as caught:
        train_adapter(job(), observer)
    assert caught.value.exit_code == 11
    assert caught.value.hint == "lower --learning-rate, or raise --batch-size"
    assert observer.finished == 1


def test_a_loss_that_grows_beyond_all_bounds_stops_the_run(train, recorder) -> None:
    with pytest.raises(DivergedError, match="diverged at step"):
        train(recorder(), learning_rate=1e30)


def test_a_last_step_that_breaks_the_adapter_stops_the_run(train, recorder) -> None:
    """No loss is computed after the last step, so the tensors themselves are looked at."""
    with pytest.raises(DivergedError, match="is not finite"):
        train(recorder(), batch_size=22, epochs=1, learning_rate=1e39)
