"""``--weights`` as text, and the sum they stand for."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from lorabank.algebra.stack import AdapterStack
from lorabank.compose.base import Member
from lorabank.compose.routers.statistics import fit_statistics
from lorabank.compose.weighted import Weighted, parse_weights
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import ConfigError
from lorabank.core.observer import SilentObserver
from lorabank.core.records import CompositionRecord

TASKS = ["sentiment", "spam", "products"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, [1, 1, 1]),
        ("sentiment=0.7,spam=0.3,products=1", [0.7, 0.3, 1]),
        ("spam=-0.3", [0, -0.3, 0]),
        (" products = 2e-1 , sentiment=+1", [1, 0, 0.2]),
    ],
)
def test_weights(text, expected) -> None:
    assert parse_weights(text, TASKS) == dict(zip(TASKS, expected, strict=True))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sentimant=1", r"'sentimant', which is not a member\. Did you mean 'sentiment'\?"),
        ("spam", r"'spam' is not TASK=NUMBER"),
        ("spam=much", r"'spam=much' is not TASK=NUMBER"),
        ("spam=nan", r"'spam=nan' is not TASK=NUMBER"),
        ("spam=-inf", r"'spam=-inf' is not TASK=NUMBER"),
        ("", r"'', which is not a member"),
        ("spam=1,", r"'', which is not a member"),
        ("spam=1,spam=2", r"names 'spam' twice"),
    ],
)
def test_weights_that_say_nothing(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_weights(text, TASKS)


@pytest.fixture
def stack(make_adapter) -> AdapterStack:
    """An adapter that belongs to no member stands among those of the members."""
    names = {"a": (2, 1.0), "stranger": (2, 1.0), "b": (3, 2.0), "c": (1, 4.0)}
    return AdapterStack.build(
        {name: make_adapter({"m": (6, 9)}, r, alpha, seed=i) for i, (name, (r, alpha)) in enumerate(names.items())}
    )


@pytest.fixture
def members() -> list[Member]:
    statistics = fit_statistics(np.eye(4, dtype=np.float32), 1, 0)
    return [
        Member(task, position, adapter, (adapter,), position - 1, ("no", "yes"), lambda: statistics, 1)
        for task, position, adapter in (("sentiment", 1, "a"), ("spam", 3, "b"), ("products", 4, "c"))
    ]


def load(members: list[Member], stack: AdapterStack, **config) -> Weighted:
    runtime = type("Runtime", (), {"stack": stack})()
    fitted = Weighted.fit(members, ComposeConfig(mode="manual", **config), lambda: runtime, SilentObserver())
    record = CompositionRecord("mix", "manual", (), (), fitted.parameters, {})
    return Weighted.load(record, {}, members, lambda: runtime)


@pytest.mark.parametrize(
    ("stage", "expected"), [(1, [0.5, 0, 0, 0]), (2, [0.5, 0, 0, 0]), (3, [0.5, 0, -2, 0]), (4, [0.5, 0, -2, 1])]
)
def test_a_stage_sums_the_members_it_knows(members, stack, stage: int, expected) -> None:
    composed = load(members, stack, weights="sentiment=0.5,spam=-2,products=1")
    assert composed.plan(stage, ["text"]).weights.tolist() == expected
    total = sum(
        w * float(stack.modules["m"].scale[stack.modules["m"].owner == k][0])
        * stack.modules["m"].B[:, stack.modules["m"].owner == k] @ stack.modules["m"].A[stack.modules["m"].owner == k]
        for k, w in enumerate(expected)
    )  # fmt: skip
    torch.testing.assert_close(composed.adapter(stage).delta("m"), total, rtol=1e-5, atol=1e-5)


def test_compressed_it_answers_with_the_truncated_svd(members, stack) -> None:
    full = load(members, stack).adapter(4).delta("m").double().numpy()
    u, s, vt = np.linalg.svd(full, full_matrices=False)
    plan = load(members, stack, max_rank=2).plan(4, ["text"])
    assert plan.weights is None
    np.testing.assert_allclose(plan.factors.delta("m").numpy(), (u[:, :2] * s[:2]) @ vt[:2], atol=1e-4)

    runtime = type("Runtime", (), {"stack": stack})()
    fitted = Weighted.fit(members, ComposeConfig(max_rank=2), lambda: runtime, SilentObserver())
    expected = np.sqrt(np.sum(s[2:] ** 2) / np.sum(s**2))
    assert fitted.report == {"relative_error": {"m": pytest.approx(expected, abs=1e-6)}}


def test_the_identity_differs_when_the_answers_may(members, stack) -> None:
    identities = [
        repr(load(members, stack, **config).identity(stage))
        for config in ({}, {"weights": "sentiment=1,spam=1,products=0.5"}, {"max_rank": 2}, {"max_rank": 3})
        for stage in (1, 3, 4)
    ]
    # at stages 1 and 3 the weight of the last task does not matter yet
    assert len(set(identities)) == 12 - 2
