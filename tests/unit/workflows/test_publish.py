"""Gates, plots, tables and the report: made of stored values, without a model."""

from __future__ import annotations

import csv
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import EvalConfig
from lorabank.core.errors import ConfigError, NotFoundError, StorageError
from lorabank.evaluation.confusion import LabelScores
from lorabank.models.bases import open_base
from lorabank.models.facts.curves import ROLE, LearningCurve
from lorabank.workflows.publish import newest_curves, stored_reports
from lorabank.workflows.results import MatrixReport
from tests.unit.components.page import assert_well_made


def make_report(**changes: Any) -> MatrixReport:
    facts: dict[str, Any] = {
        "subject": "as-trained",
        "mode": "as-trained",
        "task_id": "given",
        "tasks": ("first", "second"),
        "values": [[None, None], [0.9, None], [0.7, 0.8]],
        "low": [[None, None], [0.8, None], [0.6, 0.7]],
        "high": [[None, None], [0.95, None], [0.8, 0.9]],
        "counts": [20, 30],
        "scalars": {"backward_transfer": -0.2, "average_accuracy": 0.75, "forward_transfer": None},
        "computed": 3,
        "cached": 0,
        "routing": None,
        "settings": {},
    }
    return MatrixReport(**(facts | changes))


def test_every_gate_is_checked_on_every_report() -> None:
    other = make_report(scalars={"backward_transfer": 0.0, "average_accuracy": 0.5})
    results = api.check_gates([make_report(), other], ["backward_transfer>=-0.1", "average_accuracy >= 0.6"])
    assert [(result.metric, result.value, result.passed) for result in results] == [
        ("backward_transfer", -0.2, False),
        ("average_accuracy", 0.75, True),
        ("backward_transfer", 0.0, True),
        ("average_accuracy", 0.5, False),
    ]


def test_the_report_reads_the_curves_that_it_draws() -> None:
    """Eight trainings, of which the sixth cannot be read and the seventh was not recorded."""
    objects: list[dict[str, str]] = [{ROLE: f"{number}"} for number in range(8)]
    objects[6] = {}
    adapters = {f"t{number}": SimpleNamespace(objects=held) for number, held in enumerate(objects)}
    snapshot: Any = SimpleNamespace(tasks=[SimpleNamespace(name=name) for name in adapters], adapter_of=adapters.get)
    read: list[str] = []

    def read_blob(digest: str) -> bytes:
        read.append(digest)
        curve = LearningCurve(every=1, steps=(1,), losses=(float(digest),), learning_rates=(0.1,))
        return b"not a curve" if digest == "5" else curve.to_bytes()

    bank: Any = SimpleNamespace(read_blob=read_blob)
    found, more = newest_curves(bank, snapshot, 2)
    assert {name: curve.losses for name, curve in found.items()} == {"t7": (7.0,), "t4": (4.0,)}
    assert more
    assert read == ["7", "5", "4"]
    found, more = newest_curves(bank, snapshot, 6)
    assert (sorted(found), more) == (["t0", "t1", "t2", "t3", "t4", "t7"], False)


def test_what_was_not_measured_fails_its_gate() -> None:
    (result,) = api.check_gates([make_report()], ["forward_transfer<=1"])
    assert not result.passed


def test_a_gate_that_cannot_be_read_is_refused_before_there_is_a_report() -> None:
    with pytest.raises(ConfigError, match="backward_transfer"):
        api.check_gates([], ["backward_transfr>=0"])


@pytest.mark.parametrize(("name", "start"), [("m.png", b"\x89PNG"), ("m.svg", b"<?xml")])
def test_a_plot_is_drawn(tmp_path, name, start) -> None:
    path = api.save_plot(make_report(mode="manual", subject="mixed"), tmp_path / name)
    assert path.read_bytes().startswith(start)


def test_a_plot_names_subject_and_mode(tmp_path) -> None:
    def words(report: MatrixReport) -> str:
        # matplotlib draws text as shapes and names it in a comment
        return " ".join(
            re.findall(r"<!-- (.*?) -->", api.save_plot(report, tmp_path / "m.svg").read_text(encoding="utf-8"))
        )

    assert "mixed (manual)" in words(make_report(mode="manual", subject="mixed"))
    assert "as-trained (" not in words(make_report())


