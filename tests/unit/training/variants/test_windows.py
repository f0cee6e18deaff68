"""Variants that move the weight while they train, in float64, against their published updates on dense weights."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lorabank.algebra.stack import AdapterStack
from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError
from lorabank.models.bases.sites import site_of
from lorabank.training.layers.layer import attach_factors
from lorabank.training.layers.live import Live
from lorabank.training.methods import chosen_methods
from lorabank.training.variants.base import Step
from lorabank.training.variants.windows import begun, over

R, ALPHA, RATE, S = 2, 6.0, 0.05, 3.0
NAMES = ("layers.0", "layers.1", "layers.2")
SIZES = ((6, 9), (9, 5), (5, 5))  # a weight that is higher than wide, a wider one, a square


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(d_in, d_out) for d_in, d_out in SIZES)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return x


def plain() -> Net:
    torch.manual_seed(1)
    return Net().double()


def loss(model: nn.Module, number: int) -> Tensor:
    """Of step ``number``: other rows in each."""
    generator = torch.Generator().manual_seed(number)
    x, y = (torch.randn(8, d, generator=generator, dtype=torch.float64) for d in (6, 5))
    return (model(x) - torch.tanh(y)).square().mean()


class Run:
    """A variant on `Net`, with the hooks as the trainer calls them."""

    def __init__(self, variant: str, total: int, **settings: Any) -> None:
        given = tuple(f"{variant}.{key}={value}" for key, value in settings.items())
        self.config = TrainConfig(r=R, lora_alpha=ALPHA, variant=variant, strategy="isolated", set=given)
        methods = chosen_methods(self.config)
        self.model, self.total, self.number = plain().requires_grad_(False), total, 0
        sites = [site_of(self.model, name) for name in NAMES]
        context: Any = SimpleNamespace(sites=sites, targets=NAMES, config=self.config, scaling=S, initial=None)
        torch.manual_seed(5)
        self.parametrization = methods.variant.parametrize(context, methods.start).double()
        layers = attach_factors(self.model, self.parametrization.factors(), 0.0)
        self.live = Live(self.model, layers, self.parametrization)
        apart = self.parametrization.groups(RATE)
        taken = {id(p) for group in apart for p in group["params"]}
        free = [p for p in self.parametrization.parameters() if id(p) not in taken]
        groups = [{"params": free}, *apart] if free else apart
        self.optimizer = torch.optim.AdamW(groups, lr=RATE, weight_decay=0.0)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda n: 1.0)

    def begin(self) -> None:
        self.parametrization.resume(Step(self.number + 1, self.total), self.optimizer)
        self.live.refresh()

    def step(self) -> None:
        self.number += 1
        step = Step(self.number, self.total)
        self.optimizer.zero_grad()
        loss(self.model, self.number).backward()
        self.parametrization.after_loss(step)
        self.live.pull()
        self.parametrization.before_step(step)
        self.optimizer.step()
        self.schedule.step()
        self.parametrization.after_step(step)
        self.live.refresh()

    def train(self, after: Callable[[int], None] = lambda number: None) -> Run:
        self.begin()
        for _ in range(self.total):
            self.step()
            after(self.number)
        return self

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint holds of the parametrization."""
        parts = [*self.parametrization.named_parameters(), *self.parametrization.named_buffers()]
        return {name: tensor.detach().clone() for name, tensor in parts}

    def delta(self) -> list[Tensor]:
        """The fold as dense changes of the weights, in order."""
        fold = self.parametrization.fold()
        sizes = dict(zip(NAMES, SIZES, strict=True))
        none = {name: torch.zeros(d_out, d_in).double() for name, (d_in, d_out) in sizes.items()}
        found = {name: (fold.scaling[name] * fold.B[name] @ fold.A[name]).detach() for name in fold.A}
        return list((none | found).values())


def folded(run: Run) -> Net:
    """The untouched net with a fold in its weights."""
    model = plain()
    with torch.no_grad():
        for layer, delta in zip(model.layers, run.delta(), strict=True):
            layer.weight += delta
    return model


