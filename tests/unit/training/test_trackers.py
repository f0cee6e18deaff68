"""Experiment trackers: a name that cannot be reported to is refused before anything is trained."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

from lorabank import TrainConfig, api
from lorabank.core.errors import ConfigError, MissingExtraError
from lorabank.training.trackers import TRACKERS, check_tracker


def test_the_names_are_those_of_transformers() -> None:
    assert set(TRACKERS) <= set(INTEGRATION_TO_CALLBACK)
    assert {"tensorboard", "wandb", "mlflow"} <= set(TRACKERS)
    assert all(modules for modules in TRACKERS.values())


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Decide which modules are there."""

    def decide(*names: str) -> None:
        found = importlib.util.find_spec("json")
        monkeypatch.setattr("lorabank.training.trackers.find_spec", lambda name: found if name in names else None)

    return decide


@pytest.mark.parametrize("name", TRACKERS)
def test_each_needs_one_of_its_packages(installed: Callable[..., None], name: str) -> None:
    installed()
    with pytest.raises(MissingExtraError, match=f"--report-to {name} needs the package") as caught:
        check_tracker(name)
    extra = {'pip install "tensorboard>=2.18"'} if name == "tensorboard" else set()
    assert caught.value.hint in (extra or {f"pip install {package}" for package in TRACKERS[name].values()})
    for module in TRACKERS[name]:
        installed(module)
        check_tracker(name)


@pytest.mark.parametrize(
    ("name", "nearest"), [("tensorbord", "'tensorboard'"), ("wandbb", "'wandb'"), ("non", "'none'")]
)
def test_a_name_that_is_none_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"Did you mean {nearest}"):
        check_tracker(name)


@pytest.mark.parametrize("name", ["all", "", "https://example.org", "tensorboard,wandb"])
def test_what_is_no_single_tracker_is_refused_by_the_library_too(tmp_path: Path, name: str) -> None:
    config = TrainConfig(data=str(tmp_path / "rows.jsonl"), report_to=name)
    for call in (api.plan_task, api.add_task):
        with pytest.raises(ConfigError, match="there is no experiment tracker"):
            call(tmp_path / "bank", "t", config)
    assert not any(tmp_path.iterdir())


def test_none_needs_nothing(installed: Callable[..., None]) -> None:
    installed()
    check_tracker("none")
