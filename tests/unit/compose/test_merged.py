"""Weights as text, and the sum they stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from torch import nn

from lorabank.algebra.compress import compress_dense
from lorabank.algebra.factors import DenseDelta, LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.compose.base import Fitted, Member, chosen_method, with_its_settings
from lorabank.compose.merged import Merged
from lorabank.compose.mergers.base import Merger, Sources
from lorabank.compose.mergers.weighted import parse_weights
from lorabank.compose.routers.statistics import fit_statistics
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import ConfigError, GateError, NotFoundError
from lorabank.core.observer import SilentObserver
from lorabank.core.records import CompositionRecord
from lorabank.core.settings import setting
from lorabank.core.shelves import MERGERS, ROUTERS
from lorabank.models.mixing.mixture import Mixture


def no_weight(module: str) -> torch.Tensor:
    raise AssertionError("no adapter here has a row gain")


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
    with pytest.raises(ConfigError, match=message) as caught:
        parse_weights(text, TASKS)
    assert "--" not in str(caught.value.hint)  # they come by --weights, by --set and from Python


@pytest.fixture
def adapters(make_adapter) -> dict[str, LoraFactors]:
    """An adapter that belongs to no member stands among those of the members."""
    names = {"a": (2, 1.0), "stranger": (2, 1.0), "b": (3, 2.0), "c": (1, 4.0)}
    return {name: make_adapter({"m": (6, 9)}, r, alpha, seed=i) for i, (name, (r, alpha)) in enumerate(names.items())}


@pytest.fixture
def stack(adapters) -> AdapterStack:
    return AdapterStack.build(adapters)


@pytest.fixture
def members(adapters) -> list[Member]:
    statistics = fit_statistics(np.eye(4, dtype=np.float32), 1, 0)
    return [
        Member(
            task,
            position,
            adapter,
            (adapter,),
            position - 1,
            ("no", "yes"),
            lambda: statistics,
            1,
            factors=adapters.__getitem__,
        )
        for task, position, adapter in (("sentiment", 1, "a"), ("spam", 3, "b"), ("products", 4, "c"))
    ]


def load(members: list[Member], stack: AdapterStack, **config) -> Merged:
    runtime = type("Runtime", (), {"stack": stack})()
    fitted = Merged.fit(members, ComposeConfig(mode="manual", **config), lambda: runtime, SilentObserver())
    record = CompositionRecord("mix", "manual", (), (), fitted.parameters, {})
    return Merged.load(record, {}, members, lambda: runtime)


@pytest.mark.parametrize(
    ("stage", "expected"), [(1, [0.5, 0, 0, 0]), (2, [0.5, 0, 0, 0]), (3, [0.5, 0, -2, 0]), (4, [0.5, 0, -2, 1])]
)
def test_a_stage_sums_the_members_it_knows(members, stack, stage: int, expected) -> None:
    composed = load(members, stack, set=("weights=sentiment=0.5,spam=-2,products=1",))
    assert composed.plan(stage, ["text"]).weights.tolist() == expected
    total = sum(
        w * float(stack.modules["m"].scale[stack.modules["m"].owner == k][0])
        * stack.modules["m"].B[:, stack.modules["m"].owner == k] @ stack.modules["m"].A[stack.modules["m"].owner == k]
        for k, w in enumerate(expected)
    )  # fmt: skip
    torch.testing.assert_close(composed.as_adapter(stage, stack, no_weight).delta("m"), total, rtol=1e-5, atol=1e-5)


def test_compressed_it_answers_with_the_truncated_svd(members, stack) -> None:
    full = load(members, stack).as_adapter(4, stack, no_weight).delta("m").double().numpy()
    u, s, vt = np.linalg.svd(full, full_matrices=False)
    plan = load(members, stack, set=("max_rank=2",)).plan(4, ["text"])
    assert plan.weights is None
    np.testing.assert_allclose(plan.factors.delta("m").numpy(), (u[:, :2] * s[:2]) @ vt[:2], atol=1e-4)

    runtime = type("Runtime", (), {"stack": stack})()
    fitted = Merged.fit(members, ComposeConfig(set=("max_rank=2",)), lambda: runtime, SilentObserver())
    expected = np.sqrt(np.sum(s[2:] ** 2) / np.sum(s**2))
    near = {"m": pytest.approx(expected, abs=1e-6)}
    assert fitted.report == {"relative_error": near, "distance": near}
    assert {name: fitted.parameters[name] for name in fitted.report} == fitted.report


def test_a_cut_that_is_too_far_from_the_sum_is_refused(members, stack) -> None:
    def fit(tolerance: float) -> Fitted:
        runtime = type("Runtime", (), {"stack": stack})()
        config = ComposeConfig(set=("max_rank=2",), tolerance=tolerance)
        return Merged.fit(members, config, lambda: runtime, SilentObserver())

    far = fit(1.0).report["distance"]["m"]
    assert fit(far).parameters["tolerance"] == far
    with pytest.raises(GateError, match=rf"{far:.4g} of the weighted sum's norm away from it on m") as caught:
        fit(far * 0.999)
    assert (caught.value.exit_code, caught.value.unchanged) == (12, "the composition was not added to the bank")
    assert load(members, stack, tolerance=0.0001, scores=False).plan(4, []).weights.tolist() == [1, 0, 1, 1]


def test_the_identity_differs_when_the_answers_may(members, stack) -> None:
    identities = [
        repr(load(members, stack, set=given).identity(stage))
        for given in ((), ("weights=sentiment=1,spam=1,products=0.5",), ("max_rank=2",), ("max_rank=3",))
        for stage in (1, 3, 4)
    ]
    # at stages 1 and 3 the weight of the last task does not matter yet
    assert len(set(identities)) == 12 - 2


# ------------------------------------------------------------------------------------------ other kinds of mergers


@dataclass(frozen=True)
class Agreed(Merger):
    """The mean of the deltas where all have one sign, 0 elsewhere: of full rank. It also needs the base's weight."""

    share: float = setting(1.0, "Of the weight, added.")

    def merge(self, sources: Sources) -> DenseDelta:
        count = len(sources.stack.names)
        made = {}
        for name, factors in sources.stack.modules.items():
            deltas = torch.stack([factors.delta(row) for row in torch.eye(count)])
            agreed = deltas.sign().sum(0).abs() == count
            made[name] = deltas.mean(0) * agreed + self.share * sources.weight(name)
        return DenseDelta(made)


