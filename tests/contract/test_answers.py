"""Free text in a whole bank: its metrics and samples in add-task, import, eval and the report, and its headline."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from lorabank_cli.main import main

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import EvalConfig, GenerateConfig, InitConfig, TrainConfig
from lorabank.core.shelves import TEXT_METRICS

LONG = "The {0} is warm, and it stays so for days."
FAST = {
    "epochs": 1, "batch_size": 4, "r": 2, "keep_samples": 4, "clusters_per_task": 2, "set": ("max_new_tokens=8",),
    "device": "cpu", "eval_fraction": 0.4,
}  # fmt: skip


def learn(bank: Path, name: str, answer: str, base: Path, **more: Any) -> Any:
    rows = [{"instruction": f"Tell of <b>{word}</b>", "output": answer.format(word)} for word in WORDS]
    data = bank.parent / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return api.add_task(
        bank, name, TrainConfig(**({"data": str(data)} | FAST | more)), init=InitConfig(base=str(base))
    )


WORDS = ["sun", "rain", "snow", "wind", "fog", "hail", "ice", "dew", "frost", "mist", "heat", "cloud"]


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory, save_language_model: Callable[..., Path]) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("answers")
    base = save_language_model(folder / "base")
    return folder / "bank", learn(folder / "bank", "long", LONG, base), learn(folder / "bank", "short", "{0}", base)


def test_long_answers_are_compared_and_short_ones_matched(bank: tuple[Path, Any, Any]) -> None:
    _, long, short = bank
    assert (long.score["metric"], short.score["metric"]) == ("token_f1", "exact_match")
    assert long.adapter.metrics["text_metric"] == "token_f1"
    assert 0 <= long.score["low"] <= long.score["value"] <= long.score["high"] <= 1


def test_the_figures_are_those_of_the_answers(bank: tuple[Path, Any, Any]) -> None:
    """Against the answers that `generate` gives to the same prompts."""
    path, long, _ = bank
    scores = long.score["texts"]
    lines = [json.loads(line) for line in (path.parent / "long.jsonl").read_text().splitlines()]
    wanted = {row["instruction"]: row["output"] for row in lines}
    (report,) = api.evaluate(path, EvalConfig(task="long", state="learnt", device="cpu"))
    assert report.texts["long"] == scores
    asked = [sample.asked for sample in scores.samples]
    config = GenerateConfig(task="long", state="learnt", device="cpu", max_new_tokens=8)
    answers = [one.label for one in api.generate(path, asked, config)]
    assert [sample.got for sample in scores.samples] == answers
    assert [sample.wanted for sample in scores.samples] == [wanted[text] for text in asked]
    assert len(asked) == long.score["n"] == 5
    assert scores.metrics["token_f1"] == long.score["value"]
    for name, metric in TEXT_METRICS.items():
        mean = fmean(metric(got, wanted[text]) for text, got in zip(asked, answers, strict=True))
        assert scores.metrics[name] == pytest.approx(mean)


def test_eval_and_report_show_them(bank: tuple[Path, Any, Any], tmp_path: Path, capsys: Any) -> None:
    path, _, short = bank
    assert main(["-b", str(path), "eval", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "free text  exact match  token f1  rouge l" in shown
    assert shown.count("evaluation row") == 10
    assert "asked   Tell of <b>" in shown
    assert main(["-b", str(path), "eval", "--device", "cpu", "--json"]) == 0
    (report,) = json.loads(capsys.readouterr().out)["reports"]
    assert set(report["texts"]) == {"long", "short"}
    assert set(report["texts"]["short"]["metrics"]) == set(TEXT_METRICS)
    page = api.report(path, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "Free text of long: exact match" in page
    assert "Tell of &lt;b&gt;" in page
    assert "<b>" not in page
    assert short.score["texts"].samples[0].wanted in page


def test_a_metric_that_was_chosen_stays(bank: tuple[Path, Any, Any]) -> None:
    path, *_ = bank
    (report,) = api.evaluate(path, EvalConfig(task="long", metric="exact_match", device="cpu"))
    assert report.metric == "exact_match"
    assert report.values[-1] == [report.texts["long"].metrics["exact_match"]]


def test_a_task_of_before_keeps_its_metric_and_is_answered_anew_for_its_samples(
    bank: tuple[Path, Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, *_ = bank
    sound, stored = Bank.snapshot, Bank.evaluations

    def before(self: Bank) -> Any:
        snapshot = sound(self)
        older = {
            position: adapter._replace(metrics={k: v for k, v in adapter.metrics.items() if k != "text_metric"})
            for position, adapter in snapshot.by_position.items()
        }
        return snapshot._replace(by_position=older)

    def bare(self: Bank, keys: Any) -> Any:
        return {key: cell._replace(detail={}) for key, cell in stored(self, keys).items()}

    monkeypatch.setattr(Bank, "snapshot", before)
    (report,) = api.evaluate(path, EvalConfig(task="long", device="cpu", batch_size=3))
    assert report.metric == "exact_match"
    monkeypatch.setattr(Bank, "evaluations", bare)
    (again,) = api.evaluate(path, EvalConfig(task="long", device="cpu", batch_size=3))
    assert again.texts == report.texts
    assert again.texts["long"].samples
