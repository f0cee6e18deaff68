"""Settings of interrupted runs that older versions recorded."""

from __future__ import annotations

from dataclasses import asdict

from lorabank.core.config import TrainConfig
from lorabank.core.settings import validate
from lorabank.workflows.learning.past import recorded_run


def test_settings_of_an_older_run_are_read_under_their_new_names() -> None:
    older = {"data": "rows.jsonl", "strategy": "replay", "lambda_orth": 0.25, "lambda_l1": 1e-3, "replay_rows": 6}
    older |= {"max_new_tokens": 50, "label_words": None, "delimiter": None, "lambda_l2": 0.0}  # and no chat_template
    settings, rows = recorded_run("one", {"config": older, "train": "a", "eval": "b"})
    expected = TrainConfig(
        data="rows.jsonl",
        strategy="replay",
        penalty_weight=0.25,
        set=("replay.replay_rows=6", "*.chat_template=none"),
    )
    assert validate(TrainConfig, settings) == expected
    assert rows == ("a", "b")


def test_settings_of_a_run_of_this_version_are_read_as_they_are() -> None:
    config = TrainConfig(data="rows.jsonl", strategy="amlora", set=("lambda_l1=0.5",))
    settings, _ = recorded_run("one", {"config": asdict(config), "train": "a", "eval": "b"})
    assert validate(TrainConfig, settings) == config
