"""What an experiment tracker gets: TensorBoard's files are read back; others are a callback at transformers' seam."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorabank import api
from lorabank.core.errors import DivergedError
from lorabank.core.observer import SilentObserver
from lorabank.training import tracking
from lorabank.training.trainer import AdapterTrainer


class Heard(SilentObserver):
    def __init__(self) -> None:
        self.notices: list[str] = []
        self.steps: dict[int, dict[str, float]] = {}
        self.what = ""

    def notice(self, message: str) -> None:
        self.notices.append(message)

    def start(self, what: str, total: int) -> None:
        self.what = what

    def advance(self, done: int, values: Any) -> None:
        if self.what.startswith("training"):
            self.steps[done] = dict(values)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("TENSORBOARD_LOGGING_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scalars_of(folder: Path) -> tuple[dict[str, dict[int, float]], dict[str, Any]]:
    """Tag to step to value, and the run's arguments, as TensorBoard reads them."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    scalars = {tag: {e.step: e.value for e in events.Scalars(tag)} for tag in events.Tags()["scalars"]}
    (arguments,) = events.Tensors("args/text_summary")
    return scalars, json.loads(arguments.tensor_proto.string_val[0])


def test_tensorboard_s_files_hold_losses_settings_and_the_task_s_score(copy, lab, folder) -> None:
    pytest.importorskip("tensorboard")
    bank, heard = copy("olora", 1), Heard()
    result = lab.add(bank, "two", heard, report_to="tensorboard", epochs=8)
    run = folder / "runs" / "bank" / "two"
    assert f"tensorboard writes to {run}; to look at it: tensorboard --logdir runs" in heard.notices
    scalars, arguments = scalars_of(run)
    penalty = scalars["train/train_orthogonal"]
    wanted = {step: heard.steps[step]["orthogonal"] for step in (10, 20)}
    assert {step: penalty[step] for step in (10, 20)} == pytest.approx(wanted)
    (last,) = scalars["eval/two_accuracy"].items()
    assert last == (result.adapter.steps, pytest.approx(result.score["value"]))
    assert scalars["eval/two_macro_f1"][result.adapter.steps] == pytest.approx(result.score["labels"].macro_f1)
    assert arguments["run_name"] == "bank/two"
    told = {name.removeprefix("lorabank_"): value for name, value in arguments.items() if name.startswith("lorabank")}
    assert (told["strategy"], told["r"], told["epochs"], told["task"], told["bank"]) == ("olora", 2, 8, "two", "bank")
    assert told["base_fingerprint"] == api.overview(bank).base.fingerprint
    assert api.show(bank, "two")["adapter"]["metrics"]["tracker"] == {"name": "tensorboard", "run": str(run)}


def test_a_run_of_the_same_name_gets_a_folder_of_its_own_and_a_resumed_one_goes_on(folder) -> None:
    pytest.importorskip("tensorboard")
    first = folder / "runs" / "bank" / "two"
    for resume, name in ((True, "two"), (False, "two-2"), (True, "two-2"), (False, "two-3"), (True, "two-3")):
        run = tracking.Tracking("tensorboard", bank="bank", task="two", resume=resume).run
        found = Path(run["run"])
        assert found == first.with_name(name)
        found.mkdir(parents=True, exist_ok=True)


class Seen:
    """A tracker's callback that remembers; its package is `_wandb`."""

    def __init__(self) -> None:
        self._wandb = SimpleNamespace(run=SimpleNamespace(id="id-7"))
        self.events: list[str] = []
        self.logged: list[tuple[int, dict[str, Any]]] = []
        self.config: dict[str, Any] = {}

    def __getattr__(self, event: str) -> Any:
        if not event.startswith("on_"):
            raise AttributeError(event)
        return lambda *_, **__: self.events.append(event)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.events.append("on_train_begin")
        self.config = args.to_dict()
        assert kwargs["model"] is not None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.logged.append((state.global_step, dict(logs)))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> Seen:
    found = Seen()
    monkeypatch.setattr("lorabank.training.trackers.find_spec", lambda name: True)
    for name in ("wandb", "clearml"):
        monkeypatch.setitem(tracking.INTEGRATION_TO_CALLBACK, name, lambda: found)
    return found


@pytest.mark.parametrize(("name", "run"), [("wandb", "id-7"), ("clearml", "bank/two")])
def test_another_tracker_s_run_stays_open_until_the_score_is_known(copy, lab, seen, name, run) -> None:
    result = lab.add(copy("olora", 1), "two", report_to=name)
    score = {"eval_two_accuracy": result.score["value"], "eval_two_macro_f1": result.score["labels"].macro_f1}
    assert seen.logged[-1] == (result.adapter.steps, score)
    assert (seen.events[0], seen.events[-1]) == ("on_init_end", "on_train_end")
    assert seen.events.count("on_train_begin") == seen.events.count("on_train_end") == 1
    assert (seen.config["run_name"], seen.config["lorabank_report_to"]) == ("bank/two", name)
    assert result.adapter.metrics["tracker"] == {"name": name, "run": run}
    assert "lorabank" not in seen.config


def test_a_training_that_fails_ends_its_run(copy, lab, seen, monkeypatch) -> None:
    def diverge(*_: Any, **__: Any) -> None:
        raise DivergedError("at once")

    monkeypatch.setattr(AdapterTrainer, "training_step", diverge)
    with pytest.raises(DivergedError):
        lab.add(copy("olora", 1), "two", report_to="wandb")
    assert seen.events[-1] == "on_train_end"
    assert not any("eval" in key for _, logs in seen.logged for key in logs)


def test_the_adapter_is_the_one_without_a_tracker(lab, seen, folder) -> None:
    plain = api.overview(lab.bank("olora", 1)).adapter_of("one")
    tracked = lab.add(folder / "tracked", "one", report_to="wandb").adapter
    assert tracked.digest == plain.digest
    assert "tracker" not in plain.metrics