def same(found: Tensor, expected: Tensor, to: float = 1e-10) -> None:
    torch.testing.assert_close(found.detach(), expected.detach(), rtol=to, atol=to)


MOVING = [
    ("relora", {"restarts": 3}),
    ("relora", {"restarts": 2, "pruning": "magnitude", "pruned": 0.5}),
    ("cola", {}),
    ("xgblora", {}),
    ("delta-lora", {}),
    ("delta-lora", {"after": 0}),
    ("galore", {}),
    ("flora", {"windows": 3}),
]


@pytest.mark.parametrize("total", [1, 2, 3, 13, 24])
@pytest.mark.parametrize(("variant", "settings"), MOVING)
def test_what_answers_is_the_fold_after_every_step(variant: str, settings: dict[str, Any], total: int) -> None:
    run = Run(variant, total, **settings)
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    same(run.model(x), plain()(x))

    def agrees(number: int) -> None:
        same(run.model(x), folded(run)(x))

    run.train(agrees)
    assert float((run.model(x) - plain()(x)).detach().abs().max()) > 1e-3
    most = chosen_methods(run.config).variant.rank(R)
    assert all(len(a) <= most for a in run.parametrization.fold().A.values())
    if total == 24 and variant != "xgblora":
        assert all(len(a) == most for a in run.parametrization.fold().A.values())


@pytest.mark.parametrize(("variant", "settings"), MOVING)
def test_a_run_that_goes_on_is_the_run_that_was_not_stopped(variant: str, settings: dict[str, Any]) -> None:
    """From every step of twelve on: at the end, in the middle and at the first step of a window."""
    whole, kept = Run(variant, 12, **settings), {}

    def keep(number: int) -> None:
        state = whole.optimizer.state_dict()
        kept[number] = whole.state(), {"state": dict(state["state"]), "param_groups": state["param_groups"]}
        kept[number] = torch.utils._pytree.tree_map(lambda t: t.clone() if isinstance(t, Tensor) else t, kept[number])

    whole.train(keep)
    for number in range(1, 12):
        other = Run(variant, 12, **settings)
        with torch.no_grad():
            for name, tensor in other.state().items():
                assert tensor.shape == kept[number][0][name].shape
            parts = [*other.parametrization.named_parameters(), *other.parametrization.named_buffers()]
            for name, tensor in parts:
                tensor.copy_(kept[number][0][name])
        other.optimizer.load_state_dict(kept[number][1])
        other.number = number
        other.begin()
        while other.number < 12:
            other.step()
        for found, expected in zip(other.delta(), whole.delta(), strict=True):
            assert torch.equal(found, expected)


@pytest.mark.parametrize(("variant", "settings"), MOVING)
def test_any_earlier_step_can_be_put_back(variant: str, settings: dict[str, Any]) -> None:
    """Behind the last step, in any order: the net answers as it did after that step, and so does the fold."""
    run, x = Run(variant, 12, **settings), torch.randn(4, 6, dtype=torch.float64)
    kept: dict[int, tuple[dict[str, Tensor], Tensor, list[Tensor]]] = {}
    run.train(lambda number: kept.update({number: (run.state(), run.model(x).detach(), run.delta())}))
    for number in (5, 11, 1, 3, 8, 2, 12, 4, 6):
        state, answers, deltas = kept[number]
        with torch.no_grad():
            for part, tensor in (*run.parametrization.named_parameters(), *run.parametrization.named_buffers()):
                tensor.copy_(state[part])
        run.number = number
        run.begin()
        assert torch.equal(run.model(x), answers)
        for found, expected in zip(run.delta(), deltas, strict=True):
            assert torch.equal(found, expected)


def test_windows_are_even_and_the_last_one_is_never_over() -> None:
    for total in range(1, 40):
        for windows in range(1, 12):
            ends = [n for n in range(1, total) if over(n, total, windows) > over(n - 1, total, windows)]
            assert len(ends) == min(windows, total) - 1
            assert over(total, total, windows) == over(total - 1, total, windows)
            assert [begun(k + 1, total, windows) for k in range(len(ends))] == ends
            lengths = [b - a for a, b in zip([0, *ends], [*ends, total], strict=True)]
            assert max(lengths) - min(lengths) <= 1


