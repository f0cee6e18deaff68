"""advise: candidates trained in copies of a bank, as add-task trains them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from lorabank_cli.main import main

from lorabank import api
from lorabank.core.config import AdviseConfig, InitConfig, TrainConfig
from lorabank.core.errors import ConfigError, DivergedError, NotFoundError
from lorabank.core.observer import SilentObserver
from lorabank.workflows.learning import advise as advising
from tests.contract.conftest import Lab


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_candidates_are_trained_as_add_task_trains_them(lab: Lab, copy, tmp_path: Path) -> None:
    bank = copy("olora", 2)
    before = contents(bank / "adapters")
    how = AdviseConfig(variants=("dora",), starts=("pissa",), reduction=2)
    advice = api.advise(bank, lab.settings("three", epochs=4.0), how)
    assert contents(bank / "adapters") == before
    assert [task.name for task in api.overview(bank).tasks] == ["one", "two"]
    assert sorted((one.variant, one.start) for one in advice.trials) == [
        ("dora", "kaiming"), ("lora", "kaiming"), ("lora", "kaiming"), ("lora", "pissa"),
    ]  # fmt: skip
    assert [one.epochs for one in advice.trials] == [4.0, 4.0, 2.0, 2.0]  # rounds of 4 and 2
    best = advice.trials[0]
    assert best.score == max(one.score for one in advice.trials[:2])
    added = api.add_task(
        bank,
        "three",
        lab.settings("three", epochs=4.0, variant=best.variant, start=best.start, learning_rate=best.learning_rate),
        observer=SilentObserver(),
    )
    assert (added.score["value"], added.adapter.bytes) == (best.score, best.bytes)
    assert added.adapter.metrics["capacity_left"] == best.capacity_left
    assert max(added.adapter.metrics["overlap"].values()) == best.overlap


@pytest.mark.slow
def test_without_a_bank_the_task_would_be_the_first(lab: Lab, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    data = ["--data", str(lab.data("one")), "--base", str(lab.base), "--device", "cpu", "--max-length", "16"]
    code = main(["advise", *data, "--variant", "dora", "--start", "kaiming", "--epochs", "1", "--json"])
    said = json.loads(capsys.readouterr().out)
    assert code == 0
    assert [*tmp_path.iterdir()] == []
    assert {one["variant"] for one in said["trials"]} == {"lora", "dora"}
    assert {one["overlap"] for one in said["trials"]} == {None}
    rates = sorted(one["learning_rate"] for one in said["trials"] if one["variant"] == "lora")
    assert rates[1] == pytest.approx(2 * rates[0])


@pytest.mark.slow
def test_what_a_strategy_refuses_is_left_out_with_its_reason(lab: Lab, copy) -> None:
    how = AdviseConfig(variants=("dora",), starts=("pissa",))
    advice = api.advise(copy("inflora", 1), lab.settings("two", strategy="inflora", epochs=1.0), how)
    assert [one.variant for one in advice.trials] == ["lora", "lora"]
    assert set(advice.left_out) == {"dora from kaiming", "lora from pissa"}


@pytest.mark.slow
def test_a_variant_that_answers_alone_is_trained_where_the_strategy_takes_it(lab: Lab, copy) -> None:
    how = AdviseConfig(variants=("hydralora", "peft:loha"), starts=("kaiming",))
    settings = lab.settings("two", strategy="isolated", epochs=1.0)
    assert settings.r != TrainConfig.r
    advice = api.advise(copy("isolated", 1), settings, how)
    assert {(one.variant, one.capacity_left is None) for one in advice.trials} == {
        ("lora", False),
        ("hydralora", True),
    }
    assert list(advice.left_out) == ["peft:loha from kaiming"]
    assert "--r is of A and B" in advice.left_out["peft:loha from kaiming"]


@pytest.mark.slow
def test_a_variant_that_answers_alone_is_left_out_where_the_strategy_sums(lab: Lab, copy) -> None:
    how = AdviseConfig(variants=("hydralora", "peft:loha"), starts=("kaiming",))
    advice = api.advise(copy("olora", 1), lab.settings("two", epochs=1.0), how)
    assert {one.variant for one in advice.trials} == {"lora"}
    assert set(advice.left_out) == {"hydralora from kaiming", "peft:loha from kaiming"}
    assert all("so the task answers alone" in why for why in advice.left_out.values())


def test_too_little_time_shortens_the_epochs(lab: Lab, copy) -> None:
    how = AdviseConfig(variants=("lora",), starts=("kaiming",), minutes=1e-6)
    (one, other) = api.advise(copy("olora", 1), lab.settings("two", epochs=6.0), how).trials
    assert one.epochs == other.epochs < 1
    assert one.steps == 1


class Noting(SilentObserver):
    """Keeps notices."""

    def __init__(self) -> None:
        self.notices: list[str] = []

    def notice(self, message: str) -> None:
        self.notices.append(message)


@pytest.mark.slow
def test_too_little_time_for_rounds_is_one_round(lab: Lab, copy) -> None:
    """A second round would repeat the first."""
    how = AdviseConfig(variants=("dora",), starts=("pissa",), minutes=1e-6)
    observer = Noting()
    trials = api.advise(copy("olora", 1), lab.settings("two", epochs=6.0), how, observer=observer).trials
    assert [one.steps for one in trials] == [1, 1, 1, 1]
    assert [one.score for one in trials] == sorted((one.score for one in trials), reverse=True)
    assert sum(line.startswith("training ") for line in observer.notices) == 4
    assert any("each candidate is trained once, for 1 step" in line for line in observer.notices)


@pytest.mark.slow
def test_the_first_training_is_not_counted(lab: Lab, copy, monkeypatch: pytest.MonkeyPatch) -> None:
    """It loads what later ones find, so that its time and memory are other ones."""
    trained, train = [], advising.add_task

    def noting(opened, name, config, **more):
        trained.append(train(opened, name, config, **more))
        return trained[-1]

    monkeypatch.setattr(advising, "add_task", noting)
    how = AdviseConfig(variants=("lora",), starts=("kaiming",))
    trials = api.advise(copy("olora", 1), lab.settings("two", epochs=6.0), how).trials
    assert len(trained) == 1 + len(trials)
    assert trained[0].adapter.steps <= 5 < min(one.steps for one in trials)


@pytest.mark.parametrize("wrong", [{"variants": ("lroa",)}, {"starts": ("pisa",)}])
def test_a_wrong_name_is_refused_with_the_nearest(lab: Lab, tmp_path: Path, wrong: dict[str, tuple[str, ...]]) -> None:
    init = InitConfig(base=str(lab.base))
    with pytest.raises(ConfigError, match="Did you mean"):
        api.advise(tmp_path / "bank", lab.settings("one"), AdviseConfig(**wrong), init=init)


def test_the_command_to_type_next_trains_the_best_one(lab: Lab, copy) -> None:
    settings = lab.settings("two", strategy="isolated", epochs=1.0)
    advice = api.advise(copy("olora", 1), settings, AdviseConfig(variants=("lora",), starts=("kaiming",)))
    words = list(advice.again)
    assert words[:4] == ["add-task", "NAME", "--data", settings.data]
    assert words[words.index("--strategy") + 1] == "isolated"


@pytest.mark.slow
def test_without_a_bank_it_names_the_base_and_the_test_rows(lab: Lab, tmp_path: Path) -> None:
    settings = lab.settings("one", epochs=1.0, eval_data=str(lab.data("two")))
    how = AdviseConfig(variants=("lora",), starts=("kaiming",))
    advice = api.advise(tmp_path / "bank", settings, how, init=InitConfig(base=str(lab.base)))
    words = list(advice.again)
    assert words[words.index("--base") + 1] == str(lab.base)
    assert words[words.index("--eval-data") + 1] == settings.eval_data


@pytest.mark.slow
def test_what_a_killed_call_left_is_deleted(lab: Lab, copy, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", "0"]) as ended:
        ended.wait()
    left = tmp_path / f"lorabank-advise-{ended.pid}-x"
    (left / "past").mkdir(parents=True)
    mine = tmp_path / f"lorabank-advise-{os.getpid()}-y"
    mine.mkdir()
    api.advise(
        copy("olora", 1), lab.settings("two", epochs=1.0), AdviseConfig(variants=("lora",), starts=("kaiming",))
    )
    assert [*tmp_path.glob("lorabank-advise-*")] == [mine]


@pytest.mark.slow
def test_the_time_is_kept_though_the_first_candidate_fails(lab: Lab, copy, monkeypatch) -> None:
    train = advising.add_task

    def diverging(opened, name, config, **more):
        if (config.variant, config.learning_rate) == ("lora", 1e-3):
            raise DivergedError("training diverged")
        return train(opened, name, config, **more)

    monkeypatch.setattr(advising, "add_task", diverging)
    how = AdviseConfig(variants=("dora",), starts=("kaiming",), minutes=1e-6)
    advice = api.advise(copy("olora", 1), lab.settings("two", epochs=6.0, learning_rate=1e-3), how)
    assert advice.left_out == {"lora from kaiming": "training diverged"}
    assert all(one.epochs < 1 for one in advice.trials)


@pytest.mark.slow
def test_a_candidate_that_fails_is_not_trained_again(lab: Lab, copy, monkeypatch) -> None:
    train, failed = advising.add_task, []

    def diverging(opened, name, config, **more):
        if (config.variant, config.learning_rate) == ("lora", 1e-3):
            failed.append(config.epochs)
            raise DivergedError("training diverged")
        return train(opened, name, config, **more)

    monkeypatch.setattr(advising, "add_task", diverging)
    how = AdviseConfig(variants=("lora",), starts=("kaiming",))
    advice = api.advise(copy("olora", 1), lab.settings("two", epochs=2.0, learning_rate=1e-3), how)
    assert len(failed) == 1
    assert [one.learning_rate for one in advice.trials] == [2e-3]
    assert advice.left_out == {"lora from kaiming": "training diverged"}


@pytest.mark.slow
def test_a_trial_has_its_share_of_the_warm_up(lab: Lab, copy, monkeypatch) -> None:
    trained, train = [], advising.add_task

    def noting(opened, name, config, **more):
        trained.append((config.warmup, train(opened, name, config, **more)))
        return trained[-1][1]

    monkeypatch.setattr(advising, "add_task", noting)
    how, bank = AdviseConfig(variants=("lora",), starts=("kaiming",)), copy("olora", 1)
    advice = api.advise(bank, lab.settings("two", epochs=4.0, warmup=6.0), how)  # half of 12 steps
    assert len(trained) == 3
    assert all(warmup == added.adapter.steps // 2 for warmup, added in trained)
    words = list(advice.again)
    assert words[words.index("--warmup") + 1] == "6.0"
    with pytest.raises(ConfigError, match=r"^--warmup 12 takes 12 steps, and the training has 12: the learning rate"):
        api.advise(bank, lab.settings("two", epochs=4.0, warmup=12.0), how)
    assert len(trained) == 3


def test_rows_that_cannot_be_read_are_refused_as_such(lab: Lab, copy, tmp_path: Path) -> None:
    how = AdviseConfig(variants=("lora",), starts=("kaiming",))
    with pytest.raises(NotFoundError, match="no such file"):
        api.advise(copy("olora", 1), lab.settings("two", data=str(tmp_path / "nowhere.jsonl")), how)


def test_test_rows_are_never_read(lab: Lab, copy, tmp_path: Path) -> None:
    settings = lab.settings("two", epochs=1.0, eval_data=str(tmp_path / "nowhere.jsonl"))
    how = AdviseConfig(variants=("lora",), starts=("kaiming",))
    bank = copy("olora", 1)
    one, other = (api.advise(bank, config, how) for config in (settings, replace(settings, eval_data=None)))
    assert (one.rows, sorted(trial.score for trial in one.trials)) == (
        other.rows,
        sorted(trial.score for trial in other.trials),
    )


def test_of_equal_scores_the_one_with_fewer_numbers_is_better_and_then_the_faster() -> None:
    any_trial = advising.Trial("lora", "kaiming", 1e-3, 0.8, 0.7, 0.9, 1.0, 3, 2.0, 100, 400, None, 1.0, None)
    better = [replace(any_trial, score=0.9, parameters=999), replace(any_trial, parameters=99, seconds=9.0)]
    better += [replace(any_trial, seconds=1.0), any_trial]
    assert sorted(reversed(better), key=advising._rank, reverse=True) == better


@pytest.mark.slow
def test_rounds_are_counted_in_epochs_and_no_trial_stops_early(lab: Lab, copy) -> None:
    """What is asked for beside that is in the command to type next."""
    settings = lab.settings("two", epochs=1.0)
    how = AdviseConfig(variants=("lora",), starts=("kaiming",))
    bank, more = copy("olora", 1), {"max_steps": 500, "eval_every": 3, "early_stopping": 2}
    one, other = (api.advise(bank, config, how) for config in (replace(settings, **more), settings))
    assert [trial.steps for trial in one.trials] == [trial.steps for trial in other.trials]
    assert {trial.score for trial in one.trials} == {trial.score for trial in other.trials}
    words = list(one.again)
    assert [words[words.index(f"--{name}") + 1] for name in ("max-steps", "eval-every", "early-stopping")] == [
        "500", "3", "2",
    ]  # fmt: skip
