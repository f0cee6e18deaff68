"""Routing to the task whose texts a text resembles, with features given by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from lorabank.compose.base import Member
from lorabank.compose.known_tasks import all_kept
from lorabank.compose.routed import OF_HEADS, Routed, known_for_heads
from lorabank.compose.routers.statistics import TaskStatistics, fit_statistics
from lorabank.core.config import ComposeConfig
from lorabank.core.errors import NotFoundError
from lorabank.core.observer import SilentObserver
from lorabank.core.records import CompositionRecord
from lorabank.models.answering.base import AnswerForm

FEATURES = {"east": (1.0, 0.0, 0.0), "north": (0.0, 1.0, 0.0), "up": (0.0, 0.0, 1.0), "between": (0.8, 0.6, 0.0)}
FORM = AnswerForm(("no", "yes"), 66)
STACK = ("x", "y", "z", "stranger")


class FakeRuntime:
    """A stack of names, and features from the table above."""

    class stack:
        names = STACK

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []

    routing_layers = (1,)

    def layer_features(self, texts, max_length: int, layers) -> list[np.ndarray]:
        self.asked.append(tuple(texts))
        return [np.array([FEATURES[text.split()[0]] for text in texts], np.float32) for _ in layers]


def statistics_of(direction: str) -> TaskStatistics:
    """Ten rows around a direction."""
    noise = np.random.default_rng(sum(map(ord, direction))).normal(scale=0.05, size=(10, 3))
    rows = np.array(FEATURES[direction]) + noise
    return fit_statistics((rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), 2, 0)


@pytest.fixture
def members() -> list[Member]:
    """The second task was trained on top of the first."""
    rows = [
        ("first", 1, "x", ("x",), "east"),
        ("second", 2, "y", ("x", "y"), "north"),
        ("third", 4, "z", ("z",), "up"),
    ]
    return [
        Member(
            task=name,
            position=position,
            adapter=adapter,
            state=state,
            head=position,
            form=FORM,
            statistics=partial(statistics_of, direction),
            clusters=2,
            texts=(f"{direction} 1", f"{direction} 2"),
            targets=("no", "yes"),
        )
        for name, position, adapter, state, direction in rows
    ]


def load(members: list[Member], runtime: FakeRuntime, **config) -> Routed:
    settings = ComposeConfig(**({"mode": "prototype", "set": ("kmeans.clusters_per_task=2",)} | config))
    fitted = Routed.fit(members, settings, lambda: runtime, SilentObserver())
    record = CompositionRecord("routed", "prototype", (), (), fitted.parameters, {})
    return Routed.load(record, fitted.objects, members, lambda: runtime)


@pytest.mark.parametrize("router", ["kmeans", "gaussian"])
def test_every_text_gets_the_state_of_its_task(members, router: str) -> None:
    plan = load(members, FakeRuntime(), router=router).plan(4, ["up", "east", "north", "between"])
    assert plan.route.tolist() == [2, 0, 1, 0]
    assert plan.weights.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 0, 0]]


@pytest.mark.parametrize("router", ["kmeans", "gaussian"])
def test_a_stage_knows_no_later_task(members, router: str) -> None:
    composed = load(members, FakeRuntime(), router=router)
    assert composed.plan(1, ["up", "north"]).route.tolist() == [0, 0]
    assert composed.plan(3, ["north", "east"]).route.tolist() == [1, 0]


def test_equally_near_centroids_go_to_the_earlier_task(members) -> None:
    same = [*members[:2], Member("twin", 3, "z", ("z",), 2, FORM, members[0].statistics, 2)]
    for order in (same, [same[2], *same[:2]]):
        route = load(order, FakeRuntime()).plan(9, ["east"]).route
        assert order[route[0]].task == order[0].task


def test_stored_statistics_need_no_model(members) -> None:
    runtime = FakeRuntime()
    load(members, runtime)
    load(members, runtime, router="gaussian", set=("kmeans.clusters_per_task=7",))
    assert runtime.asked == []


@pytest.mark.parametrize("router", ["kmeans", "gaussian"])
def test_statistics_that_the_bank_holds_are_named_and_not_read(members, router: str) -> None:
    held = [
        replace(member, statistics_digest=member.task[0] * 64, statistics=lambda: pytest.fail("they are read"))
        for member in members
    ]
    settings = ComposeConfig(mode="prototype", router=router, set=("kmeans.clusters_per_task=2",))
    fitted = Routed.fit(held, settings, FakeRuntime, SilentObserver())
    names = {f"prototypes:{member.task}": member.task[0] * 64 for member in members}
    assert (fitted.objects, fitted.kept) == ({}, names)
    record = CompositionRecord("routed", "prototype", (), (), fitted.parameters, fitted.kept)
    composed = Routed.load(record, {}, held, FakeRuntime)
    known = json.loads(composed.identity(2).text)[2]
    assert known == [["first", ["x"], "f" * 64], ["second", ["x", "y"], "s" * 64]]


def test_another_number_of_centroids_is_fitted_on_the_samples(members) -> None:
    runtime = FakeRuntime()
    composed = load(members, runtime, set=("kmeans.clusters_per_task=1",))
    assert runtime.asked == [member.texts for member in members]
    assert composed.plan(4, ["up", "east", "north"]).route.tolist() == [2, 0, 1]


def test_without_samples_the_number_of_centroids_is_fixed(members) -> None:
    bare = [Member(m.task, m.position, m.adapter, m.state, m.head, m.form, m.statistics, 2) for m in members]
    with pytest.raises(
        NotFoundError, match="'first' keeps 2 centroids and not 3, and no samples from which to compute what"
    ) as caught:
        load(bare, FakeRuntime(), set=("kmeans.clusters_per_task=3",))
    assert caught.value.hint == "another router, or its settings with which the task was added"


def test_the_identity_differs_when_the_answers_may(members) -> None:
    runtime = FakeRuntime()
    configs = (
        {},
        {"router": "gaussian"},
        {"router": "gaussian", "set": ("shrinkage=0.5",)},
        {"set": ("clusters_per_task=1",)},
    )
    identities = [repr(load(members, runtime, **config).identity(stage)) for config in configs for stage in (1, 2, 4)]
    assert len(set(identities)) == 12
    # the shrinkage means nothing to k-means
    other = ("gaussian.shrinkage=0.5", "clusters_per_task=2")
    assert load(members, runtime, set=other).identity(4) == load(members, runtime).identity(4)


def test_a_router_reads_as_much_as_the_longest_member_was_trained_with(members) -> None:
    longer = [replace(members[0], form=replace(FORM, max_length=99)), *members[1:]]
    assert load(longer, FakeRuntime()).identity(4) != load(members, FakeRuntime()).identity(4)


def test_the_margin_is_what_separates_the_two_nearest_tasks(members) -> None:
    plan = load(members, FakeRuntime()).plan(4, ["between"])
    between = np.array(FEATURES["between"])
    near = [min(((between - c) ** 2).sum() for c in member.statistics().centroids.astype(float)) for member in members]
    assert plan.margin[0] == pytest.approx(near[1] - near[0], rel=1e-6)
    assert load(members[:1], FakeRuntime()).plan(1, ["up"]).margin.tolist() == [np.inf]


def test_a_soft_router_mixes_the_states_of_all_tasks(members) -> None:
    plan = load(members, FakeRuntime(), router="similarity", set=()).plan(4, ["between", "up"])
    unit = [m.statistics().mean / np.linalg.norm(m.statistics().mean) for m in members]
    for i, direction in enumerate(("between", "up")):
        z = np.array([FEATURES[direction] @ mean for mean in unit])
        z[z.argmax()] *= 4
        shares = np.exp(z) / np.exp(z).sum()
        np.testing.assert_allclose(plan.posterior[i], shares, atol=1e-6)
        # the second task's state has the first one's adapter too
        np.testing.assert_allclose(plan.weights[i], [shares[0] + shares[1], shares[1], shares[2], 0], atol=1e-6)
    assert plan.route.tolist() == [0, 2]


def test_statistics_that_are_not_kept_are_made_of_samples_and_stored(members) -> None:
    runtime, told = FakeRuntime(), []
    settings = ComposeConfig(mode="routed")

    class Observer(SilentObserver):
        def notice(self, message: str) -> None:
            told.append(message)

    fitted = Routed.fit(members, settings, lambda: runtime, Observer())
    assert fitted.parameters["router"] == "layered"
    assert fitted.objects.keys() == {"prototypes:first", "prototypes:second", "prototypes:third"}
    assert fitted.parameters["calibration"]["from_samples"] == ["first", "second", "third"]
    assert told == ["routing statistics of first, second, third are computed from the kept samples"]
    record = CompositionRecord("routed", "routed", (), (), fitted.parameters, {})
    composed = Routed.load(record, fitted.objects, members, lambda: runtime)
    assert composed.plan(4, ["up", "east", "north"]).route.tolist() == [2, 0, 1]
    assert json.loads(composed.identity(4).text)[1][:2] == ["layered", [0.3, 0.1, 3.0, 0.1]]


@pytest.mark.parametrize("router", ["kmeans", "gaussian"])
def test_another_layer_is_computed_from_samples(members, router: str) -> None:
    runtime = FakeRuntime()
    composed = load(members, runtime, router=router, set=("layer=1", "*.clusters_per_task=2"))
    assert runtime.asked == [member.texts for member in members]
    assert composed.plan(4, ["up", "east", "north"]).route.tolist() == [2, 0, 1]
    assert composed.identity(4) != load(members, runtime, router=router).identity(4)


def test_heads_are_found_by_the_best_router_whose_statistics_all_members_keep(members) -> None:
    with_layers = [replace(member, facts={"routing": member.task}) for member in members]
    for some, name in ((members, "gaussian"), ([*with_layers[:2], members[2]], "gaussian"), (with_layers, "layered")):
        method, tasks = known_for_heads(some)
        assert method is OF_HEADS[name]
        assert [task.member for task in tasks] == some
    with pytest.raises(NotFoundError, match="router 'layered': task 'third' keeps no statistics for this router"):
        all_kept([*with_layers[:2], members[2]], "layered", OF_HEADS["layered"])