class Dense:
    """The net with weights of its own, ``W + s B A`` where there are factors."""

    def __init__(self, run: Run) -> None:
        self.model = plain()
        self.W = [layer.weight.detach().clone() for layer in self.model.layers]
        factors = run.parametrization.factors()
        self.A, self.B = ([one[name].detach().clone() for name in NAMES] for one in (factors.A, factors.B))

    def loss(self, number: int) -> Tensor:
        weights = [w + S * b @ a for w, a, b in zip(self.W, self.A, self.B, strict=True)]
        call: Any = torch.func.functional_call
        named = {f"{name}.weight": weight for name, weight in zip(NAMES, weights, strict=True)}
        return loss(lambda x: call(self.model, named, (x,)), number)

    def free(self) -> list[Tensor]:
        for tensor in (*self.A, *self.B):
            tensor.requires_grad_()
        return [*self.A, *self.B]

    def merge(self, share: float = 1.0) -> None:
        with torch.no_grad():
            self.W = [w + share * S * b @ a for w, a, b in zip(self.W, self.A, self.B, strict=True)]

    def restart(self, run: Run) -> None:
        """The draws are those of the run."""
        self.merge()
        factors = run.parametrization.factors()
        with torch.no_grad():
            for name, a, b in zip(NAMES, self.A, self.B, strict=True):
                assert not factors.B[name].any()
                assert not torch.equal(a, factors.A[name])
                assert float(factors.A[name].abs().max()) <= a.shape[1] ** -0.5
                a.copy_(factors.A[name])
                b.zero_()

    def delta(self) -> list[Tensor]:
        self.merge()
        return [w - layer.weight for w, layer in zip(self.W, self.model.layers, strict=True)]


def prune(state: dict[str, Tensor], share: float) -> None:
    """Both moments of the entries with the smallest means are zero."""
    mean, square = (state[name].view(-1) for name in ("exp_avg", "exp_avg_sq"))
    order = sorted(range(len(mean)), key=lambda i: abs(float(mean[i])))
    for i in order[: round(share * len(mean))]:
        mean[i] = square[i] = 0


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_relora_merges_restarts_prunes_and_warms_up(share: float) -> None:
    """Three windows of twenty steps: a warm-up of two."""
    run = Run("relora", 60, restarts=2, pruning="magnitude", pruned=share)
    dense = Dense(run)
    optimizer = torch.optim.AdamW(dense.free(), lr=RATE, weight_decay=0.0)

    def follow(number: int) -> None:
        first = {21: 1 / 3, 22: 2 / 3, 41: 1 / 3, 42: 2 / 3}
        optimizer.param_groups[0]["lr"] = RATE * first.get(number, 1.0)
        optimizer.zero_grad()
        dense.loss(number).backward()
        optimizer.step()
        if number in (20, 40):
            for state in optimizer.state.values():
                prune(state, share)
            dense.restart(run)

    run.train(follow)
    for found, expected in zip(run.delta(), dense.delta(), strict=True):
        same(found, expected, 1e-9)


def test_relora_prunes_moments_at_random() -> None:
    run = Run("relora", 20, restarts=1, pruned=0.75)
    left: list[Tensor] = []

    def states() -> list[dict[str, Tensor]]:
        return list(run.optimizer.state.values())

    def look(number: int) -> None:
        if number == 10:
            left.extend(state["exp_avg_sq"] != 0 for state in states())
            assert all(torch.equal(state["exp_avg"] != 0, state["exp_avg_sq"] != 0) for state in states())

    run.train(look)
    share = torch.cat([one.flatten() for one in left]).double().mean()
    assert 0.1 < float(share) < 0.4
    assert len({tuple(one.flatten().tolist()) for one in left}) > 1


