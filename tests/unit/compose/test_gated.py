"""Fitting a selector: it finds the adapter that helps, and touches nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from safetensors.torch import save

from lorabank.algebra.stack import AdapterStack
from lorabank.algebra.states import StateStack
from lorabank.compose import gate_facts, gate_fitting, gated
from lorabank.compose.base import Member, with_its_settings
from lorabank.compose.gate_fitting import fit_gate, sparsity
from lorabank.compose.gated import Gated
from lorabank.compose.routers.statistics import fit_statistics
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import DivergedError, NotFoundError
from lorabank.core.observer import SilentObserver
from lorabank.core.records import CompositionRecord
from lorabank.core.settings import setting
from lorabank.models.answering.base import AnswerForm
from lorabank.models.answering.head_answers import HeadAnswerer
from lorabank.models.bases.loading import describe_base, load_base
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.gates.attention import Attention
from lorabank.models.gates.attention_token import AttentionToken, Selector
from lorabank.models.gates.base import key_of
from lorabank.models.gates.moe import MoE
from lorabank.models.mixing.runtime import Plan, Runtime
from lorabank.models.tasks.heads import build_head

MODULES = {f"bert.encoder.layer.{i}.attention.self.value": (32, 32) for i in range(2)}
FORM = AnswerForm(("no", "yes"), 66)
TEXTS = tuple(f"{a} {b}" for a in "abcd" for b in "wxyz")


@pytest.fixture
def runtime(make_base, make_adapter) -> Runtime:
    base = load_base(describe_base(resolve_base(str(make_base("bert")))), device="cpu", dtype="float32")
    adapters = {name: make_adapter(MODULES, 2, 0.3, seed=i) for i, name in enumerate("xyz")}
    heads = [build_head(base.model, base.head_modules, 2, seed) for seed in range(3)]
    answerer = HeadAnswerer(base, heads, [FORM] * 3, batch_size=8)
    return Runtime(base, AdapterStack.build(adapters), answerer, batch_size=8)


@pytest.fixture
def members(runtime) -> list[Member]:
    """The labels are what the second adapter says: it is the one to be found."""
    statistics = fit_statistics(np.eye(4, dtype=np.float32), 1, 0)
    made = []
    for k, (task, adapter) in enumerate(zip(("one", "two", "three"), "xyz", strict=True)):
        said = runtime.answer(TEXTS, Plan(weights=np.array([0, 1, 0], np.float32)), k).said
        own = {"texts": TEXTS, "targets": said}
        made.append(Member(task, k + 1, adapter, (adapter,), k, FORM, lambda: statistics, 1, **own))
    return made


CONFIG = ComposeConfig(mode="attention", batch_size=8)
METHOD = AttentionToken(0.0, epochs=3, learning_rate=0.05)


class Losses(SilentObserver):
    def __init__(self) -> None:
        self.values: list[dict[str, float]] = []
        self.total = 0

    def start(self, what: str, total: int) -> None:
        self.total = total

    def advance(self, done: int, values) -> None:
        self.values.append(dict(values))


def fit_selector(members, runtime, observer, method: AttentionToken = METHOD) -> Selector:
    selector, _ = fit_gate(members, method, CONFIG, runtime, observer)
    assert isinstance(selector, Selector)
    return selector


def test_fitting_moves_the_selector_alone(runtime, members) -> None:
    def tensors() -> dict[str, torch.Tensor]:
        state = {f"model {name}": tensor for name, tensor in runtime.base.model.state_dict().items()}
        for module, factors in runtime.stack.modules.items():
            state |= {f"A {module}": factors.A, f"B {module}": factors.B}
        return {name: tensor.clone() for name, tensor in state.items()}

    before = tensors()
    selector = fit_selector(members, runtime, SilentObserver())
    after = tensors()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert all(parameter.grad is None for parameter in runtime.base.model.parameters())
    assert all(bool(u.any()) for u in selector.u.values())
    assert not any(parameter.requires_grad for parameter in selector.parameters())


def test_the_loss_falls_and_the_right_adapter_is_found(runtime, members) -> None:
    observer = Losses()
    selector = fit_selector(members, runtime, observer)
    assert len(observer.values) == observer.total == 18  # 48 rows in batches of 8, three times
    losses = [values["loss"] for values in observer.values]
    assert sum(losses[-6:]) < sum(losses[:6])
    attention = sparsity(selector, members, runtime)["attention"]
    assert max(attention, key=attention.get) == "two"


def test_a_stronger_l1_leaves_fewer_dense_parameters(runtime, members) -> None:
    free, held = (
        fit_selector(members, runtime, SilentObserver(), AttentionToken(weight, epochs=10, learning_rate=0.01))
        for weight in (0.0, 1.0)
    )
    assert float(held.l1()) < 0.2 * float(free.l1())


def test_the_same_seed_gives_the_same_selector(runtime, members) -> None:
    first, second = (fit_selector(members, runtime, SilentObserver()).tensors() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_sparsity_of_a_selector_that_treats_all_alike(runtime, members) -> None:
    report = sparsity(Selector(StateStack.apart(runtime.stack.slots)), members, runtime)
    assert report["attention"] == pytest.approx(dict.fromkeys(("zero", "one", "two", "three"), 0.25))
    assert report["effective_adapters"] == pytest.approx(4)
    assert report["near_zero"] == 1.0


def test_sparsity_of_a_selector_that_prefers_one(runtime, members) -> None:
    """With u = 0 the attention is known: softmax of the tanh of the constants."""
    selector = Selector(StateStack.apart(runtime.stack.slots))
    with torch.no_grad():
        for c in selector.c.values():
            c.copy_(torch.tensor([9.0, -9.0, -9.0]))
    weights = [math.exp(score) for score in (0, 1, -1, -1)]
    share = [weight / sum(weights) for weight in weights]
    report = sparsity(selector, members, runtime)
    assert list(report["attention"].values()) == pytest.approx(share, abs=1e-6)
    assert report["effective_adapters"] == pytest.approx(math.exp(-sum(p * math.log(p) for p in share)), abs=1e-5)


def load(runtime, members, **config) -> Gated:
    settings = ComposeConfig(mode="gated", gate="attention-token", set=("epochs=1",), batch_size=24, **config)
    fitted = Gated.fit(members, settings, lambda: runtime, SilentObserver())
    record = CompositionRecord("att", "attention", (), (), fitted.parameters, {})
    return Gated.load(record, fitted.objects, members, lambda: runtime)


def test_a_selector_for_every_stage_of_two_or_more(runtime, members) -> None:
    composed = load(runtime, members)
    assert composed.plan(1, []).weights.tolist() == [1, 0, 0]
    assert composed.plan(2, []).states == (("x",), ("y",))
    assert composed.plan(3, []).states == (("x",), ("y",), ("z",))
    assert len({repr(composed.identity(stage)) for stage in (1, 2, 3)}) == 3


def test_a_stage_that_was_left_out_is_fitted_when_it_is_asked_for(runtime, members) -> None:
    """Its gate is the one that is fitted together with the others."""
    apart = [replace(m, texts=(), targets=(), samples=lambda m=m: (m.texts, m.targets)) for m in members]
    every = load(runtime, members)
    settings = ComposeConfig(mode="gated", gate="attention-token", set=("epochs=1",), batch_size=24, stages="last")
    fitted = Gated.fit(members, settings, lambda: runtime, SilentObserver())
    record = CompositionRecord("att", "gated", (), (), fitted.parameters, {})
    composed = Gated.load(record, dict(fitted.objects), apart, lambda: runtime)
    assert len({repr(composed.identity(stage)) for stage in (1, 2, 3)}) == 3
    before = composed.identity(2)
    found, expected = composed.plan(2, []).gate.tensors(), every.plan(2, []).gate.tensors()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert composed.identity(2) == before
    bare = [replace(member, texts=(), targets=()) for member in members]
    lost = Gated.load(record, fitted.objects, bare, lambda: runtime)
    with pytest.raises(NotFoundError, match="'one' was added without calibration samples"):
        lost.plan(2, [])


def test_a_stage_that_was_fitted_late_is_kept_for_the_next_time(runtime, members, monkeypatch) -> None:
    """For models of the same dtype: another one fits another gate."""
    settings = ComposeConfig(mode="gated", gate="attention-token", set=("epochs=1",), batch_size=24, stages="last")
    fitted = Gated.fit(members, settings, lambda: runtime, SilentObserver())
    record = CompositionRecord("att", "gated", (), (), fitted.parameters, {})
    apart = [replace(m, samples=lambda m=m: (m.texts, m.targets)) for m in members]
    objects = dict(fitted.objects)
    first = Gated.load(record, objects, apart, lambda: runtime)
    expected, identity = first.plan(2, []).gate.tensors(), first.identity(2)
    assert set(objects) == {"selectors", "derived 2, torch.float32 on cpu"}

    (role,) = set(objects) - {"selectors"}
    stranger = {"u:elsewhere": torch.zeros(2)}
    for broken in (b"no tensors", save(stranger), save({**expected, next(iter(expected)): torch.zeros(1, 1, 1)})):
        other = objects | {role: broken}
        found = Gated.load(record, other, apart, lambda: runtime).plan(2, []).gate.tensors()
        assert all(torch.equal(found[name], expected[name]) for name in expected)
        assert other == objects

    def refuse(*args: object) -> None:
        raise AssertionError("it was fitted again")

    monkeypatch.setattr(gated, "fit_gate", refuse)
    again = Gated.load(record, objects, apart, lambda: runtime)
    found = again.plan(2, []).gate.tensors()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert again.identity(2) == identity
    runtime.base.model.to(torch.bfloat16)
    with pytest.raises(AssertionError, match="fitted again"):
        Gated.load(record, objects, apart, lambda: runtime).plan(2, [])


@dataclass(frozen=True)
class Tempered(AttentionToken):
    """A gate whose tensors do not say all of it."""

    temperature: float = setting(1.0, "Divides the scores.")


def test_the_identity_holds_the_gate_and_its_settings(runtime, members) -> None:
    """One and the same tensors may weigh otherwise: scores that are kept of one gate are none of another's."""
    of_attention = load(runtime, members)
    identities = [of_attention.identity(3)]
    for gate, temperature in (("tempered", 1.0), ("tempered", 2.0), ("other", 2.0)):
        method = Tempered(temperature=temperature)
        made = Gated(gate, method, ComposeConfig(), of_attention._tensors, members, lambda: runtime)
        identities.append(made.identity(3))
    assert len(set(map(repr, identities))) == 4
    assert len(of_attention.identity(3)) == 3  # the form under which scores are kept since the first gate


