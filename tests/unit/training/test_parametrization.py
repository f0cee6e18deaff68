"""What is trained need not be A and B: gradients reach it, its hooks are called, and checkpoints hold all of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core import shelf
from lorabank.core.errors import ConfigError
from lorabank.core.shelves import VARIANTS
from lorabank.training.checkpoints import read_facts, read_tensors
from lorabank.training.strategies.inflora import FixedA
from lorabank.training.strategies.projected import Projected
from lorabank.training.variants.base import FreeFactors, Parametrization, Step, Variant

MODULES = {f"bert.encoder.layer.{i}.attention.self.{part}": (32, 32) for i in range(2) for part in ("query", "value")}
QUERY = next(iter(MODULES))


class Ranked(FreeFactors):
    """``B diag(mask e) A``: the smallest e of a site falls out after every second step; L1 on e."""

    def __init__(self, start: LoraFactors) -> None:
        super().__init__(start)
        self.e = nn.ParameterList(a.new_ones(len(a)) for a in start.A.values())
        self.register_buffer("mask", torch.ones(len(self.e), len(self.e[0])))
        self.called: list[tuple[str, Step]] = []

    def factors(self) -> LoraFactors:
        free = super().factors()
        rows = zip(free.A.items(), self.e, self.mask, strict=True)
        return replace(free, A={site: (kept * e)[:, None] * a for (site, a), e, kept in rows})

    def groups(self, learning_rate: float) -> list[dict[str, Any]]:
        return [{"params": list(self.e), "lr": 3 * learning_rate}]

    def loss(self, step: Step) -> Tensor:
        self.called.append(("loss", step))
        return 0.01 * torch.stack([e.abs().sum() for e in self.e]).sum()

    def before_step(self, step: Step) -> None:
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        self.gradients = [parameter.grad.clone() for parameter in trained]
        self.called.append(("before", step))

    def after_step(self, step: Step) -> None:
        self.called.append(("after", step))
        if step.number % 2 == 0:
            for e, mask in zip(self.e, self.mask, strict=True):
                mask[(e.detach().abs() / mask.clamp_min(1e-9)).argmin()] = 0


@dataclass(frozen=True)
class RankedVariant(Variant):
    made: ClassVar[list[Ranked]] = []

    def parametrize(self, context, start) -> Parametrization:
        self.made.append(Ranked(start.begin(context)))
        return self.made[-1]


load = shelf.resolve_name


@pytest.fixture
def ranked(monkeypatch: pytest.MonkeyPatch) -> list[Ranked]:
    monkeypatch.setattr(shelf, "resolve_name", lambda path: RankedVariant if path == "test:Ranked" else load(path))
    monkeypatch.setitem(VARIANTS.table, "ranked", "test:Ranked")
    monkeypatch.setattr(RankedVariant, "made", [])
    return RankedVariant.made


@pytest.mark.parametrize("strategy", ["olora", "olora-projected"])
def test_hooks_are_called_once_a_step_in_their_order(ranked: list[Ranked], train, make_adapter, strategy: str) -> None:
    """22 rows in batches of 4, two of them a step: three steps; inside of a strategy's wrapper too."""
    past = {"earlier": AdapterStack.build({"a": make_adapter(MODULES, 12, 1.0, seed=1)}), "context": ("a",)}
    trained = train(variant="ranked", strategy=strategy, r=4, epochs=1, gradient_accumulation_steps=2, **past)
    assert trained.steps == 3
    expected = [(kind, Step(number, 3)) for number in (1, 2, 3) for kind in ("loss", "before", "after")]
    assert ranked[0].called == expected
    assert trained.metrics["final_variant"] == pytest.approx(0.01 * 4 * 4, rel=0.1)
    for name in MODULES:  # what fell out is not in the fold
        assert int((trained.factors.A[name] == 0).all(1).sum()) == 1
        assert bool(trained.factors.B[name].any())


def test_checkpoints_hold_what_is_trained_and_every_buffer(ranked, train, recorder, factors_of, tmp_path) -> None:
    settings = {"variant": "ranked", "r": 4, "epochs": 1, "save_steps": 2}
    whole = factors_of(train(work="whole", **settings))
    with pytest.raises(KeyboardInterrupt):
        train(recorder(stop_after=3), work="cut", **settings)
    stored = read_tensors(tmp_path / "cut" / "checkpoint-2", "trainable")
    assert stored["parametrization.mask"].sum() == 4 * 3
    assert "parametrization.e.0" in stored
    assert not any("lora_A" in name for name in stored)  # it comes from e and the free A
    resumed = factors_of(train(work="cut", resume=True, **settings))
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_gradients_are_those_of_one_graph(ranked, job, recorder) -> None:
    """The first step's: of e against those of A, which autograd chains by hand."""
    from lorabank.training.run import train_adapter

    with pytest.raises(KeyboardInterrupt):
        train_adapter(job(variant="ranked", r=4, max_grad_norm=0.0, learning_rate=1e-30), recorder(stop_after=1))
    n = len(MODULES)
    of_A, of_B, of_e = (ranked[0].gradients[k * n : (k + 1) * n] for k in range(3))
    for k in range(n):
        assert torch.allclose(of_e[k], torch.tensor(0.01))  # B = 0: the L1 alone pulls
        assert bool(of_B[k].any())
        assert not of_A[k].any()


