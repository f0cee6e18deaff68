"""Optimizers: their steps against the papers' equations in float64, their checkpoints, and what they refuse."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError, IncompatibleError, MissingExtraError
from lorabank.core.shelves import OPTIMIZERS
from lorabank.training.methods import check_optimizer, chosen_methods
from lorabank.training.optimizers.state import joined, parted

HERE = [name for name in OPTIMIZERS.table if OPTIMIZERS.load(name)().refusal("cpu") is None]
GROUPS = ({"weight_decay": 0.1, "lr": 0.02}, {"weight_decay": 0.0})
RATE = 0.01


def gradients(steps: int) -> list[list[np.ndarray]]:
    """For a matrix and a vector."""
    chance = np.random.default_rng(0)
    return [[chance.standard_normal((3, 5)), chance.standard_normal(4)] for _ in range(steps)]


def taken(name: str, given: list[list[np.ndarray]], factors: list[float], **settings: Any) -> list[np.ndarray]:
    """Where the entry of the shelf takes two parameters that begin at 1, its rates times a factor at each step."""
    parameters = [torch.ones(one.shape, requires_grad=True) for one in given[0]]
    groups = [{"params": [one], **group} for one, group in zip(parameters, GROUPS, strict=True)]
    optimizer = OPTIMIZERS.load(name)(**settings).build(groups, RATE)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert rates == [0.02, RATE]
    for step, factor in zip(given, factors, strict=True):
        for parameter, gradient in zip(parameters, step, strict=True):
            parameter.grad = torch.tensor(gradient, dtype=torch.float32)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * factor
        optimizer.step()
    return [one.detach().double().numpy() for one in parameters]


FACTORS = [0.5, 1.0, 1.0, 0.7, 0.2, 0.0, 0.3]


def each_group() -> list[tuple[float, float]]:
    return [(group.get("lr", RATE), group["weight_decay"]) for group in GROUPS]


@pytest.mark.parametrize("settings", [{}, {"beta1": 0.5, "beta2": 0.9, "eps": 1e-3}])
def test_adamw_takes_the_steps_of_its_equation(settings: dict[str, float]) -> None:
    b1, b2, eps = settings.get("beta1", 0.9), settings.get("beta2", 0.999), settings.get("eps", 1e-8)
    given = gradients(len(FACTORS))
    for place, (rate, decay) in enumerate(each_group()):
        x, m, v = np.ones_like(given[0][place]), 0.0, 0.0
        for t, (step, factor) in enumerate(zip(given, FACTORS, strict=True), start=1):
            g, lr = step[place], rate * factor
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            x = x - lr * decay * x - lr * (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        np.testing.assert_allclose(taken("adamw", given, FACTORS, **settings)[place], x, rtol=2e-6)


@pytest.mark.parametrize("settings", [{}, {"clip_threshold": 0.2, "decay_rate": -0.5}, {"beta1": 0.9}])
def test_adafactor_takes_the_steps_of_its_equation(settings: dict[str, float]) -> None:
    clip, power, b1 = (settings.get(k, v) for k, v in (("clip_threshold", 1), ("decay_rate", -0.8), ("beta1", 0)))
    given = gradients(len(FACTORS))
    for place, (rate, decay) in enumerate(each_group()):
        x = np.ones_like(given[0][place])
        R = C = v = m = 0.0
        for t, (step, factor) in enumerate(zip(given, FACTORS, strict=True), start=1):
            g, lr, beta = step[place], rate * factor, 1 - t**power
            if x.ndim == 2:
                R = beta * R + (1 - beta) * (g**2 + 1e-30).mean(1)
                C = beta * C + (1 - beta) * (g**2 + 1e-30).mean(0)
                u = g / np.sqrt(np.outer(R, C) / R.mean())
            else:
                v = beta * v + (1 - beta) * (g**2 + 1e-30)
                u = g / np.sqrt(v)
            update = lr * u / max(1, np.sqrt((u**2).mean()) / clip)
            m = b1 * m + (1 - b1) * update
            x = x - lr * decay * x - (m if b1 else update)
        np.testing.assert_allclose(taken("adafactor", given, FACTORS, **settings)[place], x, rtol=5e-6)


@pytest.mark.by_turns
@pytest.mark.parametrize("name", HERE)
def test_a_resumed_training_takes_the_steps_of_an_uninterrupted_one(train, factors_of, recorder, name: str) -> None:
    settings = {"save_steps": 2, "optimizer": name, "weight_decay": 0.01, "lr_scheduler_type": "cosine", "warmup": 3}
    whole = train(work="whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        train(recorder(stop_after=9), **settings)
    resumed = train(resume=True, **settings)
    for tensor, other in zip(factors_of(resumed).values(), factors_of(whole).values(), strict=True):
        assert torch.equal(tensor, other)
    assert resumed.head_digest == whole.head_digest
    assert resumed.curve == whole.curve
    plain = train(work="plain", **(settings | {"optimizer": "adamw"}))
    assert (plain.head_digest == whole.head_digest) == (name == "adamw")


def test_a_checkpoint_of_another_optimizer_is_refused(train, recorder, tmp_path) -> None:
    """An installed optimizer may have other defaults in another version; older checkpoints do not say."""
    with pytest.raises(KeyboardInterrupt):
        train(recorder(stop_after=3), save_steps=2)
    with pytest.raises(IncompatibleError, match=r"^checkpoint-2 .* another optimizer: beta1 = 0\.9 and not 0\.5$"):
        train(save_steps=2, resume=True, set=("adamw.beta1=0.5",))
    with pytest.raises(IncompatibleError, match="another optimizer: class = 'AdamW' and not 'Adafactor'") as caught:
        train(save_steps=2, resume=True, optimizer="adafactor")
    assert caught.value.unchanged == "the interrupted run is still there"
    assert train(save_steps=2, resume=True, max_steps=4).steps == 4


def test_settings_reach_the_optimizer_and_no_other_method() -> None:
    config = TrainConfig(optimizer="adafactor", set=("adafactor.clip_threshold=0.5", "adamw.beta1=0.1"))
    assert chosen_methods(config).optimizer == OPTIMIZERS.load("adafactor")(clip_threshold=0.5)
    with pytest.raises(ConfigError, match="optimizer adamw: there is no setting 'clip_threshold', which is one of"):
        chosen_methods(TrainConfig(set=("adamw.clip_threshold=0.5",)))


def test_parted_state_is_put_together_again() -> None:
    state = {0: {"step": 3, "quant": {"qmap": torch.ones(2), "kind": "dynamic"}}, 4: {"exp_avg": torch.zeros(1)}}
    tensors, plain = parted(state)
    assert tensors.keys() == {"0.quant.qmap", "4.exp_avg"}
    assert plain == {"0.step": 3, "0.quant.kind": "dynamic"}
    again = joined(tensors, plain)
    assert again.keys() == state.keys()
    assert again[0]["quant"]["qmap"] is state[0]["quant"]["qmap"]
    assert (again[0]["step"], again[0]["quant"]["kind"]) == (3, "dynamic")


# ------------------------------------------------------------------------------------------------- bitsandbytes


@pytest.fixture
def bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """A package of this name, whose optimizers only note what they are given."""
    made: list[tuple[str, dict[str, Any]]] = []

    def noting(name: str) -> Any:
        return lambda groups, **given: made.append((name, {"groups": groups, **given}))

    names = ("AdamW8bit", "PagedAdamW8bit", "PagedAdamW32bit")
    package, optim = ModuleType("bitsandbytes"), ModuleType("bitsandbytes.optim")
    vars(optim).update({name: noting(name) for name in names})
    package.optim = optim  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "bitsandbytes", package)
    monkeypatch.setattr("lorabank.training.optimizers.bitsandbytes.find_spec", lambda name: object())
    return made


@pytest.mark.parametrize("name", ["adamw-8bit", "adamw-paged"])
def test_without_the_package_or_a_gpu_it_is_refused(monkeypatch, bitsandbytes, name: str) -> None:
    with pytest.raises(ConfigError, match="works on a GPU alone") as caught:
        check_optimizer(TrainConfig(optimizer=name, device="cpu"))
    assert (caught.value.hint, caught.value.unchanged) == ("leave --optimizer out", "nothing was changed")
    assert chosen_methods(TrainConfig(optimizer=name)).optimizer.refusal("cuda") is None
    monkeypatch.setattr("lorabank.training.optimizers.bitsandbytes.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="needs the package bitsandbytes, which is not installed") as missing:
        check_optimizer(TrainConfig(optimizer=name, device="cpu"))
    assert missing.value.hint == 'pip install "bitsandbytes>=0.45"'


@pytest.mark.parametrize(
    ("name", "settings", "kind", "more"),
    [
        ("adamw-8bit", {}, "AdamW8bit", {"min_8bit_size": 4096}),
        ("adamw-8bit", {"paged": True, "min_8bit_size": 64}, "PagedAdamW8bit", {"min_8bit_size": 64}),
        ("adamw-paged", {"beta2": 0.95}, "PagedAdamW32bit", {}),
    ],
)
def test_the_optimizer_of_the_package_gets_the_settings(bitsandbytes, name, settings, kind, more) -> None:
    groups = [{"params": [], "weight_decay": 0.1}]
    OPTIMIZERS.load(name)(**settings).build(groups, 1e-3)
    betas = 0.9, settings.get("beta2", 0.999)
    assert bitsandbytes == [(kind, {"groups": groups, "lr": 1e-3, "betas": betas, "eps": 1e-8, **more})]