@dataclass(frozen=True)
class Newest(Merger):
    """The last adapter alone, as an adapter."""

    def merge(self, sources: Sources) -> LoraFactors:
        return sources.stack.select(sources.stack.names[-1:]).combine(torch.ones(1))


class FakeRuntime:
    """A model of one linear layer ``m``, and the mixture on it."""

    def __init__(self, stack: AdapterStack) -> None:
        torch.manual_seed(0)
        self.model = nn.ModuleDict({"m": nn.Linear(9, 6)})
        self.weight = self.model["m"].weight.detach().clone()
        self.stack, self.mixture = stack, Mixture(self.model, stack)


def agreed(stack: AdapterStack, names: Sequence[str], weight: torch.Tensor) -> np.ndarray:
    """`Agreed` entry by entry."""
    factors = stack.modules["m"]
    own = [stack.names.index(name) for name in names]
    deltas = [factors.delta(torch.eye(len(stack.names))[k]).numpy() for k in own]
    made = np.zeros((6, 9))
    for i, j in np.ndindex(6, 9):
        entries = [delta[i, j] for delta in deltas]
        made[i, j] = np.mean(entries) if all(e > 0 for e in entries) or all(e < 0 for e in entries) else 0
    return made + weight.numpy()


@torch.no_grad()
def test_delta_weights_of_full_rank_are_answered_with_as_they_are(members, stack) -> None:
    runtime = FakeRuntime(stack)
    composed = Merged("agreed", Agreed(), members, lambda: runtime)
    for stage, names in ((4, "abc"), (3, "ab"), (1, "a")):
        plan = composed.plan(stage, ["text"])
        expected = agreed(stack, names, runtime.weight)
        np.testing.assert_allclose(plan.dense.delta["m"].numpy(), expected, atol=1e-5)
        assert composed.as_adapter(stage, stack, lambda module: runtime.weight) is None
        runtime.mixture.merge_dense(plan.dense)
        found = runtime.model["m"](torch.eye(9)).T - runtime.model["m"].base.bias[:, None]
        np.testing.assert_allclose(found.numpy(), runtime.weight.numpy() + expected, atol=1e-5)
    runtime.mixture.off()
    assert torch.equal(runtime.model["m"].weight, runtime.weight)
    identities = [repr(composed.identity(stage)) for stage in (1, 3, 4)]
    other = Merged("agreed", Agreed(share=0.5), members, lambda: runtime)
    assert len({*identities, *(repr(other.identity(stage)) for stage in (1, 3, 4))}) == 6


