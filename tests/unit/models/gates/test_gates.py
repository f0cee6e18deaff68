"""Every gate against its equations with dense delta weights, in float64, over isolated and over summed states."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, replace

import pytest
import torch
from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.algebra.states import StateStack
from lorabank.core.errors import ConfigError
from lorabank.core.methods import settings, with_settings
from lorabank.core.shelves import GATES
from lorabank.models.gates.arrow import Arrow
from lorabank.models.gates.attention import Attention
from lorabank.models.gates.base import FixedGate, Gate, TokenGate
from lorabank.models.gates.hydralora import HydraLoRA
from lorabank.models.gates.mixlora import MixLoRA
from lorabank.models.gates.mocl import MoCL
from lorabank.models.gates.moe import MoE
from lorabank.models.gates.sapt import Sapt
from lorabank.models.gates.texts import TextFacts, TextGate
from lorabank.models.gates.x_lora import XLora
from lorabank.models.mixing.gated import Gated

NAME, D_OUT, D_IN, WIDTH = "body.layer", 6, 9, 5
STATES = (("a",), ("b",), ("a", "b", "c"))
RANKS = {"a": 2, "b": 3, "c": 1}


@pytest.fixture
def adapters(make_adapter) -> dict[str, LoraFactors]:
    return {
        name: make_adapter({NAME: (D_OUT, D_IN)}, r, 2.0 + r, seed=r, dtype=torch.float64) for name, r in RANKS.items()
    }


def stacked(adapters: Mapping[str, LoraFactors], states=STATES) -> StateStack:
    return StateStack.build(
        states, lambda names: AdapterStack.build({name: adapters[name] for name in names}, dtype=torch.float64)
    )


@pytest.fixture
def members(adapters) -> StateStack:
    return stacked(adapters)


def deltas(adapters: Mapping[str, LoraFactors], states=STATES) -> list[Tensor]:
    """The states' dense delta weights."""
    return [sum(adapters[name].delta(NAME) for name in state) for state in states]


def facts(members: StateStack, n: int = 4) -> TextFacts:
    torch.manual_seed(3)
    inputs = torch.randn(n, D_IN, dtype=torch.float64)
    return TextFacts(
        inputs={NAME: inputs},
        ranks={NAME: inputs @ members.factors(NAME).A.T},
        hidden=torch.randn(n, WIDTH, dtype=torch.float64),
        embedding=torch.randn(n, WIDTH, dtype=torch.float64),
        posterior=torch.randn(n, members.count, dtype=torch.float64).log_softmax(-1),
    )


@torch.no_grad()
def shaken(gate: Gate, members: StateStack) -> Gate:
    """Placed, in float64, and moved away from where it starts."""
    if isinstance(gate, TextGate):
        gate.place(facts(members), torch.tensor([0, 1, 2, 0]))
    gate.double()
    torch.manual_seed(5)
    for parameter in gate.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.3)
    return gate.requires_grad_(False)


def own(gate: Gate, name: str) -> Tensor:
    return gate.get_parameter(f"{name}.body/layer")


def softmax(scores: Tensor) -> Tensor:
    exponentials = scores.exp()
    return exponentials / exponentials.sum(-1, keepdim=True)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def padded(weights: Tensor) -> Tensor:
    return torch.cat([torch.zeros(len(weights), 1, dtype=torch.float64), weights], 1)


def test_attention_is_the_posterior_and_what_a_dense_layer_adds(adapters, members) -> None:
    texts = facts(members)
    plain = Attention().build(members)
    start = torch.cat([torch.full((4, 1), -6.0, dtype=torch.float64), texts.posterior], 1)
    close(plain.weights(NAME, members, texts).detach(), softmax(start))
    gate = shaken(plain, members)
    u, c, zero = (own(gate, kind) for kind in ("u", "c", "c_zero"))
    h = torch.stack([texts.inputs[NAME] @ delta.T for delta in deltas(adapters)], 1)
    z = texts.posterior + 8 * torch.tanh((h * u).sum(-1) + c)
    close(gate.weights(NAME, members, texts), softmax(torch.cat([zero.expand(4, 1), z], 1)))


