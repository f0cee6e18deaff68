"""Variants that look at the layers or begin anew: PRILoRA, LoRA-drop, AutoLoRA and ALoRA, against plain loops."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lorabank.core.shelves import VARIANTS
from lorabank.training.variants.base import Step
from tests.unit.training.variants.test_steps import Training, ranks, training
from tests.unit.training.variants.test_variants import ALPHA, IDS, R, close, load, loss


def optimized(trial: Training) -> torch.optim.Optimizer:
    optimizer = trial.optimizer(torch.optim.AdamW)
    trial.parametrization.resume(Step(1, 20), optimizer)
    return optimizer


def read(trial: Training) -> dict[str, list[Tensor]]:
    """The inputs of the layers from now on, ``[tokens, d_in]`` in float64 for each pass."""
    seen: dict[str, list[Tensor]] = {name: [] for name in trial.attached.layers}
    for name, layer in trial.attached.layers.items():
        layer.register_forward_pre_hook(
            lambda _, inputs, name=name: seen[name].append(inputs[0].detach().double().flatten(0, -2))
        )
    return seen


# --------------------------------------------------------------------------------------------------------- prilora


def test_prilora_ranks_grow_with_the_depth() -> None:
    """The paper's: 4 to 12 in twelve layers, 8 on average."""
    sites: Any = [SimpleNamespace(depth=k, d_in=3, d_out=5) for k in range(12) for _ in "qv"]
    variant = VARIANTS.load("prilora")()
    found = variant._ranks(sites, 8)[::2]
    assert found == [round(4 + 8 * k / 11) for k in range(12)]
    assert (found[0], found[-1], sum(found) / 12) == (4, 12, 8)
    assert variant.trained(sites, 8) == 2 * 8 * sum(found)
    alone: Any = [SimpleNamespace(depth=None, d_in=3, d_out=5), SimpleNamespace(depth=7, d_in=3, d_out=5)]
    assert variant._ranks(alone, 8) == [8, 8]


def test_prilora_prunes_what_is_small_and_reads_little(bases) -> None:
    """By the norms of all that was read since the last pruning, averaged over the prunings."""
    trial = training(bases, "prilora", set=("prilora.every=3", "prilora.pruned=0.25", "prilora.beta=0.8"))
    assert set(ranks(trial.parametrization.factors())) == {2, 4}
    own: Any = trial.parametrization
    seen, optimizer = read(trial), optimized(trial)
    norms: dict[str, Any] = dict.fromkeys(trial.attached.layers, 0.0)
    for number in range(1, 7):
        due = Step(number, 20)
        if number % 3:
            trial.whole_step(optimizer, due)
            continue
        trial.whole_step(optimizer, due._replace(number=1))  # no pruning yet
        before = [a.detach().double() for a in own.A]
        own.after_step(due)
        for k, (name, a) in enumerate(zip(seen, before, strict=True)):
            norms[name] = 0.8 * norms[name] + 0.2 * torch.cat(seen[name]).square().sum(0).sqrt()
            seen[name].clear()
            importance = a.abs() * norms[name]
            for row, old, scores in zip(own.A[k].detach(), a, importance, strict=True):
                lowest = set(scores.argsort()[:8].tolist())
                assert set((row == 0).nonzero().flatten().tolist()) == lowest
                assert all(float(row[j]) == pytest.approx(float(old[j])) for j in range(32) if j not in lowest)


def test_prilora_scales_every_rank_by_itself(bases) -> None:
    trial = training(bases, "prilora")
    with torch.no_grad():
        for b in trial.parametrization.B:
            b.normal_()
    made, own = trial.parametrization.factors(), trial.parametrization
    for k, site in enumerate(made.A):
        expected = ALPHA / len(own.A[k]) * own.B[k].double() @ own.A[k].double()
        close(made.delta(site), expected.float())


# ------------------------------------------------------------------------------------------------------- lora-drop


