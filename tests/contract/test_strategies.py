"""What every strategy of the table promises, on real banks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import EvalConfig, PredictConfig
from lorabank.core.machine.seeding import seed_everything
from lorabank.core.records import AdapterRecord
from lorabank.core.shelves import STRATEGIES
from lorabank.core.states import answering, deployed_state
from lorabank.training import run
from tests.contract.conftest import KINDS, Attended, Lab

WHOLE = EvalConfig(forgetting_matrix=True, device="cpu")


@pytest.fixture(scope="session", params=KINDS)
def lab(request: pytest.FixtureRequest, make_lab: Callable[[str], Lab]) -> Lab:
    return make_lab(request.param)


@pytest.fixture(params=sorted(STRATEGIES))
def strategy(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def contents(bank: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(bank)): file.read_bytes() for file in (bank / "adapters").rglob("*") if file.is_file()
    }


def _deployed(bank: Path, adapters: list[AdapterRecord], task: AdapterRecord) -> Any:
    """What `by_hand` takes: digests whose sum answers, or adapters under a recorded selector."""
    newest = answering(adapters, task)
    if newest is None or "selector" not in newest.objects:
        return deployed_state(adapters, task)
    tensors = load(Bank.open(bank).read_blob(newest.objects["selector"]))
    return Attended((*newest.context, newest.digest), tensors)


def test_a_table_entry_is_named_as_its_key(strategy: str) -> None:
    assert STRATEGIES.load(strategy).name == strategy


def test_earlier_adapters_keep_their_bytes(lab, strategy: str) -> None:
    before, after = contents(lab.bank(strategy, 1)), contents(lab.bank(strategy, 2))
    assert len(before) == 2
    assert len(after) == 4
    assert before.items() <= after.items()


def test_the_bank_is_clean_and_knows_what_was_active(lab, adapters, strategy: str) -> None:
    bank = lab.bank(strategy, 2)
    assert Bank.open(bank).verify(full=True) == []
    first, second = adapters(bank)
    assert (first.strategy, second.strategy) == (strategy, strategy)
    assert first.context == ()
    active = STRATEGIES.load(strategy).earlier in ("active", "attended")
    assert second.context == ((first.digest,) if active else ())
    assert list(second.metrics["overlap"]) == [first.digest]


def test_two_tasks_with_one_seed_have_other_factors(lab, adapters, strategy: str) -> None:
    first, second = adapters(lab.bank(strategy, 2))
    assert first.seed == second.seed
    assert first.digest != second.digest
    if STRATEGIES.load(strategy).earlier != "continued":
        assert second.metrics["overlap"][first.digest] < 0.5


@pytest.mark.by_turns
def test_no_adapter_is_drawn_as_an_earlier_one(copy, lab, adapters, strategy: str, monkeypatch) -> None:
    """Also after removals, of the first task and of the last."""
    bank, drawn = copy(strategy, 2), [0, 1]
    monkeypatch.setattr(run, "seed_everything", lambda seed: (drawn.append(seed), seed_everything(seed)))
    api.remove(bank, "one")
    third = lab.add(bank, "three", strategy=strategy).adapter
    (second, _) = adapters(bank)
    if STRATEGIES.load(strategy).earlier != "continued":
        assert third.metrics["overlap"][second.digest] < 0.5
    api.remove(bank, "three")
    lab.add(bank, "one", strategy=strategy)
    assert drawn == [0, 1, 2, 3]


def test_the_state_as_trained_answers_as_weights_summed_by_hand(lab, adapters, by_hand, texts, strategy: str) -> None:
    bank = lab.bank(strategy, 2)
    first, second = adapters(bank)
    for task, own in (("one", first), ("two", second)):
        expected = by_hand(bank, _deployed(bank, [first, second], own), own.digest, texts)
        found = api.predict(bank, texts, PredictConfig(task=task, device="cpu"))
        labels = Bank.open(bank).snapshot().task(task).labels
        assert [one.label for one in found] == [labels[i] for i in expected.argmax(-1).tolist()]
        assert [one.probability for one in found] == pytest.approx(expected.max(-1).values.tolist(), abs=1e-5)


def test_the_matrix_of_a_stage_ignores_later_tasks(copy, lab, strategy: str, tmp_path: Path) -> None:
    (before,) = api.evaluate(copy(strategy, 1), WHOLE)
    (after,) = api.evaluate(Path(shutil.copytree(lab.bank(strategy, 2), tmp_path / "after")), WHOLE)
    assert after.values[1][0] == before.values[1][0]
    assert after.values[1][1] is None
    assert after.values[0] == [None, None]


def test_a_score_is_the_share_of_right_answers(copy, adapters, by_hand, strategy: str) -> None:
    from lorabank.data.formats.parquet import from_parquet

    path = copy(strategy, 2)
    (report,) = api.evaluate(path, WHOLE)
    bank, records = Bank.open(path), adapters(path)
    for column, task in enumerate(bank.snapshot().tasks):
        rows = from_parquet(bank.read_blob(bank.snapshot().dataset(task.name, "eval").blob))
        for stage in range(column + 1, 3):
            state = _deployed(path, records[:stage], records[column])
            said = by_hand(path, state, records[column].digest, list(rows.texts)).argmax(-1).tolist()
            right = sum(task.labels[i] == gold for i, gold in zip(said, rows.labels, strict=True))
            assert report.values[stage][column] == right / len(rows)
        assert report.counts[column] == len(rows)


def test_an_isolated_task_scores_the_same_at_every_stage(copy) -> None:
    (report,) = api.evaluate(copy("isolated", 3), WHOLE)
    for task in range(3):
        column = [row[task] for row in report.values[task + 1 :]]
        assert column == [column[0]] * len(column)
    assert report.scalars["backward_transfer"] == 0
    assert report.scalars["forgetting"] == 0