def test_a_table_holds_every_row_and_no_zero_for_what_is_missing(tmp_path) -> None:
    path = api.save_csv(make_report(), tmp_path / "m.csv")
    assert list(csv.reader(path.read_text(encoding="utf-8").splitlines())) == [
        ["after", "first", "second"],
        ["base", "", ""],
        ["first", "0.9", ""],
        ["second", "0.7", "0.8"],
    ]


@pytest.mark.parametrize("save", [api.save_plot, api.save_csv])
def test_a_folder_that_is_not_there_is_named(tmp_path, save) -> None:
    with pytest.raises(NotFoundError, match=f"no folder {tmp_path / 'none'}"):
        save(make_report(), tmp_path / "none" / "m.svg")
    (tmp_path / "m.svg").mkdir()
    with pytest.raises(StorageError):
        save(make_report(), tmp_path / "m.svg")


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(open_base, "load_base", refuse)


def evaluate(bank: Path, **config: Any) -> dict[str, MatrixReport]:
    reports = api.evaluate(bank, EvalConfig(device="cpu", **config))
    return {report.subject: report for report in reports}


def stored(bank: Path) -> dict[tuple[str, str], MatrixReport]:
    opened = Bank.open(bank)
    return {(report.subject, report.mode): report for report in stored_reports(opened, opened.snapshot())}


def test_nothing_measured_is_an_empty_report(tmp_path, bert_bank, no_model) -> None:
    bank = Bank.create(tmp_path / "empty", Bank.open(bert_bank).snapshot().base)
    assert stored_reports(bank, bank.snapshot()) == []
    path = api.report(tmp_path / "empty", tmp_path / "r.html")
    assert "0 tasks" in path.read_text(encoding="utf-8")


def test_the_report_says_what_eval_said_without_a_model(bank, compose, monkeypatch) -> None:
    compose("manual")
    compose("prototype", name="routed", router="gaussian")
    said = evaluate(bank, all=True, forgetting_matrix=True, forward_transfer=True)
    monkeypatch.setattr(open_base, "load_base", None)
    found = stored(bank)
    assert found.keys() == {("as-trained", "as-trained"), ("manual", "manual"), ("routed", "prototype")}
    for (name, _), report in found.items():
        assert (report.values, report.low, report.high) == (said[name].values, said[name].low, said[name].high)
        assert (report.scalars, report.routing) == (said[name].scalars, said[name].routing)
        assert (report.task_id, report.counts) == (said[name].task_id, said[name].counts)
        assert report.computed == 0
    assert found["routed", "prototype"].routing is not None


def test_only_what_was_measured_is_shown(bank, no_model) -> None:
    """Adding a task scores its own cell and no other."""
    (report,) = stored(bank).values()
    assert report.subject == "as-trained"
    assert [[value is not None for value in row] for row in report.values] == [
        [False, False],
        [True, False],
        [False, True],
    ]


def test_heads_from_a_router_stand_beside_those_of_the_task_id(bank) -> None:
    given = evaluate(bank)["as-trained"]
    routed = evaluate(bank, head_from="gaussian")["as-trained"]
    found = stored(bank)
    assert found["as-trained", "as-trained"].values[2] == given.values[2]
    other = found["as-trained", "as-trained, head by the gaussian router"]
    assert (other.values[2], other.task_id, other.routing) == (routed.values[2], "routed", routed.routing)
    assert len(found) == 2


def test_scores_of_a_replaced_composition_are_gone(bank, compose) -> None:
    compose("manual", set=("weights=first=1,second=-3",))
    before = evaluate(bank, compositions=("manual",))["manual"].values[2]
    assert stored(bank)["manual", "manual"].values[2] == before
    compose("manual", set=("weights=first=-2,second=1",), replace=True, scores=False)
    assert ("manual", "manual") not in stored(bank)


def test_scores_of_other_settings_do_not_mix(bank) -> None:
    """Of equally many cells the newest are shown; otherwise the most."""

    def shown() -> tuple[int, int]:
        (report,) = stored(bank).values()
        return report.settings["batch_size"], sum(value is not None for row in report.values for value in row)

    assert shown() == (64, 2)  # the own cells of both tasks
    for batch_size in (5, 6):
        evaluate(bank, batch_size=batch_size)
        assert shown() == (batch_size, 2)
    evaluate(bank, forgetting_matrix=True)
    assert shown() == (64, 3)
    evaluate(bank, batch_size=7)
    assert shown() == (64, 3)


