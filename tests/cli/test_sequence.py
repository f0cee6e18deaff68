"""``lorabank sequence run``: what reaches the library, and what the user reads of what it gave."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lorabank_cli.main import main

from lorabank.core.errors import ConfigError
from lorabank.sequences.results import (
    Interval,
    OrderEffect,
    SequenceCell,
    SequencePlan,
    SequenceResult,
    SequenceRow,
    SequenceRun,
)

LINES = (("sequence", "letters"), ("order 1", "one → two"), ("settings chosen", "on rows cut from train"))


def row(answers: str, task_id: Any, mean: float, half: float | None, **more: Interval | None) -> SequenceRow:
    nothing = dict.fromkeys(("forward_transfer", "oracle", "routing_accuracy"))
    scalars = {"average_accuracy": Interval(mean, half, 4), **nothing, **more}
    return SequenceRow("olora", answers, answers, task_id, 4, scalars, {"one": Interval(mean, half, 4)})


@pytest.fixture
def result() -> SequenceResult:
    rows = (
        row("as-trained", "given", 0.625, 0.0125),
        row("prototype", "routed", 0.5, None, oracle=Interval(0.75, None, 1)),
    )
    run = SequenceRun(1, "olora", 0, None)  # type: ignore[arg-type]
    return SequenceResult("letters", "/x/letters", {"seeds": [0]}, LINES, rows, (run,), ("/x/letters/table.md",), 3.0)


def test_options_reach_the_library(run: Callable[..., Any], api: Any, result: SequenceResult) -> None:
    api["run_sequence"] = result
    words = ["--out", "here", "--size", "small", "--dev", "--only", "olora", "--only", "seqlora"]
    assert run("sequence", "run", "x.toml", *words).code == 0
    called = api.called("run_sequence")
    called.pop("observer")
    assert called == {"file": "x.toml", "out": "here", "size": "small", "dev": True, "only": ("olora", "seqlora")}


def test_the_card_stands_above_the_table(run: Callable[..., Any], api: Any, result: SequenceResult) -> None:
    api["run_sequence"] = result
    found = run("sequence", "run", "x.toml")
    assert found.err == ""
    assert found.out.index("settings chosen  on rows cut from train") < found.out.index("0.6250 ± 0.0125")
    lines = [line.split() for line in found.out.splitlines()]
    assert ["olora", "as-trained", "given", "4", "0.6250", "±", "0.0125"] in lines
    assert ["olora", "prototype", "routed", "4", "0.5000", "0.7500"] in lines
    assert "forward transfer" not in found.out, "it was not measured"
    assert "/x/letters/table.md" in found.out
    assert "lorabank report --bank /x/letters/banks/order1/olora/seed0 report.html" in found.out


def test_a_table_at_chance_says_so_once_and_counts(run: Callable[..., Any], api: Any, result: SequenceResult) -> None:
    api["run_sequence"] = result
    assert "chance" not in run("sequence", "run", "x.toml").out
    rows = tuple(replace(one, judged=4, at_chance=4 - k) for k, one in enumerate(result.rows))
    api["run_sequence"] = replace(result, rows=rows, warning="EVERY RUN IS AT CHANCE: \x1b[31mred")
    found = run("sequence", "run", "x.toml")
    assert found.out.count("\nEVERY RUN IS AT CHANCE: ") == 1
    assert "\x1b" not in found.out
    header, *lines = (line for line in found.out.splitlines() if line.startswith(("trained by", "olora")))
    assert header.endswith("at chance")
    assert [line.split()[-3:] for line in lines] == [["4", "of", "4"], ["3", "of", "4"]]


def test_what_is_due_to_the_order_is_a_table_of_its_own(
    run: Callable[..., Any], api: Any, result: SequenceResult
) -> None:
    api["run_sequence"] = result
    assert "by order" not in run("sequence", "run", "x.toml").out, "there is one order"
    effect = OrderEffect({1: 0.5, 2: 0.75}, 0.1768, 0.17)
    rows = (replace(result.rows[0], orders={"average_accuracy": effect}), result.rows[1])
    api["run_sequence"] = replace(result, rows=rows)
    out = run("sequence", "run", "x.toml").out
    assert "average accuracy by order" in out
    lines = [line.split() for line in out.splitlines()]
    assert next(line for line in lines if "±" in line and "(order" in line)[:10] == [
        "olora",
        "as-trained",
        "0.625",
        "±",
        "1.588",
        "0.177",
        "0.170",
        "0.500",
        "(order",
        "1)",
    ]


def test_one_json_document(run: Callable[..., Any], api: Any, result: SequenceResult) -> None:
    api["run_sequence"] = result
    document = run("sequence", "run", "x.toml", "--json").document
    assert document["rows"][0]["scalars"]["average_accuracy"] == {"mean": 0.625, "half": 0.0125, "runs": 4}
    assert document["card"] == {"seeds": [0]}


def test_dry_run_shows_what_is_left(run: Callable[..., Any], api: Any) -> None:
    cells = (
        SequenceCell(1, "olora", 0, "/x/b", ("one",), ("two",), "two", ("prototype",), 5),
        SequenceCell(1, "olora", 1, "/x/c", (), ("one", "two"), None, ("prototype",), 0),
    )
    api["plan_sequence"] = SequencePlan("letters", "/x/letters", cells, 36, {"seeds": [0, 1]}, LINES)
    found = run("sequence", "run", "x.toml", "--dry-run")
    assert found.code == 0
    assert "two (resumed)" in found.out
    assert "36 steps to train" in found.out
    assert "nothing was changed" in found.out
    assert "on rows cut from train" in found.out
    assert run("sequence", "run", "x.toml", "--dry-run", "--json").document["plan"]["steps"] == 36


def test_errors_have_their_exit_code(run: Callable[..., Any], api: Any) -> None:
    api["run_sequence"] = ConfigError("x.toml: selection is missing", unchanged="nothing was changed")
    found = run("sequence", "run", "x.toml")
    assert found.code == 2
    assert "selection is missing" in found.err
    assert found.out == ""


def test_ctrl_c_says_how_to_go_on(run: Callable[..., Any], api: Any) -> None:
    api["run_sequence"] = KeyboardInterrupt()
    found = run("sequence", "run", "x.toml")
    assert found.code == 130
    assert "the same command resumes" in found.err


def test_a_missing_file_and_an_unknown_verb(run: Callable[..., Any]) -> None:
    absent = run("sequence", "run", "absent.toml", "--json")
    assert absent.code == 3
    assert absent.document["error"]["kind"] == "NotFoundError"
    wrong = run("sequence", "rnu", "x.toml")
    assert wrong.code == 2
    assert "Did you mean 'run'?" in wrong.err


def test_a_real_run_is_the_same_the_second_time(
    run: Callable[..., Any], empty_folder: Path, save_base: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    save_base(empty_folder / "base")
    capsys.readouterr()
    for name, texts in (("a", "abcd"), ("a-test", "efgh")):
        rows = [
            {"text": f"{x} {y} {z}", "label": "no" if x < y else "yes"} for x in texts for y in texts for z in "mn"
        ]
        Path(f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    Path("x.toml").write_text(
        'name = "x"\nbase = "base"\norders = [["a"]]\nstrategies = ["olora"]\nselection = "not chosen"\n'
        '[train]\nepochs = 1\nr = 2\ndevice = "cpu"\n[evaluation]\ndevice = "cpu"\n'
        '[tasks.a]\ndata = "a.jsonl"\neval_data = "a-test.jsonl"\n'
    )
    assert main(["sequence", "run", "x.toml", "--dry-run", "--quiet"]) == 0
    assert not Path("x").exists()
    capsys.readouterr()
    first = run("sequence", "run", "x.toml", "--quiet", "--json")
    assert first.code == 0, first.err
    assert first.err == ""
    assert Path("x/table.md").read_text(encoding="utf-8").index("not chosen") < Path("x/table.md").read_text(
        encoding="utf-8"
    ).index("| olora |")
    again = run("sequence", "run", "x.toml", "--quiet", "--json")
    assert again.document["rows"] == first.document["rows"]
    shutil.copy("x.toml", "y.toml")
    Path("y.toml").write_text(Path("x.toml").read_text(encoding="utf-8").replace("r = 2", "r = 3"))
    refused = run("sequence", "run", "y.toml", "--out", "x")
    assert refused.code == 4
    assert "train.r is 3, was 2" in refused.err
    assert "--out DIR" in refused.err
