"""Every cell is computed once: by counting what runs."""

from __future__ import annotations

import pytest
from transformers import BertForSequenceClassification, BertModel

from lorabank import api
from lorabank.core.config import ComposeConfig, EvalConfig, InitConfig
from lorabank.core.errors import NotFoundError
from lorabank.core.observer import SilentObserver
from lorabank.workflows import assemble as view

MATRIX = EvalConfig(forgetting_matrix=True, device="cpu")
FORWARD = EvalConfig(forgetting_matrix=True, forward_transfer=True, device="cpu")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each forward pass of a whole model."""
    seen: list[str] = []
    for kind in (BertForSequenceClassification, BertModel):

        def forward(self, *args, _kind=kind, _original=kind.forward, **kwargs):
            seen.append(_kind.__name__)
            return _original(self, *args, **kwargs)

        monkeypatch.setattr(kind, "forward", forward)
    return seen


@pytest.mark.parametrize("composition", [None, "manual", "prototype", "attention"])
def test_a_second_call_runs_no_forward_pass(copy, passes, composition) -> None:
    bank = copy("olora", 2)
    config = MATRIX
    if composition:
        api.compose(
            bank, ComposeConfig(mode=composition, set=("kmeans.clusters_per_task=2",), scores=False, device="cpu")
        )
        config = EvalConfig(compositions=(composition,), forgetting_matrix=True, device="cpu")
    passes.clear()
    (first,) = api.evaluate(bank, config)
    assert passes
    assert first.computed > 0
    passes.clear()
    (second,) = api.evaluate(bank, config)
    assert passes == []
    assert (second.computed, second.cached) == (0, first.computed + first.cached)
    assert (second.values, second.low, second.high, second.counts) == (
        first.values,
        first.low,
        first.high,
        first.counts,
    )
    assert (second.scalars, second.routing) == (first.scalars, first.routing)


class Started(SilentObserver):
    """Remembers what began."""

    def __init__(self) -> None:
        self.what: list[str] = []

    def start(self, what: str, total: int) -> None:
        self.what.append(what)


def test_no_progress_is_shown_of_a_model_that_cannot_be_loaded(copy, monkeypatch) -> None:
    def gone(*_: object, **__: object) -> None:
        raise NotFoundError("no base model")

    bank = copy("olora", 2)
    with monkeypatch.context() as patched:
        patched.setattr(view, "load_runtime", gone)
        observer = Started()
        with pytest.raises(NotFoundError, match="no base model"):
            api.evaluate(bank, MATRIX, observer)
        assert observer.what == []
    api.evaluate(bank, MATRIX, observer)
    assert observer.what == ["scoring as-trained"]
    monkeypatch.setattr(view, "load_runtime", gone)
    api.evaluate(bank, MATRIX, observer)  # everything is stored: nothing is loaded
    assert observer.what == ["scoring as-trained"]


def test_a_new_task_computes_exactly_its_row(copy, lab, passes) -> None:
    bank = copy("olora", 2)
    (before,) = api.evaluate(bank, MATRIX)
    lab.add(bank, "three")  # scores the new task's own cell
    (after,) = api.evaluate(bank, MATRIX)
    assert (after.computed, after.cached) == (2, 3 + 1)
    assert [row[:2] for row in after.values[:3]] == before.values
    assert [row[2] for row in after.values] == [None, None, None, after.values[3][2]]
    assert None not in after.values[3]


def test_the_own_cell_of_a_new_task_is_the_one_of_eval(copy, lab) -> None:
    bank = copy("olora", 0)
    result = lab.add(bank, "one")
    (report,) = api.evaluate(bank, MATRIX)
    assert (report.computed, report.cached) == (0, 1)
    assert report.values[1][0] == result.score["value"]
    assert report.counts == [result.score["n"]]


def test_forward_transfer_fills_the_upper_triangle_and_the_untrained_row(copy) -> None:
    bank = copy("olora", 2)
    (lower,) = api.evaluate(bank, MATRIX)
    assert [[value is None for value in row] for row in lower.values] == [[True] * 2, [False, True], [False] * 2]
    assert lower.scalars["forward_transfer"] is None
    (whole,) = api.evaluate(bank, FORWARD)
    assert (whole.computed, whole.cached) == (3, 3)
    assert all(value is not None for row in whole.values for value in row)
    r = whole.values
    assert whole.scalars["forward_transfer"] == pytest.approx(r[1][1] - r[0][1])
    assert whole.scalars["backward_transfer"] == pytest.approx(r[2][0] - r[1][0])
    for stage in (1, 2):
        assert r[stage][0] == lower.values[stage][0]


@pytest.mark.parametrize("mode", ["manual", "routed"])
def test_before_its_first_member_the_untrained_base_answers_for_a_composition(copy, mode) -> None:
    bank = copy("olora", 2)
    api.compose(bank, ComposeConfig(mode=mode, name="late", tasks="two", scores=False, device="cpu"))
    (late,) = api.evaluate(bank, EvalConfig(compositions=("late",), forgetting_matrix=True, device="cpu"))
    (whole,) = api.evaluate(bank, FORWARD)
    assert late.values[1][0] == whole.values[0][0]
    assert None not in late.values[2]


def test_tasks_with_the_same_rows_share_routed_cells(copy, lab) -> None:
    bank = copy("olora", 1)
    api.add_task(bank, "again", lab.settings("one"), init=InitConfig(base=str(lab.base)))
    api.compose(bank, ComposeConfig(mode="prototype", set=("clusters_per_task=2",), device="cpu"))
    (report,) = api.evaluate(bank, EvalConfig(compositions=("prototype",), device="cpu"))
    assert report.tasks == ("one", "again")
    assert report.values[2][0] == report.values[2][1] is not None


def test_another_setting_is_another_cell(copy) -> None:
    bank = copy("olora", 2)
    api.evaluate(bank, MATRIX)
    (other,) = api.evaluate(bank, EvalConfig(forgetting_matrix=True, batch_size=3, device="cpu"))
    assert other.computed == 3


def test_equal_states_share_a_cell(copy) -> None:
    """With weight 1 for every task, ``manual`` is the state that olora left."""
    bank = copy("olora", 2)
    (trained,) = api.evaluate(bank, MATRIX)
    api.compose(bank, ComposeConfig(mode="manual", device="cpu"))
    (composed,) = api.evaluate(bank, EvalConfig(compositions=("manual",), forgetting_matrix=True, device="cpu"))
    assert composed.computed == 0
    assert composed.values == trained.values
    assert composed.subject == "manual"


def test_an_isolated_column_is_one_cell(copy) -> None:
    (report,) = api.evaluate(copy("isolated", 3), MATRIX)
    assert report.computed == 0  # each task's own cell was computed when it was added
    assert report.cached == 6


def test_all_scores_every_composition(copy) -> None:
    bank = copy("olora", 2)
    for mode in ("manual", "prototype"):
        api.compose(bank, ComposeConfig(mode=mode, set=("kmeans.clusters_per_task=2",), device="cpu"))
    reports = api.evaluate(bank, EvalConfig(all=True, device="cpu"))
    assert [report.subject for report in reports] == ["as-trained", "manual", "prototype"]


def test_an_empty_bank_has_nothing_to_score_or_say(copy) -> None:
    bank = copy("olora", 0)
    with pytest.raises(NotFoundError, match="no task to score"):
        api.evaluate(bank, MATRIX)
    with pytest.raises(NotFoundError, match="has no task"):
        api.predict(bank, ["a b"])


def test_a_routed_report_compares_with_the_oracle(copy, adapters, by_hand) -> None:
    from lorabank.bank.bank import Bank
    from lorabank.core.states import own_state
    from lorabank.data.formats.parquet import from_parquet

    path = copy("olora", 2)
    api.compose(path, ComposeConfig(mode="prototype", set=("clusters_per_task=2",), device="cpu"))
    (report,) = api.evaluate(path, EvalConfig(compositions=("prototype",), device="cpu"))
    bank = Bank.open(path)
    shares = []
    for task, adapter in zip(bank.snapshot().tasks, adapters(path), strict=True):
        rows = from_parquet(bank.read_blob(bank.snapshot().dataset(task.name, "eval").blob))
        said = by_hand(path, own_state(adapter), adapter.digest, list(rows.texts)).argmax(-1).tolist()
        shares.append(sum(task.labels[i] == gold for i, gold in zip(said, rows.labels, strict=True)) / len(rows))
    assert report.routing["oracle"] == pytest.approx(sum(shares) / 2)
    confusion = report.routing["confusion"]
    assert [sum(row) for row in confusion] == report.counts
    assert report.routing["accuracy"] == pytest.approx((confusion[0][0] + confusion[1][1]) / sum(report.counts))
    assert report.routing["routed"] == pytest.approx(sum(report.values[2]) / 2)