def test_cola_is_one_lora_after_another_each_with_its_own_optimizer() -> None:
    run = Run("cola", 12, length=3)
    dense = Dense(run)
    optimizers = [torch.optim.AdamW(dense.free(), lr=RATE, weight_decay=0.0) for _ in range(3)]

    def follow(number: int) -> None:
        optimizer = optimizers[(number - 1) // 4]
        optimizer.zero_grad()
        dense.loss(number).backward()
        optimizer.step()
        if number in (4, 8):
            dense.restart(run)

    run.train(follow)
    for found, expected in zip(run.delta(), dense.delta(), strict=True):
        same(found, expected, 1e-9)


@pytest.mark.parametrize(("ratio", "after"), [(2.0, 500), (2.0, 1), (0.5, 0), (0.0, 2)])
def test_delta_lora_moves_the_weight_by_every_step_of_the_product(ratio: float, after: int) -> None:
    """Thirty steps: K is 3 at most."""
    run = Run("delta-lora", 30, ratio=ratio, after=after)
    dense = Dense(run)
    optimizer = torch.optim.AdamW(dense.free(), lr=RATE, weight_decay=0.0)

    def follow(number: int) -> None:
        before = [(b @ a).detach() for a, b in zip(dense.A, dense.B, strict=True)]
        optimizer.zero_grad()
        dense.loss(number).backward()
        optimizer.step()
        if number > min(after, 3):
            with torch.no_grad():
                steps = [b @ a - old for a, b, old in zip(dense.A, dense.B, before, strict=True)]
                dense.W = [w + ratio * S * step for w, step in zip(dense.W, steps, strict=True)]

    run.train(follow)
    for found, expected in zip(run.delta(), dense.delta(), strict=True):
        same(found, expected, 1e-9)


@pytest.mark.parametrize(
    ("variant", "setting"), [("relora", "restarts"), ("cola", "length"), ("galore", "windows"), ("flora", "windows")]
)
def test_a_rank_above_the_limit_is_refused(variant: str, setting: str) -> None:
    with pytest.raises(ConfigError, match=r"above the limit of 1024") as caught:
        Run(variant, 10, **{setting: 600})
    assert f"{variant}.{setting}" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("variant", "config", "why"),
    [
        ("relora", {"strategy": "seqlora"}, "the bank has only its A and B"),
        ("cola", {"strategy": "amlora"}, "would leave out what the variant has added to the weight"),
        ("delta-lora", {"start": "pissa"}, "takes no start that is taken out of the weight"),
        ("galore", {"strategy": "inflora"}, "takes A from the gradient"),
        ("flora", {"strategy": "olora-projected"}, "draws A anew in each window"),
        ("qa-lora", {"strategy": "olora-projected"}, "changes single columns of A"),
        ("qa-lora", {"strategy": "olora"}, "here all tasks share few directions"),
        ("ia3", {"strategy": "inflora"}, "a row gain reads all inputs"),
    ],
)
def test_what_does_not_go_together_is_refused(variant: str, config: dict[str, str], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        chosen_methods(TrainConfig(**{"strategy": "isolated", "variant": variant} | config))


MODULES = {
    f"bert.encoder.layer.{layer}.attention.self.{name}": (32, 32) for layer in range(2) for name in ("query", "value")
}


@pytest.mark.parametrize("variant", ["relora", "cola", "delta-lora", "xgblora", "bilora"])
@pytest.mark.parametrize("strategy", ["olora-projected", "inflora"])
def test_a_strategy_confines_what_was_moved_too(train, make_adapter, variant: str, strategy: str) -> None:
    before = AdapterStack.build({"a": make_adapter(MODULES, 12, 1.0, seed=1)})
    settings = {"variant": variant, "strategy": strategy, "r": 4, "learning_rate": 1e-2, "epochs": 3}
    if variant == "xgblora":
        settings["set"] = ("xgblora.layers=1",)
    trained = train(earlier=before, context=("a",), **settings)
    for name in MODULES:
        A, B = trained.factors.A[name], trained.factors.B[name]
        assert bool(B.any(0).all())
        if strategy == "olora-projected":
            assert float((before.modules[name].A @ A.mT).abs().max()) < 1e-5
        else:  # one designed A for all
            assert all(torch.equal(part, A[:4]) for part in A.split(4))
