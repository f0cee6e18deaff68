"""What a dry run of a training shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from lorabank.data.bad_rows import LeftOut
from tests.cli.test_options import PLAN


def test_a_dry_run_shows_what_the_strategy_fills_in_and_the_work(run: Any, api: Any) -> None:
    api["plan_task"] = PLAN
    shown = run("add-task", "spam", "--data", "s.jsonl", "--dry-run", "--max-length", "4096")
    rows: dict[str, list[str]] = {}
    for line in shown.out.splitlines():
        if line.strip():
            rows.setdefault(line.split()[0], line.split()[1:])
    assert rows["penalty"] == ["orthogonal", "default"]
    assert rows["penalty-weight"] == ["0.5", "default"]
    assert rows["target-modules"] == ["query,value", "default", "auto"]
    assert rows["max-length"] == ["512", "flag", "4096"]  # what will be used, and what was asked for
    assert rows["r"] == ["8", "default"]
    assert rows["data"] == ["s.jsonl", "flag"]
    assert rows["steps"] == ["120"]
    assert "mean 20.5, p95 40, max 60" in shown.out
    assert shown.out.endswith("nothing was changed\n")


def test_a_dry_run_gives_each_sentence_a_line_of_its_own_and_leaves_out_what_is_not(run: Any, api: Any) -> None:
    api["plan_task"] = replace(
        PLAN,
        context=(),
        label_counts={"ham": {"train": 200, "eval": 50}, "spam": {"train": 2, "eval": 0}},
        warnings=("no evaluation row has 'spam', so it is not measured", "3 rows repeat another one"),
        bad_rows=(LeftOut("s.jsonl", 7, ("line 5: blank, and short", "line 6: not JSON")),),
    )
    facts = run("add-task", "spam", "--data", "s.jsonl", "--dry-run").out.split("\n\n")[2].splitlines()
    start = next(i for i, line in enumerate(facts) if line.startswith("label counts"))
    indent = facts[start].index("ham")
    assert {line[:indent].strip() for line in facts[start:]} == {"label counts", "warnings", "bad rows", ""}
    assert [line[indent:] for line in facts[start:]] == [
        "ham: train 200, eval 50",
        "spam: train 2, eval 0",
        "no evaluation row has 'spam', so it is not measured",
        "3 rows repeat another one",
        "source s.jsonl, rows 7",
        "  line 5: blank, and short",
        "  line 6: not JSON",
    ]
    assert not [line for line in facts if line.startswith(("context", "read as", "few steps"))]


def test_a_dry_run_counts_the_lines_that_it_does_not_show(run: Any, api: Any) -> None:
    api["plan_task"] = replace(PLAN, read_as=tuple(f"file {number} is odd" for number in range(23)))
    shown = run("add-task", "spam", "--data", "s.jsonl", "--dry-run").out
    assert sum(line.endswith(" is odd") for line in shown.splitlines()) == 20
    assert "and 3 more (--json)" in shown
