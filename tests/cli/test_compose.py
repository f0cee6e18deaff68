"""compose: what it passes on and what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorabank.core.config import ComposeConfig
from lorabank.core.records import CompositionRecord
from lorabank.workflows.results import ComposeResult


def test_compose_shows_its_report(run: Any, api: Any) -> None:
    record = CompositionRecord("routed", "prototype", ("a", "b"), ("1" * 64, "2" * 64), {}, {})
    api["compose"] = ComposeResult(record, {"routing_accuracy": 0.91, "errors": [{"module": "query", "error": 0.01}]})
    shown = run("compose", "--mode", "prototype", "--name", "routed", "--router", "gaussian")
    assert shown.out.splitlines()[0] == "made composition routed in bank"
    assert "routing_accuracy  0.91\n" in shown.out
    assert "query   0.0100" in shown.out
    assert "lorabank eval --composition routed --forgetting-matrix" in shown.out
    config = api.called("compose")["config"]
    assert (config.mode, config.name, config.router) == ("prototype", "routed", "gaussian")


def test_compose_shows_how_a_merge_was_checked(run: Any, api: Any) -> None:
    record = CompositionRecord("sum", "merged", ("a", "b"), ("1" * 64, "2" * 64), {}, {})
    scores = [{"task": "a", "metric": "accuracy", "before": 0.75, "after": 0.5, "rows": 12}]
    distance = {f"layer.{number}": number / 10 for number in range(5)}
    api["compose"] = ComposeResult(record, {"distance": distance, "scores": scores})
    words = ("compose", "--mode", "merged", "--tolerance", "0.5", "--no-scores")
    shown = run(*words)
    assert [line.split() for line in shown.out.splitlines()[2:4]] == [
        ["median", "of", "5", "modules", "0.2"],
        ["layer.4", "0.4"],
    ]
    assert "layer.1" not in shown.out
    assert "a     accuracy  0.7500  0.5000    12" in shown.out
    config = api.called("compose")["config"]
    assert (config.tolerance, config.scores) == (0.5, False)
    assert run(*words, "--json").document["report"] == {"distance": distance, "scores": scores}


def test_compose_takes_its_old_flags_and_says_what_to_write(run: Any, api: Any, tmp_path: Path) -> None:
    record = CompositionRecord("sum", "merged", ("a", "b"), ("1" * 64, "2" * 64), {}, {})
    api["compose"] = ComposeResult(record, {})
    shown = run("compose", "--mode", "merged", "--weights", "a=0.7,b=-1", "--max-rank", "2", "--set", "other=1")
    assert api.called("compose")["config"].set == ("other=1", "*.max_rank=2")
    assert api.called("compose")["config"].weights == "a=0.7,b=-1"
    assert "--max-rank is an old name: write --set '*.max_rank=2'\n" in shown.err
    assert "--max-rank" not in run("compose", "--help").out
    file = tmp_path / "lora.toml"
    file.write_text("[compose]\nlearning-rate = 0.5\nepochs = 3\n[compose.gaussian]\nshrinkage = 0.2\n")
    run("compose", "--mode", "gated", "--config", str(file))
    expected = ("gaussian.shrinkage=0.2", "*.epochs=3", "*.learning_rate=0.5")
    assert api.called("compose")["config"].set == expected
    assert run("compose", "--mode", "gated", "--epochs", "3", "--set", "attention.epochs=2").code == 2


def test_what_a_file_sets_for_another_mode_is_left_out_and_what_is_typed_is_passed_on(
    run: Any, api: Any, tmp_path: Path
) -> None:
    api["compose"] = ComposeResult(CompositionRecord("sum", "merged", ("a", "b"), ("1" * 64, "2" * 64), {}, {}), {})
    file = tmp_path / "lora.toml"
    file.write_text('[compose]\nrouter = "gaussian"\ntolerance = 0.5\nbatch-size = 7\n')
    assert run("compose", "--mode", "merged", "--config", str(file)).code == 0
    config = api.called("compose")["config"]
    assert (config.router, config.tolerance, config.batch_size) == (ComposeConfig.router, 0.5, 7)
    assert run("compose", "--mode", "routed", "--config", str(file)).code == 0
    config = api.called("compose")["config"]
    assert (config.router, config.tolerance) == ("gaussian", None)
    run("compose", "--mode", "merged", "--router", "gaussian")
    assert api.called("compose")["config"].router == "gaussian", "the library refuses it"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--tasks", "spam,sentimnt"], 3, "sentimnt"),
        (["--tasks", ","], 2, "--tasks names no task"),
        (["--name", "both"], 4, "the bank has a composition 'both' already"),
        (["--name", "spam", "--replace"], 4, "the bank has a task 'spam' already"),
        (["--name", "no/name"], 2, "no/name"),
        (["--set", "nothing=1"], 2, "nothing"),
    ],
)
def test_a_dry_run_refuses_what_the_command_refuses(
    run: Any, bank: Any, words: list[str], code: int, said: str
) -> None:
    planned, real = (run("compose", "--mode", "routed", *words, *more) for more in (["--dry-run"], []))
    assert (planned.code, planned.out) == (code, "")
    assert said in planned.err
    assert (real.code, real.err) == (planned.code, planned.err)


def test_a_dry_run_refuses_weights_of_others(run: Any, bank: Any) -> None:
    shown = run("compose", "--mode", "merged", "--weights", "sentiment=1,ham=2", "--dry-run")
    assert shown.code == 2
    assert "weights names 'ham', which is not a member" in shown.err


def test_a_dry_run_shows_the_members_in_the_order_of_the_tasks(run: Any, bank: Any) -> None:
    words = ("compose", "--mode", "routed", "--name", "both", "--replace", "--dry-run", "--json")
    assert run(*words, "--tasks", "spam, sentiment").document["members"] == ["sentiment", "spam"]
    assert run(*words, "--tasks", "spam").document["members"] == ["spam"]
    assert run(*words).document["members"] == ["sentiment", "spam"]
