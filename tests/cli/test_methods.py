"""``lorabank methods``, and the ways in which settings of methods reach a training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lorabank.core.config import TrainConfig
from lorabank.core.shelves import SHELVES
from tests.cli.test_options import PLAN


def test_every_method_is_an_object_with_its_settings(run: Any) -> None:
    document = run("methods", "--json").document
    offered = [(one["family"], one["name"]) for one in document if one["offered"]]
    assert offered == [(shelf.kind, n) for shelf in SHELVES for n in shelf]
    assert all({"family", "name", "paper", "settings", "refused"} <= one.keys() for one in document)
    (replay,) = (one for one in document if (one["family"], one["name"]) == ("strategy", "replay"))
    assert [(one["name"], one["default"], one["bounds"]) for one in replay["settings"]] == [
        ("replay_rows", 200, {"ge": 1})
    ]
    assert replay["refused"] == ["a bank in which an earlier task keeps no rows to train on again"]


def test_a_method_is_shown_with_what_can_be_typed(run: Any) -> None:
    shown = run("methods", "ewc").out
    assert "ewc (strategy)" in shown
    assert "ewc (penalty)" in shown
    assert "--set lambda_l1=0.001" in run("methods", "amlora").out
    unknown = run("methods", "amlra")
    assert unknown.code == 2
    assert "there is no method 'amlra'. Did you mean 'amlora'?" in unknown.err


def test_a_method_is_shown_with_the_command_that_chooses_it(run: Any) -> None:
    for name, chosen in (
        ("full", "sequence run, which measures it if full is among the strategies of the file"),
        ("dora", "add-task --variant dora"),
        ("adafactor", "add-task --optimizer adafactor"),
        ("nf4", "init --quantise nf4"),
        ("lqer", "init --quantise QUANTISER+lqer"),
        ("layered", "compose --mode routed --router layered"),
    ):
        (line,) = (line for line in run("methods", name).out.splitlines() if line.strip().startswith("chosen by"))
        assert line.split("chosen by")[1].strip() == chosen


def planned(run: Any, api: Any, *words: str) -> tuple[TrainConfig, str]:
    """The settings that reach the library, and what was told."""
    api["plan_task"] = replace(PLAN)
    shown = run("add-task", "spam", "--data", "s.jsonl", "--dry-run", *words)
    assert shown.code == 0, shown.err
    return api.called("plan_task")["config"], shown.err


def test_set_may_be_repeated_and_a_file_has_a_table_for_each_method(run: Any, api: Any, tmp_path: Path) -> None:
    assert planned(run, api, "--set", "a=1", "--set", "b.c=x y")[0].set == ("a=1", "b.c=x y")
    file = tmp_path / "lora.toml"
    file.write_text(
        "[add-task]\nset = ['a=1']\n[add-task.amlora]\nlambda_l1 = 0.5\n[add-task.replay]\nreplay_rows = 6\n"
    )
    given = planned(run, api, "--config", str(file))[0].set
    assert given == ("a=1", "amlora.lambda_l1=0.5", "replay.replay_rows=6")
    assert planned(run, api, "--config", str(file), "--set", "b=2")[0].set == ("b=2",)
    file.write_text("[add-task.replay]\nreplay_rows = 6\n[add-task]\nset = ['a=1']\n")
    assert planned(run, api, "--config", str(file))[0].set == ("a=1", "replay.replay_rows=6")


def test_an_old_flag_still_works_and_says_what_to_write(run: Any, api: Any) -> None:
    config, told = planned(run, api, "--lambda-orth", "0.25", "--replay-rows", "6")
    assert config == TrainConfig(data="s.jsonl", penalty_weight=0.25, set=("replay.replay_rows=6",))
    assert "--lambda-orth is an old name: write --penalty-weight 0.25" in told
    assert "--replay-rows is an old name: write --set replay.replay_rows=6" in told


def test_what_is_known_and_not_offered_is_told_with_the_reason(run: Any) -> None:
    """In both lists, by name, and where it is chosen."""
    document = run("methods", "--json").document
    found = {(one["family"], one["name"]): one["refused"] for one in document if not one["offered"]}
    assert found == {(shelf.kind, n): [reason] for shelf in SHELVES for n, reason in shelf.refused.items()}
    assert {name for _, name in found} >= {"loraprune", "activated-lora", "loretta-adp", "diff-pruning"}
    listed = run("methods").out
    assert "\nNot offered:\n" in listed
    assert "\nloraprune (variant): it removes heads and units of the base" in listed
    for words in (("methods", "lora-prune"), ("add-task", "x", "--data", "d.jsonl", "--variant", "lora-prune")):
        shown = run(*words)
        assert shown.code == 2
        assert "it makes another base model" in shown.err