def test_without_samples_there_is_nothing_to_fit_on(runtime, members) -> None:
    bare = [members[0], Member("two", 2, "y", ("y",), 1, FORM, members[1].statistics, 1)]
    with pytest.raises(NotFoundError, match="'two' was added without calibration samples"):
        load(runtime, bare)
    assert load(runtime, bare[1:]).plan(2, []).weights.tolist() == [0, 1, 0]  # one adapter needs none


def test_a_selector_that_diverges_is_refused(runtime, members) -> None:
    with pytest.raises(DivergedError, match="the gate diverged at step 2"):
        fit_selector(members, runtime, SilentObserver(), AttentionToken(1e5, learning_rate=1e36))
    assert not any(layer.form for layer in runtime.mixture._layers.values())


def test_members_are_states_and_a_record_that_does_not_say_so_weighs_adapters(runtime, members) -> None:
    """The second member's state is the sum of the first two adapters."""
    summed = [members[0], replace(members[1], state=("x", "y")), members[2]]
    composed = load(runtime, summed)
    assert composed.plan(3, []).states == (("x",), ("x", "y"), ("z",))
    alone = load(runtime, summed[1:2]).plan(2, [])
    assert alone.weights.tolist() == [1, 1, 0]
    settings = ComposeConfig(mode="gated", gate="attention-token", set=("epochs=1",), batch_size=24)
    apart = [replace(member, state=(member.adapter,)) for member in members]
    fitted = Gated.fit(apart, settings, lambda: runtime, SilentObserver())
    for gate in ({}, {"gate": "attention"}):
        kept = {name: value for name, value in fitted.parameters.items() if name not in ("over", "gate")}
        record = CompositionRecord("old", "gated", ("one",), (), kept | gate, {})
        old = Gated.load(record, fitted.objects, summed, lambda: runtime)
        assert old.plan(3, []).states == (("x",), ("y",), ("z",))
        assert old.identity(3)[1] == ["x", "y", "z"]
        assert len(old.identity(3)) == 3
        assert "--gate attention-token" in with_its_settings(record).line()