def test_cut_to_a_rank_they_are_the_best_adapter_of_it(members, stack) -> None:
    runtime = FakeRuntime(stack)
    full = agreed(stack, "abc", runtime.weight)
    u, s, vt = np.linalg.svd(full)
    composed = Merged("agreed", Agreed(max_rank=2), members, lambda: runtime)
    found = composed.as_adapter(4, stack, lambda module: runtime.weight)
    np.testing.assert_allclose(found.delta("m").numpy(), (u[:, :2] * s[:2]) @ vt[:2], atol=1e-5)
    np.testing.assert_allclose(composed.plan(4, []).factors.delta("m").numpy(), found.delta("m").numpy(), atol=1e-6)
    cut = compress_dense(DenseDelta({"m": torch.from_numpy(full)}), 2)
    assert cut.relative_error["m"] == pytest.approx(np.linalg.norm(s[2:]) / np.linalg.norm(s), abs=1e-6)


def test_a_merger_may_give_an_adapter(members, stack) -> None:
    composed = Merged("newest", Newest(), members, lambda: FakeRuntime(stack))
    for stage, k in ((1, 0), (3, 2), (4, 3)):
        expected = stack.modules["m"].delta(torch.eye(4)[k])
        torch.testing.assert_close(composed.plan(stage, []).factors.delta("m"), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(composed.as_adapter(stage, stack, no_weight).delta("m"), expected)


def test_any_other_merge_is_compared_with_the_mean(members, stack, monkeypatch) -> None:
    monkeypatch.setitem(MERGERS.table, "newest", f"{__name__}:Newest")
    runtime = FakeRuntime(stack)
    fitted = Merged.fit(members, ComposeConfig(merger="newest"), lambda: runtime, SilentObserver())
    deltas = [stack.modules["m"].delta(torch.eye(4)[k]).double().numpy() for k in (0, 2, 3)]
    mean = sum(deltas) / 3
    expected = np.linalg.norm(deltas[-1] - mean) / np.linalg.norm(mean)
    assert fitted.report["distance"] == {"m": pytest.approx(expected, rel=1e-5)}


@dataclass(frozen=True)
class ByNote(Merger):
    """The adapters by weights that the tasks recorded."""

    needs = ("note", "other")

    def merge(self, sources: Sources) -> dict[str, float]:
        return {task: float(note) for task, note in zip(sources.tasks, sources.facts("note"), strict=True)}


def recorded(members: list[Member], read: list[str], **notes: str) -> list[Member]:
    def fact(digest: str) -> bytes:
        read.append(digest)
        return notes[digest].encode()

    return [replace(m, facts={"note": d, "other": "o"}, read_fact=fact) for m, d in zip(members, notes, strict=True)]


def test_a_merger_reads_what_the_tasks_recorded(members, stack, monkeypatch) -> None:
    monkeypatch.setitem(MERGERS.table, "by-note", f"{__name__}:ByNote")
    runtime, read = FakeRuntime(stack), []
    own = recorded(members, read, d1="0.5", d2="-2", d3="1")
    composed = Merged("by-note", ByNote(), own, lambda: runtime)
    found = composed.as_adapter(3, stack, no_weight).delta("m")
    torch.testing.assert_close(found, stack.modules["m"].delta(torch.tensor([0.5, 0, -2, 0])), rtol=1e-5, atol=1e-5)
    assert read == ["d1", "d2"]  # of the members that the stage knows, and only the role that was asked for
    other = Merged("by-note", ByNote(), recorded(members, read, d1="1", d4="1", d5="1"), lambda: runtime)
    assert composed.identity(1) == other.identity(1)
    assert composed.identity(3) != other.identity(3)
    fitted = Merged.fit(own, ComposeConfig(merger="by-note"), lambda: runtime, SilentObserver())
    assert fitted.report["distance"]["m"] < 1e-6


def test_a_task_that_recorded_nothing_of_it_is_named(members, stack, monkeypatch) -> None:
    monkeypatch.setitem(MERGERS.table, "by-note", f"{__name__}:ByNote")
    own = recorded(members, [], d1="0.5", d2="-2", d3="1")
    own[1] = replace(own[1], facts={"note": "d2"})
    with pytest.raises(NotFoundError, match="task 'spam' recorded no 'other', which the merger by-note needs"):
        Merged.fit(own, ComposeConfig(merger="by-note"), no_model, SilentObserver())


def no_model() -> None:
    raise AssertionError("nothing is loaded for it")


@pytest.mark.parametrize(
    "parameters",
    [{"weights": {"sentiment": 1.0}}, {"weights": dict.fromkeys(TASKS, "much")}, {"weights": {}}, {"max_rank": 0.5}],
)
def test_a_record_that_says_no_weights_is_no_composition(members, stack, parameters) -> None:
    stored = {"weights": dict.fromkeys(TASKS, 1.0), "max_rank": None} | parameters
    with pytest.raises(ValueError, match=r"weight|max_rank"):
        Merged.load(CompositionRecord("mix", "manual", (), (), stored, {}), {}, members, lambda: None)


def test_a_record_of_before_there_were_mergers_is_a_weighted_sum(members, stack) -> None:
    runtime = type("Runtime", (), {"stack": stack})()
    stored = {"weights": {"sentiment": 0.5, "spam": -2, "products": 1.0}, "max_rank": None}
    composed = Merged.load(CompositionRecord("mix", "manual", (), (), stored, {}), {}, members, lambda: runtime)
    assert composed.plan(4, []).weights.tolist() == [0.5, 0, -2, 1]
    assert composed.identity(4) == ["sum", None, [("a", 0.5), ("b", -2.0), ("c", 1.0)]]


def test_weights_are_a_setting_of_mergers_alone() -> None:
    weighed = chosen_method(MERGERS, ComposeConfig(weights="a=0.5", set=("max_rank=2",)))
    assert (weighed.weights, weighed.max_rank) == ("a=0.5", 2)
    with pytest.raises(ConfigError, match=r"^--weights: router kmeans: there is no setting 'weights'"):
        chosen_method(ROUTERS, ComposeConfig(mode="prototype", weights="a=0.5"))


def test_the_seed_of_a_merger_and_that_of_a_fit_are_told_apart() -> None:
    def again(**parameters: object) -> str:
        return with_its_settings(CompositionRecord("mix", "merged", ("a",), (), parameters, {})).line()

    start = "lorabank compose --mode merged --name mix --tasks a --merger"
    assert again(merger="dare", drop=0.5, seed=3) == f"{start} dare --set seed=3"
    assert again(merger="fisher", rows=8, seed=3, batch_size=32) == f"{start} fisher --seed 3 --set rows=8"