@pytest.mark.parametrize("strategy", ["olora-projected", "inflora"])
def test_strategies_wrap_any_parametrization(ranked, train, make_adapter, strategy: str) -> None:
    """Their promise holds for rows that are products, and both parameters learn."""
    before = AdapterStack.build({"a": make_adapter(MODULES, 12, 1.0, seed=1)})
    settings = {"variant": "ranked", "r": 4, "learning_rate": 1e-2, "epochs": 1}
    trained = train(strategy=strategy, earlier=before, context=("a",), **settings)
    for name in MODULES:
        if strategy == "olora-projected":
            assert float((before.modules[name].A @ trained.factors.A[name].mT).abs().max()) < 1e-5
            assert bool(trained.factors.A[name].any())
        assert bool(trained.factors.B[name].any())
    fixed = not any(parameter.requires_grad for parameter in (*ranked[0].A, *ranked[0].e))
    assert fixed == (strategy == "inflora")


class OnlyA(Parametrization):
    """B is drawn and stays: the mirror image of LoRA-FA."""

    def __init__(self) -> None:
        super().__init__()
        self.A, self.B = nn.Parameter(torch.randn(2, 8)), torch.randn(5, 2)

    def factors(self) -> LoraFactors:
        return LoraFactors({"x": self.A}, {"x": self.B}, {"x": 1.0})


def test_a_fixed_A_wants_a_B_that_learns() -> None:
    with pytest.raises(ConfigError, match="no B that is trained apart from A"):
        FixedA(OnlyA())


def test_a_projected_A_passes_its_gradient_through_the_projection() -> None:
    inner = OnlyA()
    basis = torch.linalg.qr(torch.randn(8, 3))[0].T
    slope = torch.randn(2, 8)
    (Projected(inner, {"x": basis}).factors().A["x"] * slope).sum().backward()
    torch.testing.assert_close(inner.A.grad, slope - slope @ basis.T @ basis)


@pytest.mark.parametrize("strategy", ["olora", "olora-projected", "inflora"])
@pytest.mark.parametrize(
    ("variant", "decayed", "apart"),
    [("lora", {"A", "B"}, []), ("lora-plus", {"A"}, [("B", 16e-3)]), ("ranked", {"A", "B"}, [("e", 3e-3)])],
)
def test_the_optimizer_has_the_groups_of_the_variant(
    ranked, train, recorder, make_adapter, tmp_path, strategy: str, variant: str, decayed, apart
) -> None:
    """All but the head's bias decay; what the variant trains apart decays too, at its own rate, in any wrapper."""
    past = {"earlier": AdapterStack.build({"a": make_adapter(MODULES, 4, 1.0, seed=1)}), "context": ("a",)}
    settings = {"variant": variant, "strategy": strategy, "r": 4, "weight_decay": 0.1, "learning_rate": 1e-3}
    with pytest.raises(KeyboardInterrupt):
        train(recorder(stop_after=2), save_steps=1, **settings, **past)
    stored = read_facts(tmp_path / "work" / "checkpoint-1", "optimizer")
    found = [(len(group["params"]), group["weight_decay"], group["initial_lr"]) for group in stored]
    free = decayed - {"A"} if strategy == "inflora" else decayed  # its A is fixed
    n = len(MODULES)
    assert found[:2] == [(n * len(free) + 1, 0.1, 1e-3), (1, 0.0, 1e-3)]
    assert found[2:] == [(n, 0.1, pytest.approx(rate)) for _, rate in apart]


def test_a_continued_adapter_with_a_row_gain_is_refused(train, make_adapter) -> None:
    """Its A and B would be continued without what its magnitudes have learnt."""
    low = make_adapter(MODULES, 2, 1.0, seed=1)
    gained = replace(low, gain={name: torch.full((32,), 1.1) for name in MODULES})
    with pytest.raises(ConfigError, match=r"which has a row gain \(DoRA\)"):
        train(strategy="seqlora", earlier=AdapterStack.build({"a": gained}), continued="a")