def test_attention_sees_row_gains(adapters) -> None:
    dice = torch.Generator().manual_seed(8)
    for name in "ac":
        gain = {NAME: 0.5 + torch.rand(D_OUT, generator=dice)}
        adapters[name] = replace(adapters[name], gain=gain)
    members = stacked(adapters)
    weight, texts = torch.randn(D_OUT, D_IN, dtype=torch.float64), facts(members)
    texts.outputs[NAME] = wx = texts.inputs[NAME] @ weight.T
    gate = shaken(Attention().build(members), members)
    u, c, zero = (own(gate, kind) for kind in ("u", "c", "c_zero"))
    gains = [adapters[name].gain.get(NAME, torch.ones(D_OUT)).double() - 1 for name in "abc"]
    added = [gains[0], gains[1], gains[0] + gains[1] + gains[2]]
    low = [sum(adapters[n].scaling[NAME] * adapters[n].B[NAME] @ adapters[n].A[NAME] for n in s) for s in STATES]
    h = torch.stack([texts.inputs[NAME] @ m.T + g * wx for m, g in zip(low, added, strict=True)], 1)
    z = texts.posterior + 8 * torch.tanh((h * u).sum(-1) + c)
    close(gate.weights(NAME, members, texts), softmax(torch.cat([zero.expand(4, 1), z], 1)))


def test_x_lora_is_a_linear_classifier_of_the_hidden_state(members) -> None:
    texts = facts(members)
    even = XLora().build(members)
    with torch.no_grad():
        even.place(texts, torch.tensor([0, 1, 2, 0]))
    close(even.weights(NAME, members, texts).detach().double(), padded(torch.full((4, 3), 1 / 3, dtype=torch.float64)))
    for layerwise, name in ((False, "all"), (True, "body/layer")):
        gate = shaken(XLora(temperature=0.5, layerwise=layerwise).build(members), members)
        scores = texts.hidden @ gate.dense[name].T + gate.bias[name]
        close(gate.weights(NAME, members, texts), padded(softmax(scores / 0.5)))


def test_mocl_matches_texts_with_vectors_that_start_at_the_kept_texts(members) -> None:
    texts, gate = facts(members), MoCL(temperature=0.1).build(members)
    with torch.no_grad():
        gate.place(texts, torch.tensor([0, 1, 2, 0]))
    close(gate.vectors.detach().double()[0], (texts.hidden[0] + texts.hidden[3]) / 2)
    gate = shaken(MoCL(temperature=0.1).build(members), members)
    cosines = torch.nn.functional.cosine_similarity(texts.hidden[:, None], gate.vectors[None], dim=-1)
    close(gate.weights(NAME, members, texts), padded(softmax(cosines / 0.1)))