SHARES = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.2, 0.2, 0.6]])


@pytest.fixture
def routed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router that knows a kept row by its member, and another text not at all."""
    kept = np.repeat(SHARES, len(TEXTS), 0)
    monkeypatch.setattr(gate_fitting, "kept_posterior", lambda members, runtime: kept)
    monkeypatch.setattr(gate_facts, "task_posterior", lambda members, runtime, texts: np.full((len(texts), 3), 1 / 3))


def test_attention_starts_at_the_routers_answer(runtime, members, routed) -> None:
    """Tasks of one state add up; -6 leaves the zero adapter next to nothing."""
    settings = ComposeConfig(mode="gated", gate="attention", set=("epochs=0.01", "learning_rate=1e-12"), stages="last")
    shared = [members[0], replace(members[1], state=("x",), adapter="x"), members[2]]
    for own, share in ((members, (1 / 3, 1 / 3, 1 / 3)), (shared, (2 / 3, 0, 1 / 3))):
        fitted = Gated.fit(own, settings, lambda: runtime, SilentObserver())
        record = CompositionRecord("att", "gated", (), (), fitted.parameters, {})
        plan = Gated.load(record, fitted.objects, own, lambda: runtime).plan(3, ["a b", "c"])
        zero = math.exp(-6)
        for weights in plan.texts.values():
            by_name = dict(zip(dict.fromkeys(d for s in plan.states for d in s), weights.adapters[0], strict=True))
            found = [float(by_name.get(name, 0)) for name in "xyz"]
            assert found == pytest.approx([one / (1 + zero) for one in share], abs=1e-6)
        assert set(fitted.report["loss"]) == {"before", "after"}


def test_what_attention_learns_is_kept_only_if_the_loss_falls(
    runtime, members, routed, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, report = fit_gate(members, Attention(epochs=3, learning_rate=0.05, lambda_l1=0), CONFIG, runtime, Losses())
    assert report["learnt"]
    assert report["loss"]["after"] < report["loss"]["before"]
    assert any(bool(u.any()) for u in good.regularised())
    losses = iter((1.0, 1.5))
    monkeypatch.setattr(gate_fitting.Lesson, "mean_loss", lambda lesson, batch_size: next(losses))
    worse, report = fit_gate(members, Attention(epochs=3, learning_rate=0.05), CONFIG, runtime, Losses())
    assert not report["learnt"]
    assert report["loss"] == {"before": 1.0, "after": 1.5}
    assert not any(bool(u.any()) for u in worse.regularised())


def test_a_step_sees_as_many_rows_of_each_task() -> None:
    torch.manual_seed(0)
    batches = gate_fitting._batches([6, 2, 3], 6, balanced=True)
    seen = [next(batches) for _ in range(3)]
    for batch in seen:
        assert sorted(np.digitize(batch, [6, 8]).tolist()) == [0, 0, 1, 1, 2, 2]
    assert {row for batch in seen for row in batch} == set(range(11))
    plain = gate_fitting._batches([6, 2, 3], 6, balanced=False)
    assert sorted(next(plain) + next(plain)) == list(range(11))


def test_the_balance_loss_of_moe_moves_its_routers(runtime, members) -> None:
    """Its gradient is that of its equation over what the modules read, and uneven use falls with its weight."""
    method = MoE(balance=0.5, epochs=4, learning_rate=0.05)
    torch.manual_seed(0)
    gate = method.build(runtime.states([("x",), ("y",), ("z",)]))
    with torch.no_grad():
        for router in gate.router.values():
            router.mul_(20)  # far from even use, where the gradient is 0
    lesson, read = gate_fitting.Lesson(gate, members, runtime), {}
    lesson.begin()
    for name in MODULES:
        layer = runtime.base.model.get_submodule(name)
        layer.register_forward_pre_hook(lambda module, inputs, name=name: read.update({name: inputs[0]}))
    lesson.loss(range(8))
    expected = []
    for name, x in read.items():
        p = (x.flatten(0, -2).double() @ gate.router[key_of(name)].double().T).softmax(-1)
        expected.append(3 * (p.mean(0).detach() * p.mean(0)).sum())
    dense = 0.5 * torch.stack(expected).mean()
    own = method.regulariser(gate)
    assert float(own.detach()) == pytest.approx(float(dense.detach()), rel=1e-5)
    routers = list(gate.router.values())
    found = torch.autograd.grad(own, routers, retain_graph=True)
    for one, other in zip(found, torch.autograd.grad(dense, routers), strict=True):
        assert float(one.abs().max()) > 1e-4
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)
    runtime.mixture.off()

    uneven = []
    for balance in (0.0, 10.0):
        fitted, _ = fit_gate(members, replace(method, balance=balance), CONFIG, runtime, SilentObserver())
        shares = torch.tensor(list(sparsity(fitted, members, runtime)["attention"].values())[1:])
        uneven.append(float(shares.var(correction=0)))
    assert uneven[1] < 0.5 * uneven[0]
