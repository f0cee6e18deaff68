"""What every composition mode of the table promises, on real banks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.compose import gated
from lorabank.core.config import ComposeConfig, EvalConfig, PredictConfig
from lorabank.core.errors import ExistsError, NotFoundError
from lorabank.core.shelves import COMPOSERS
from lorabank.models.bases.open_base import OpenBase
from lorabank.workflows.assemble import RuntimeSettings, load_composer, load_runtime
from lorabank.workflows.results import ComposeResult
from tests.contract.conftest import KINDS, Lab


@pytest.fixture(scope="session", params=KINDS)
def lab(request: pytest.FixtureRequest, make_lab: Callable[[str], Lab]) -> Lab:
    return make_lab(request.param)


def distinct() -> list[str]:
    """The modes, each composer once: some have a second name."""
    return sorted({COMPOSERS.load(mode): mode for mode in sorted(COMPOSERS)}.values())


@pytest.fixture(params=distinct())
def mode(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def compose(bank: Path, mode: str, **config: object) -> ComposeResult:
    return api.compose(
        bank, ComposeConfig(**({"mode": mode, "set": ("kmeans.clusters_per_task=2",), "device": "cpu"} | config))
    )


def answers(path: Path, name: str, stage: int, texts: list[str]) -> tuple[tuple[str, ...], list[float]]:
    """Labels and probabilities under the first task's head."""
    bank = Bank.open(path)
    snapshot = bank.snapshot()
    runtime = load_runtime(
        bank, snapshot, OpenBase(snapshot.base), RuntimeSettings(device="cpu", dtype="float32", batch_size=5)
    )
    composer, _ = load_composer(bank, snapshot, snapshot.composition(name), lambda: runtime)
    found = runtime.answer(texts, composer.plan(stage, texts), 0)
    return found.said, found.probabilities.tolist()


@pytest.mark.parametrize("strategy", ["olora", "seqlora"])
def test_one_adapter_answers_as_itself(copy, adapters, by_hand, texts, mode: str, strategy: str) -> None:
    bank = copy(strategy, 1)
    compose(bank, mode)
    (only,) = adapters(bank)
    expected = by_hand(bank, [only.digest], only.digest, texts)
    found = api.predict(bank, texts, PredictConfig(composition=mode, device="cpu", batch_size=5))
    labels = Bank.open(bank).snapshot().task("one").labels
    assert [one.label for one in found] == [labels[i] for i in expected.argmax(-1).tolist()]
    assert [one.probability for one in found] == pytest.approx(expected.max(-1).values.tolist(), abs=1e-5)
    assert {one.task for one in found} == {"one"}


def test_an_empty_bank_has_nothing_to_compose(copy, mode: str) -> None:
    with pytest.raises(NotFoundError, match="no task to compose") as caught:
        compose(copy("olora", 0), mode)
    assert list(map(str, caught.value.commands)) == ["lorabank add-task NAME --data FILE"]


@pytest.mark.by_turns
def test_a_stage_ignores_later_tasks(copy, lab, texts, mode: str, tmp_path: Path) -> None:
    two, three = copy("olora", 2), Path(shutil.copytree(lab.bank("olora", 3), tmp_path / "three"))
    compose(two, mode)
    compose(three, mode)
    for stage in (1, 2):
        before, after = answers(two, mode, stage, texts), answers(three, mode, stage, texts)
        assert before[0] == after[0]
        assert before[1] == pytest.approx(after[1], abs=1e-6)
    last = answers(three, mode, 3, texts)
    assert last[1] != pytest.approx(answers(three, mode, 1, texts)[1], abs=1e-3)  # the later tasks do matter


def test_a_copied_bank_gives_the_same_answers(copy, texts, mode: str, tmp_path: Path) -> None:
    bank = copy("olora", 2)
    compose(bank, mode)
    expected = answers(bank, mode, 2, texts)
    moved = Path(shutil.copytree(bank, tmp_path / "moved"))
    shutil.rmtree(bank)
    assert answers(moved, mode, 2, texts) == expected
    assert Bank.open(moved).verify(full=True) == []