def test_lora_drop_lets_the_modules_with_small_outputs_share(bases) -> None:
    """By the outputs of the deciding steps, computed again from what the layers read."""
    trial = training(bases, "lora-drop", set=("lora-drop.sample=0.3", "lora-drop.threshold=0.6"))
    own: Any = trial.parametrization
    begun = [part.detach().clone() for part in (*own.A, *own.B)]
    seen, optimizer = read(trial), optimized(trial)
    outputs = dict.fromkeys(trial.attached.layers, 0.0)
    tokens = 0
    for number in range(1, 7):
        factors = {
            n: (x.lora_A.detach().double(), x.lora_B.detach().double()) for n, x in trial.attached.layers.items()
        }
        trial.whole_step(optimizer, Step(number, 20))
        for name, (A, B) in factors.items():
            (x,) = seen[name]
            if number > 3:
                outputs[name] += float((trial.attached.layers[name].scaling * x @ A.T @ B.T).square().sum())
            seen[name].clear()
        tokens += len(x) * (number > 3)
    assert tokens
    total, kept, order = sum(outputs.values()), set(), sorted(outputs, key=outputs.__getitem__, reverse=True)
    before = 0.0
    for name in order:
        if before < 0.6:
            kept.add(name)
        before += outputs[name] / total
    names = list(trial.attached.layers)
    others = [k for k, name in enumerate(names) if name not in kept]
    assert len(others) > 1, "nothing is shared: the test says nothing"
    assert own.owner.tolist() == [k if names[k] in kept else others[0] for k in range(len(names))]
    for part, first in zip((*own.A, *own.B), begun, strict=True):
        assert torch.equal(part, first)  # it begins anew
        assert not optimizer.state.get(part)
    rest = own.A[others[1]].detach().clone()
    for number in range(7, 10):
        trial.whole_step(optimizer, Step(number, 20))
    fold = own.fold()
    for k in others[1:]:
        assert torch.equal(fold.B[names[k]], fold.B[names[others[0]]])
    assert bool((fold.B[names[others[0]]] != 0).any())
    assert torch.equal(own.A[others[1]], rest)  # it is not used any more


def test_lora_drop_counts_no_pass_without_gradients(bases) -> None:
    """Rows that are held out are measured between the steps that decide."""
    trials = [training(bases, "lora-drop") for _ in range(2)]
    for trial, measured in zip(trials, (False, True), strict=True):
        own: Any = trial.parametrization
        optimizer = optimized(trial)
        own.resume(Step(1, 20), optimizer)
        for number in (1, 2):
            if measured:
                with torch.no_grad():
                    trial.model(input_ids=IDS.flip(1))
            trial.backward()
            own.after_loss(Step(number, 20))
            optimizer.step()
            trial.live.refresh()
            own._look(Step(number + 1, 20))
    one, other = (trial.parametrization.outputs for trial in trials)
    assert bool((one[1] > 0).all())
    assert torch.equal(one, other)


def test_the_shared_factors_get_the_sum_of_all_gradients(bases) -> None:
    trial = training(bases, "lora-drop")
    own: Any = trial.parametrization
    with torch.no_grad():
        own.B[0].normal_()
        for b in own.B:
            b.copy_(own.B[0])
        for a in own.A:
            a.copy_(own.A[0])
    trial.live.refresh()
    trial.backward()
    apart = [(a.grad.clone(), b.grad.clone()) for a, b in zip(own.A, own.B, strict=True)]
    own.zero_grad()
    own.owner.fill_(1)
    trial.live.refresh()
    trial.backward()
    close(own.A[1].grad, sum(a for a, _ in apart))
    close(own.B[1].grad, sum(b for _, b in apart))


# -------------------------------------------------------------------------------------------------------- autolora


def test_autolora_moves_the_selection_and_the_factors_in_turn(bases) -> None:
    trial = training(bases, "autolora")
    own: Any = trial.parametrization
    optimizer = optimized(trial)
    for number in range(1, 10):
        before = [part.detach().clone() for part in own.parameters()]
        trial.whole_step(optimizer, Step(number, 20))
        moved = {
            name
            for (name, part), old in zip(own.named_parameters(), before, strict=True)
            if not torch.equal(part, old)
        }
        assert {name[0] for name in moved} == ({"a"} if number % 3 == 0 else {"A", "B"})


def test_autolora_weighs_the_components_of_a_module_by_a_softmax(bases) -> None:
    own: Any = training(bases, "autolora").parametrization
    with torch.no_grad():
        for part in (*own.B, *own.a):
            part.normal_()
    made = own.factors()
    for k, site in enumerate(made.A):
        weights = own.a[k].double().exp() / own.a[k].double().exp().sum()
        expected = ALPHA / R * own.B[k].double() @ torch.diag(weights) @ own.A[k].double()
        close(made.delta(site), expected.float())


