"""The projected adapter reads nothing that earlier adapters read, from the first step to the last."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorabank.algebra.stack import AdapterStack
from lorabank.core.errors import ConfigError

MODULES = {f"bert.encoder.layer.{i}.attention.self.{part}": (32, 32) for i in range(2) for part in ("query", "value")}
SETTINGS = {"context": ("a", "b"), "learning_rate": 1e-2, "weight_decay": 0.1}


@pytest.fixture
def stack(make_adapter) -> AdapterStack:
    """17 rows in the first layer's modules, twelve in the second's, of 32 inputs."""
    some = {name: shape for name, shape in MODULES.items() if ".0." in name}
    return AdapterStack.build({"a": make_adapter(MODULES, 12, 1.0, seed=1), "b": make_adapter(some, 5, 1.0, seed=2)})


def largest_product(stack: AdapterStack, factors) -> float:
    products = [stack.modules[name].A.double().numpy() @ factors.A[name].double().numpy().T for name in MODULES]
    return max(float(np.abs(product).max()) for product in products)


def test_after_training_the_new_rows_are_orthogonal_to_all_earlier_ones(train, stack) -> None:
    short, long = (
        train(earlier=stack, strategy="olora-projected", epochs=epochs, work=f"w{epochs}", **SETTINGS)
        for epochs in (0.2, 3)
    )
    free = train(earlier=stack, strategy="inclora", work="free", **SETTINGS)
    assert largest_product(stack, long.factors) <= 1e-5
    assert largest_product(stack, free.factors) > 0.1
    for name in MODULES:  # it was trained, in both factors, and is no smaller adapter
        assert float((long.factors.A[name] - short.factors.A[name]).abs().max()) > 1e-3
        assert bool(long.factors.B[name].any())
        assert torch.linalg.matrix_rank(long.factors.A[name]) == 2
    assert long.penalties == {}
    assert max(long.metrics["overlap"].values()) < 1e-8


def test_a_resumed_run_gives_the_same_bytes(train, factors_of, recorder, stack) -> None:
    settings = {**SETTINGS, "earlier": stack, "strategy": "olora-projected", "save_steps": 2, "epochs": 1}
    whole = factors_of(train(work="whole", **settings))
    with pytest.raises(KeyboardInterrupt):
        train(recorder(stop_after=3), work="cut", **settings)
    resumed = factors_of(train(work="cut", resume=True, **settings))
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_first_task_is_that_of_any_strategy(train, factors_of) -> None:
    projected, plain = (
        factors_of(train(strategy=name, epochs=0.4, work=name)) for name in ("olora-projected", "inclora")
    )
    assert all(torch.equal(projected[name], plain[name]) for name in plain)


def test_a_full_module_is_refused(train, make_adapter) -> None:
    name = next(iter(MODULES))
    full = AdapterStack.build(
        {"a": make_adapter(MODULES, 8, 1.0), "b": make_adapter({name: (32, 32)}, 24, 1.0, seed=1)}
    )
    with pytest.raises(ConfigError, match=rf"no direction is left .* all 32 inputs of {name}") as caught:
        train(earlier=full, context=("a", "b"), strategy="olora-projected")
    assert "--strategy olora" in caught.value.hint