def test_composing_again_gives_the_same_objects(copy, mode: str) -> None:
    bank = copy("olora", 2)
    first, second = compose(bank, mode, name="first"), compose(bank, mode, name="second")
    assert first.composition.objects == second.composition.objects
    assert first.composition.parameters == second.composition.parameters
    assert first.report == second.report


@pytest.mark.by_turns
def test_a_batch_of_any_size_gives_the_same_answers(copy, texts, mode: str) -> None:
    bank = copy("olora", 2)
    compose(bank, mode)
    every = [
        api.predict(bank, texts, PredictConfig(composition=mode, device="cpu", batch_size=size)) for size in (1, 7)
    ]
    for one, other in zip(*every, strict=True):
        assert (one.label, one.task) == (other.label, other.task)
        expected = pytest.approx(other.adapters, abs=1e-5) if mode == "gated" else other.adapters
        assert one.adapters == expected
        assert one.probability == pytest.approx(other.probability, abs=1e-5)


def test_fitting_changes_no_stored_byte(copy, lab, mode: str) -> None:
    bank = copy("olora", 2)
    before = {file: file.read_bytes() for file in (bank / "adapters").rglob("*") if file.is_file()}
    compose(bank, mode)
    assert {file: file.read_bytes() for file in (bank / "adapters").rglob("*") if file.is_file()} == before


def test_it_can_be_measured(copy, mode: str) -> None:
    bank = copy("olora", 2)
    compose(bank, mode)
    config = EvalConfig(compositions=(mode,), forgetting_matrix=True, forward_transfer=True, device="cpu")
    (report,) = api.evaluate(bank, config)
    assert all(value is not None for row in report.values for value in row)
    assert report.task_id == ("routed" if COMPOSERS.load(mode).routed else "given")
    (again,) = api.evaluate(bank, config)
    assert again.computed == 0
    assert again.values == report.values


def test_a_name_that_is_taken_needs_replace(copy, mode: str) -> None:
    bank = copy("olora", 2)
    compose(bank, mode)
    with pytest.raises(ExistsError):
        compose(bank, mode)
    compose(bank, mode, replace=True, tasks="two")
    (stored,) = Bank.open(bank).snapshot().compositions
    assert stored.members == ("two",)


@pytest.mark.by_turns
@pytest.mark.parametrize("head_from", ["kmeans", "gaussian"])
def test_heads_can_be_routed(copy, mode: str, head_from: str) -> None:
    bank = copy("olora", 2)
    compose(bank, mode)
    (report,) = api.evaluate(bank, EvalConfig(compositions=(mode,), head_from=head_from, device="cpu"))
    assert report.task_id == "routed"
    assert np.sum(report.routing["confusion"]) == sum(report.counts)


def test_a_stage_that_a_matrix_asked_for_is_fitted_once(copy, monkeypatch) -> None:
    bank = copy("olora", 3)
    compose(bank, "gated", name="late", stages="last")
    compose(bank, "gated", name="whole")
    fits: list[int] = []
    fit = gated.fit_gate
    monkeypatch.setattr(gated, "fit_gate", lambda members, *rest: fits.append(len(members)) or fit(members, *rest))

    def matrix(name: str, batch_size: int) -> list[list[float | None]]:
        config = EvalConfig(compositions=(name,), forgetting_matrix=True, device="cpu", batch_size=batch_size)
        (report,) = api.evaluate(bank, config)
        assert report.computed >= 2  # stage 2 at least, whose gates are two to whom the cells belong
        return report.values

    expected = matrix("whole", 7)
    assert fits == []
    assert matrix("late", 7) == expected
    assert fits == [2]
    assert matrix("late", 5) == matrix("whole", 5)
    assert fits == [2]
    with api.open(bank) as session:
        session.evaluate(EvalConfig(compositions=("late",), forgetting_matrix=True, device="cpu", batch_size=3))
    assert fits == [2]
    assert Bank.open(bank).verify(full=True) == []
    assert [entry.kind for entry in api.history(bank)].count("derive") == 1
