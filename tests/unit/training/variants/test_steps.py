"""Variants that do something between steps: what they prune, freeze and draw, against plain loops and PEFT."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from torch import nn

from lorabank.algebra.factors import LoraFactors
from lorabank.core.config import TrainConfig
from lorabank.core.shelves import VARIANTS
from lorabank.training.methods import chosen_methods
from lorabank.training.variants.base import Parametrization, Step
from lorabank.training.variants.cubic import Window
from tests.unit.training.variants.test_variants import (
    ALPHA,
    IDS,
    Q_V,
    RATE,
    R,
    Trial,
    close,
    close_layers,
    load,
    loss,
    pairs,
)


class Training(Trial):
    """A trial with all that the trainer calls around a step."""

    def whole_step(self, optimizer: torch.optim.Optimizer, step: Step) -> None:
        optimizer.zero_grad()
        loss(self.model).backward()
        self.parametrization.after_loss(step)
        self.live.pull()
        own = self.parametrization.loss(step)
        if own is not None and own.requires_grad:
            own.backward()
        self.parametrization.before_step(step)
        optimizer.step()
        self.parametrization.after_step(step)
        self.live.refresh()

    def begin(self, kind: type[torch.optim.Optimizer], step: Step) -> torch.optim.Optimizer:
        optimizer = self.optimizer(kind)
        self.parametrization.resume(step, optimizer)
        self.live.refresh()
        return optimizer

    def train(self, steps: int) -> None:
        optimizer = self.begin(torch.optim.AdamW, Step(1, steps))
        for number in range(1, steps + 1):
            self.whole_step(optimizer, Step(number, steps))


def training(bases: dict[str, str], variant: str, kind: str = "bert", **config: Any) -> Any:
    return Training(load(bases, kind), ",".join(Q_V[kind]), variant=variant, **config)


def ranks(factors: LoraFactors) -> list[int]:
    return [len(a) for a in factors.A.values()]


@pytest.mark.by_turns
@pytest.mark.parametrize(("variant", "start"), pairs())
@pytest.mark.parametrize("kind", ["bert", "gpt2"])
def test_a_whole_training_ends_at_its_fold(bases, kind: str, variant: str, start: str) -> None:
    """With what happens between its steps, and the folded adapter alone on an untouched base."""
    trial = Training(load(bases, kind), "auto", variant=variant, start=start)
    trial.train(12)
    base = load(bases, kind)
    with torch.no_grad():
        assert float((trial.model(input_ids=IDS).logits - base(input_ids=IDS).logits).abs().max()) > 1e-2
    close_layers(trial.model, base, trial.folded())


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_what_is_saved_goes_on_as_what_was_not(bases, variant: str) -> None:
    """Parameters and buffers of a parametrization hold all of it, so a resumed training takes the same steps."""

    whole, resumed = (Training(load(bases, "bert"), "auto", variant=variant) for _ in range(2))
    optimizer = whole.begin(torch.optim.SGD, Step(1, 12))
    for number in range(1, 9):
        whole.whole_step(optimizer, Step(number, 12))
    saved = {name: tensor.clone() for name, tensor in whole.parametrization.state_dict().items()}
    resumed.parametrization.load_state_dict(saved)
    other = resumed.begin(torch.optim.SGD, Step(9, 12))
    for number in range(9, 13):
        whole.whole_step(optimizer, Step(number, 12))
        resumed.whole_step(other, Step(number, 12))
    one, two = whole.folded(), resumed.folded()
    assert one.A.keys() == two.A.keys()
    for name in one.A:
        assert torch.equal(one.A[name], two.A[name])
        assert torch.equal(one.B[name], two.B[name])


def test_a_window_has_a_step_at_least() -> None:
    assert [Window.of(20, 0.1, 0.5).left(n) for n in (0, 2, 6, 10, 20)] == [1, 1, 0.125, 0, 0]
    for total in (1, 2, 3):
        window = Window.of(total, 0.9, 0.9)
        assert window.begin < window.end <= total


# --------------------------------------------------------------------------------------------------------- adalora


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2"])
@pytest.mark.parametrize("every", [1, 3])
def test_adalora_takes_the_steps_of_peft(bases, kind: str, every: int) -> None:
    """Gradients, regulariser, scores and pruning, in all three phases."""
    settings = (f"adalora.every={every}", "adalora.first=0.1", "adalora.last=0.4")
    trial = training(bases, "adalora", kind, set=settings)
    theirs = peft.get_peft_model(
        load(bases, kind),
        peft.AdaLoraConfig(
            init_r=5, target_r=R, lora_alpha=ALPHA, target_modules=Q_V[kind], fan_in_fan_out=kind == "gpt2",
            tinit=2, tfinal=8, deltaT=every, total_step=20, beta1=0.85, beta2=0.85,
        ),
    ).eval()  # fmt: skip
    own: Any = trial.parametrization
    layers = [theirs.get_submodule(f"base_model.model.{name}") for name in trial.attached.layers]
    with torch.no_grad():
        for k, layer in enumerate(layers):
            layer.lora_A["default"].copy_(own.A[k])
            layer.lora_B["default"].copy_(own.B[k])
            layer.lora_E["default"].zero_()
    matrices = [p for name, p in theirs.named_parameters() if "lora_A" in name or "lora_B" in name]
    optimizer, other = (
        trial.optimizer(torch.optim.SGD),
        torch.optim.SGD([p for p in theirs.parameters() if p.requires_grad], lr=RATE),
    )
    for number in range(1, 21):
        trial.whole_step(optimizer, Step(number, 20))
        other.zero_grad()
        norms = [(m @ m.T if m.shape[0] < m.shape[1] else m.T @ m) - torch.eye(5) for m in matrices]
        (loss(theirs) + 0.1 * sum(norm.norm() for norm in norms) / len(norms)).backward()
        other.step()
        theirs.base_model.update_and_allocate(number)
        for k, layer in enumerate(layers):
            close(own.A[k], layer.lora_A["default"])
            close(own.B[k], layer.lora_B["default"])
            close(own.e[k], layer.lora_E["default"].flatten())
            assert torch.equal(own.e[k] == 0, layer.lora_E["default"].flatten() == 0), (number, k)
    assert sum(int((e != 0).sum()) for e in own.e) == R * len(layers)
    assert len({int((e != 0).sum()) for e in own.e}) > 1 or kind == "gpt2"


@pytest.mark.parametrize("variant", ["adalora", "dora-dynamic"])
def test_the_mean_rank_at_the_end_is_the_one_asked_for(bases, variant: str) -> None:
    trial = training(bases, variant)
    assert ranks(trial.parametrization.factors()) == [5] * len(trial.sites)
    trial.train(20)
    fold = trial.parametrization.fold()
    assert sum(ranks(fold)) == R * len(trial.sites)
    assert all(bool((b != 0).any(0).all()) for b in fold.B.values())


def test_adalora_without_anything_to_prune_is_taken(bases) -> None:
    """PEFT raises where the first rank is the target."""
    trial = training(bases, "adalora", set=("adalora.start_ratio=1",))
    trial.train(8)
    assert ranks(trial.parametrization.fold()) == [R] * len(trial.sites)


# ------------------------------------------------------------------------------------------------------------ sora


def test_sora_takes_the_proximal_step_of_the_paper(bases) -> None:
    """The released code gives (0, 0, 0.15, 0)."""
    own: Any = training(bases, "sora", set=("sora.threshold=0.1",)).parametrization
    with torch.no_grad():
        own.e[0].copy_(torch.tensor([0.15, -0.19, 0.25]))
        own.e[1].copy_(torch.tensor([0.05, -0.1, 0.0]))
    own.after_step(Step(1, 2))
    torch.testing.assert_close(own.e[0].detach(), torch.tensor([0.05, -0.09, 0.15]))
    assert own.e[1].tolist() == [0, 0, 0]


def test_sora_adds_the_mean_size_of_its_gates_and_decays_none(bases) -> None:
    own: Any = training(bases, "sora").parametrization
    gates = torch.cat([e.detach() for e in own.e])
    torch.testing.assert_close(own.loss(Step(1, 2)).detach(), 10 * gates.abs().mean())
    own.loss(Step(1, 2)).backward()
    torch.testing.assert_close(torch.cat([e.grad for e in own.e]), 10 * gates.sign() / len(gates))
    (group,) = own.groups(1e-3)
    assert (group["weight_decay"], group["lr"], len(group["params"])) == (0.0, 1e-3, len(own.e))


def test_sora_stores_no_closed_gate(bases) -> None:
    trial = training(bases, "sora", set=("sora.threshold=0.03",))
    trial.train(12)
    kept = [int((e != 0).sum()) for e in trial.parametrization.e]
    assert 0 < sum(kept) < R * len(kept)
    assert ranks(trial.parametrization.fold()) == [n for n in kept if n]


# ---------------------------------------------------------------------------------------------------------- dylora


def draws(own: Any, steps: int) -> list[int]:
    found = []
    for number in range(1, steps + 1):
        found.append(int(own.drawn))
        own.after_step(Step(number, steps + 1))
    return found


def test_dylora_draws_every_rank_alike_and_the_same_again(bases) -> None:
    one, two = (draws(training(bases, "dylora").parametrization, 800) for _ in range(2))
    assert one == two
    assert {b: one.count(b) for b in range(1, 4)} == pytest.approx(dict.fromkeys(range(1, 4), 267), abs=55)
    other = draws(training(bases, "dylora", seed=1).parametrization, 800)
    assert one != other
    assert set(draws(training(bases, "dylora", set=("dylora.smallest=2",)).parametrization, 60)) == {2, 3}


@pytest.mark.parametrize("frozen", [False, True])
def test_dylora_trains_the_first_components(bases, frozen: bool) -> None:
    trial = training(bases, "dylora", set=(f"dylora.frozen={frozen}",))
    own: Any = trial.parametrization
    with torch.no_grad():
        for b in own.B:
            b.normal_()
    for b in range(1, 4):
        own.drawn.fill_(b)
        trial.live.refresh()
        made = own.factors()
        for k, (site, layer) in enumerate(trial.attached.layers.items()):
            expected = ALPHA / b * own.B[k][:, :b].double() @ own.A[k][:b].double()
            close(layer.scaling * layer.lora_B.double() @ layer.lora_A.double(), expected)
            close(made.delta(site), expected.float())
        for parameter in own.parameters():
            parameter.grad = None
        trial.backward()
        learns = [b - 1] if frozen else list(range(b))
        for k in range(len(own.A)):
            assert (own.A[k].grad != 0).any(1).nonzero().flatten().tolist() == learns
            assert (own.B[k].grad != 0).any(0).nonzero().flatten().tolist() == learns


def test_dylora_stores_the_rank_that_is_asked_for(bases) -> None:
    """A low rank is the high one cut, with its own scaling."""
    high, low = (training(bases, "dylora", set=(f"dylora.stored={n}",)) for n in (0, 2))
    for trial in (high, low):
        trial.train(9)
    one, two = high.parametrization.fold(), low.parametrization.fold()
    assert (set(ranks(one)), set(ranks(two))) == ({3}, {2})
    for site in one.A:
        close(two.A[site], one.A[site][:2])
        close(two.scaled(site), 1.5 * one.scaled(site)[:, :2])


# ---------------------------------------------------------------------------------------------------- dora-dynamic


def test_dynamic_dora_scores_components_by_their_norms(bases) -> None:
    trial = training(bases, "dora-dynamic")
    own: Any = trial.parametrization
    with torch.no_grad():
        for e in own.e:
            e.normal_()
    own.after_step(Step(1, 100))
    expected = []
    for A, B, c in zip(own.A, own.B, own.e, strict=True):
        parts = torch.einsum("oi,i,ij->ioj", B.double(), c.double(), A.double())
        expected.append(parts.flatten(1).norm(dim=1) / parts.sum(0).norm())
    close(own.scores, 0.1 * torch.cat(expected).float())


def test_dynamic_dora_adds_the_variance_until_the_ranks_stay(bases) -> None:
    own: Any = training(bases, "dora-dynamic").parametrization
    rows = [*(row for a in own.A for row in a), *(column for b in own.B for column in b.T)]
    expected = torch.stack([((row - row.mean()) ** 2).sum() / (len(row) - 1) for row in rows]).mean()
    close(own.loss(Step(50, 100)), 0.1 * expected)
    assert own.loss(Step(51, 100)) is None


def test_dynamic_dora_prunes_along_the_cube_of_the_time(bases) -> None:
    own: Any = training(bases, "dora-dynamic", set=("dora-dynamic.every=1",)).parametrization
    sites, kept = len(own.e), {}
    for number in range(1, 101):
        with torch.no_grad():
            for e in own.e:
                e.normal_().add_(torch.sign(e))
        own.after_step(Step(number, 100))
        kept[number] = sum(int((e != 0).sum()) for e in own.e)
    assert kept[15] == 5 * sites
    assert kept[40] == 5 * sites - int(2 * sites * (25 / 35) ** 3)
    assert kept[50] == kept[100] == 3 * sites


@pytest.mark.parametrize("variant", ["roselora", "sparse"])
@pytest.mark.parametrize("strategy", ["olora-projected", "inflora"])
def test_a_strategy_that_makes_A_anew_is_refused(variant: str, strategy: str) -> None:
    with pytest.raises(Exception, match="would not be sparse"):
        chosen_methods(TrainConfig(variant=variant, strategy=strategy))


def test_a_parametrization_prunes_nothing_of_itself(bases) -> None:
    """In plain LoRA a module that no text went through keeps its zeros, so that a later task can continue it."""
    own: Parametrization = training(bases, "lora").parametrization
    assert ranks(own.fold()) == [R] * len(own.fold().A)
    assert isinstance(own, nn.Module)
    assert not own.prunes