def test_the_report_is_one_page_with_everything(bank, compose, tmp_path) -> None:
    compose("manual", name="mixed")
    evaluate(bank, all=True, forgetting_matrix=True)
    (report,) = api.evaluate(bank, EvalConfig(task="second", device="cpu"))
    page = api.report(bank, tmp_path / "bank.html").read_text(encoding="utf-8")
    assert report.labels["second"].mistakes, "the worst mistakes are to be shown"
    for one in report.labels["second"].mistakes:
        assert f'<td class="said">{one.text}</td>' in page
    for word in ("first", "second", "mixed", "olora", "default-src 'none'", "<svg"):
        assert word in page
    assert not re.search(r"<script|https?://(?!www\.w3\.org/)", page)
    with pytest.raises(NotFoundError, match="no folder"):
        api.report(bank, tmp_path / "none" / "bank.html")
    api.report(bank, tmp_path / "bank.html")  # a report may be made anew


def test_banks_are_compared_on_their_rows(bank, compose, tmp_path) -> None:
    """A bank beside its copy: no difference, and every other result is tested row by row against the first."""
    compose("manual", name="mixed")
    said = evaluate(bank, all=True, forgetting_matrix=True)
    other = tmp_path / "other"
    shutil.copytree(bank, other)
    page = assert_well_made(api.report(bank, tmp_path / "both.html", beside=[other]).read_text(encoding="utf-8"))
    start = next(k for k, text in enumerate(page.texts) if "paired by row" in text)
    assert page.texts[start].startswith(f"Difference to {bank.name}: as-trained, paired by row")
    mixed, copy, _ = (page.texts[start + k : start + k + 8] for k in (9, 17, 25))
    averages = {name: sum(report.values[-1]) / 2 for name, report in said.items()}
    assert mixed[:2] == [f"{bank.name}: mixed (manual)", f"{averages['mixed'] - averages['as-trained']:+.3f}"]
    assert copy[:5] == ["other: as-trained", "+0.000", "+0.000", "+0.000", "1.000"]
    assert copy[5:] == ["0", "0", str(sum(said["as-trained"].counts))]
    low = [task for task, scores in said["as-trained"].labels.items() if scores.chance_note]
    warned = [text for text in page.texts if text.startswith("other: as-trained: not clearly above chance")]
    assert len(warned) == bool(low)
    single = assert_well_made(api.report(bank, tmp_path / "one.html").read_text(encoding="utf-8"))
    assert "Difference to as-trained, paired by row, with its 95 % interval" in single.texts
    with pytest.raises(NotFoundError, match="neither a bank nor"):
        api.report(bank, tmp_path / "none.html", beside=[tmp_path / "none"])
    assert not (tmp_path / "none.html").exists()


def test_the_plot_of_a_task_is_its_confusion_matrix(bank, tmp_path) -> None:
    (report,) = api.evaluate(bank, EvalConfig(task="first", device="cpu"))
    words = re.findall(r"<!-- (.*?) -->", api.save_plot(report, tmp_path / "c.svg").read_text(encoding="utf-8"))
    (accuracy,) = report.values[-1]
    found = f"accuracy {accuracy:.4f}, macro-F1 {report.labels['first'].macro_f1:.4f}, {report.counts[0]} rows"
    # matplotlib draws text as shapes and names it in a comment, each line of a title by itself
    for word in ("wanted", "answered", "no", "yes", found, "first, in its state now"):
        assert any(word in said for said in words), word


def test_a_gate_on_macro_f1_is_about_the_tasks_with_labels() -> None:
    def scores(macro_f1: float) -> LabelScores:
        return LabelScores(macro_f1, 0.5, 0.5, "above", (), (), 0, ())

    both = make_report(labels={"first": scores(0.6), "second": scores(0.9)})
    (high, low) = api.check_gates([both], ["macro_f1>=0.75", "macro_f1>0.75"])
    assert (high.metric, high.value, high.passed, low.passed) == ("macro_f1", pytest.approx(0.75), True, False)
    (none,) = api.check_gates([make_report(labels={})], ["macro_f1>=0"])
    assert not none.passed