def test_autolora_trains_the_ranks_that_it_found_from_the_start(bases) -> None:
    trial = training(bases, "autolora", set=("autolora.search=0.3",))
    own: Any = trial.parametrization
    begun = [part.detach().clone() for part in (*own.A, *own.B)]
    optimizer = optimized(trial)
    for number in range(1, 7):
        trial.whole_step(optimizer, Step(number, 20))
    found = [int((a.detach().double().softmax(0) >= 1 / R - 1e-7).sum()) for a in own.a]
    assert [int(kept.sum()) for kept in own.kept.split(R)] == found
    assert sum(found) < R * len(found)
    for part, first in zip((*own.A, *own.B), begun, strict=True):
        assert torch.equal(part, first)
        assert not optimizer.state.get(part)
    chosen = [a.detach().clone() for a in own.a]
    for number in range(7, 21):
        trial.whole_step(optimizer, Step(number, 20))
    assert all(torch.equal(a, old) for a, old in zip(own.a, chosen, strict=True))
    fold = own.fold()
    assert ranks(fold) == found
    for k, site in enumerate(fold.A):
        kept = own.kept.split(R)[k]
        expected = ALPHA / found[k] * own.B[k][:, kept].double() @ own.A[k][kept].double()
        close(fold.delta(site), expected.float())


# ----------------------------------------------------------------------------------------------------------- alora


def test_alora_scores_a_component_by_ablating_it(bases) -> None:
    """Of a model whose weights hold the changed sums."""
    trial = training(bases, "alora", set=("alora.limit=1",))
    own: Any = trial.parametrization
    own._score = lambda: -float(loss(trial.model))
    with torch.no_grad():
        for b in own.B:
            b.normal_(std=0.1)
    trial.live.refresh()
    before = trial.model(input_ids=IDS).logits.detach()
    found = own.scores()
    close(trial.model(input_ids=IDS).logits, before)
    plain = load(bases, "bert")
    names = list(trial.attached.layers)

    def score(site: int, gates: list[int]) -> float:
        with torch.no_grad():
            kept = {}
            for k, name in enumerate(names):
                weight = plain.get_submodule(name).weight
                kept[name] = weight.clone()
                g = torch.tensor(gates if k == site else [1] * R, dtype=torch.float64)
                weight.add_((ALPHA / R * own.B[k].double() @ torch.diag(g) @ own.A[k].double()).float())
            value = -float(loss(plain))
            for name, weight in kept.items():
                plain.get_submodule(name).weight.copy_(weight)
        return value

    for k in (0, len(names) - 1):
        for i in range(R):
            alone = [int(j == i) for j in range(R)]
            expected = score(k, [1] * R) - score(k, [1 - j for j in alone]) + score(k, alone)
            assert float(found[k, i]) == pytest.approx(expected, abs=2e-6)


def test_alora_moves_ranks_and_keeps_their_number(bases) -> None:
    trial = training(bases, "alora", set=("alora.share=0.25",))
    own: Any = trial.parametrization
    with torch.no_grad():
        for b in own.B:
            b.normal_()
    sites, r = own.open.shape
    assert (r, int(own.open.sum())) == (6, 3 * sites)
    scores = torch.zeros(sites, r)
    scores[:, :3] = torch.arange(1, 3 * sites + 1).view(sites, 3).float()
    own.move(scores)
    count = int(0.25 * 3 * sites)
    lost = [max(0, min(3, count - 3 * k)) for k in range(sites)]
    assert [3 - int(own.open[k, :3].sum()) for k in range(sites)] == lost
    whole = [k for k in range(sites) if not lost[k]]
    gained = [int(own.open[k, 3:].sum()) for k in range(sites)]
    assert sum(gained) == count
    assert all(not gained[k] for k in range(sites) if k not in whole)
    assert sorted((gained[k] for k in whole), reverse=True) == [gained[k] for k in reversed(whole)]  # best first
    closed_or_new = ~own.open | (torch.arange(r) >= 3)
    for k, b in enumerate(own.B):
        assert bool((b[:, closed_or_new[k]] == 0).all())
        assert bool((b[:, ~closed_or_new[k]] != 0).all())


def test_alora_ends_with_the_number_of_ranks_it_began_with(bases) -> None:
    trial = training(bases, "alora")
    own: Any = trial.parametrization
    own._score = lambda: -float(loss(trial.model))
    trial.train(20)
    assert int(own.open.sum()) == R * len(own.A)
    assert len(set(own.open.sum(1).tolist())) > 1
    assert sum(ranks(own.fold())) <= R * len(own.A)