def test_sapt_attends_from_the_embeddings(members) -> None:
    texts, gate = facts(members), shaken(Sapt(width=4).build(members), members)
    down = texts.embedding @ gate.down.T
    query = (down * torch.sigmoid(down)) @ gate.up.T
    query = (query - query.mean(-1, keepdim=True)) / (query.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    close(gate.weights(NAME, members, texts), padded(softmax(query @ gate.keys.T / math.sqrt(WIDTH))))


def test_mixlora_sums_the_picked_pairs(adapters, members) -> None:
    texts, gate = facts(members), shaken(MixLoRA(rank=2).build(members), members)
    factors, mixed = members.factors(NAME), gate.mixed(NAME, members, texts)
    scores = texts.inputs[NAME] @ own(gate, "selector").T
    pairs = [
        adapter.scaling[NAME] * torch.outer(adapter.B[NAME][:, i], adapter.A[NAME][i])
        for adapter in (adapters[name] for name in members.stack.names)
        for i in range(len(adapter.A[NAME]))
    ]
    for n in range(4):
        best = sorted(range(6), key=lambda i: -float(scores[n, i]))[:2]
        close((factors.B * mixed.rows[n]) @ factors.A, sum(pairs[i] for i in best))
    close(gate.weights(NAME, members, texts).sum(1), torch.ones(4, dtype=torch.float64))
    whole = MixLoRA(rank=9).build(members).double().mixed(NAME, members, texts)
    close((factors.B * whole.rows[0].detach()) @ factors.A, sum(adapter.delta(NAME) for adapter in adapters.values()))


def test_mixlora_learns_through_its_choice(members) -> None:
    gate, texts = MixLoRA(rank=2).build(members).double(), facts(members)
    gate.mixed(NAME, members, texts).rows.square().sum().backward()
    assert bool(own(gate, "selector").grad.any())


@pytest.mark.parametrize("top_k", [0, 2])
def test_moe_weighs_by_a_linear_router_and_balances_its_use(members, top_k: int) -> None:
    gate, x = MoE(top_k=top_k, balance=0.5).build(members).double(), torch.randn(7, D_IN, dtype=torch.float64)
    found = gate.bound(NAME, members)(x, x @ members.factors(NAME).A.T, None)
    p = softmax(x @ own(gate, "router").T)
    expected = p.detach().clone()
    for row in expected if top_k else ():
        row[row.argmin()] = 0
    expected = expected / expected.sum(1, keepdim=True)
    close(found, padded(expected))
    balance = 0.5 * 3 * (expected.mean(0) * p.mean(0)).sum()
    close(MoE(top_k=top_k, balance=0.5).regulariser(gate), balance)
    assert float(MoE().regulariser(gate)) == 0  # nothing has passed since


def test_what_is_not_fitted_takes_no_settings_of_a_fit() -> None:
    """A composition that was made with them answers as it did: its cells are found under them."""
    for name, method in GATES.items():
        names = {one.name for one in settings(method)}
        assert ({"epochs", "learning_rate"} <= names) == method.trained, name
    assert issubclass(Arrow, FixedGate)
    assert asdict(Arrow()) == {"epochs": 2.0, "learning_rate": 0.01, "top_k": 3, "temperature": 1.0}
    with pytest.raises(ConfigError, match="gate arrow: there is no setting 'epochs'"):
        with_settings([(GATES, "arrow")], ["epochs=3"])


@pytest.mark.parametrize("rank", [0, 3])
def test_hydralora_shares_one_a(adapters, members, rank: int) -> None:
    gate = shaken(HydraLoRA(rank=rank).build(members), members)
    x = torch.randn(7, D_IN, dtype=torch.float64)
    every = torch.cat([adapters[name].A[NAME] for name in members.stack.names])
    _, vectors = torch.linalg.eigh(every.T @ every)
    shared = vectors[:, -(rank or 6) :]
    w = softmax(x @ own(gate, "router").T)
    expected = sum(w[:, k, None] * (x @ shared @ shared.T @ d.T) for k, d in enumerate(deltas(adapters)))
    layer = Gated(gate, NAME, gate.over(members))
    close(layer.add(torch.zeros(7, D_OUT, dtype=torch.float64), x), expected)


@pytest.mark.parametrize("top_k", [1, 2, 3])
def test_arrow_follows_the_top_right_singular_vectors(adapters, members, top_k: int) -> None:
    gate, x = Arrow(top_k=top_k, temperature=0.5).build(members), torch.randn(7, D_IN, dtype=torch.float64)
    found = gate.bound(NAME, members)(x, x @ members.factors(NAME).A.T, None)
    scores = torch.stack([(x @ torch.linalg.svd(delta)[2][0]).abs() for delta in deltas(adapters)], 1) / 0.5
    for row in scores:
        row[row.argsort()[: 3 - top_k]] = -math.inf
    close(found, padded(softmax(scores)))


def weighed(gate: Gate, members: StateStack, x: Tensor, texts: TextFacts) -> Tensor:
    if isinstance(gate, TokenGate):
        return gate.bound(NAME, members)(x, x @ members.factors(NAME).A.T, None).detach()
    assert isinstance(gate, TextGate)
    return gate.weights(NAME, members, texts).detach()


@pytest.mark.parametrize("name", sorted(GATES))
def test_the_order_of_members_changes_no_weight(adapters, members, name: str) -> None:
    """As they start, and where they were placed by the kept texts."""
    order = [2, 0, 1]
    other = stacked(adapters, tuple(STATES[k] for k in order))
    x, texts = torch.randn(7, D_IN, dtype=torch.float64), facts(members)
    turned = TextFacts(
        inputs=texts.inputs,
        ranks={NAME: texts.inputs[NAME] @ other.factors(NAME).A.T},
        hidden=texts.hidden,
        embedding=texts.embedding,
        posterior=texts.posterior[:, order],
    )
    gates = []
    for stack, of, own_facts in ((members, [0, 1, 2, 0], texts), (other, [1, 2, 0, 1], turned)):
        gate = GATES.load(name)().build(stack)
        with torch.no_grad():
            if isinstance(gate, TextGate):
                gate.place(own_facts, torch.tensor(of))
        gates.append(gate.double())
    first, second = weighed(gates[0], members, x, texts), weighed(gates[1], other, x, turned)
    close(second, first[:, [0, *(k + 1 for k in order)]])


@pytest.mark.parametrize("name", sorted(GATES))
def test_tensors_come_back_as_they_were(members, name: str) -> None:
    gate = shaken(GATES.load(name)().build(members), members)
    again = GATES.load(name)().build(members).double().load_tensors(gate.tensors())
    x, texts = torch.randn(7, D_IN, dtype=torch.float64), facts(members)
    assert torch.equal(weighed(again, members, x, texts), weighed(gate, members, x, texts))
