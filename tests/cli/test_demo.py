"""demo: what it passes on and what it shows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorabank.workflows.results import DemoResult


def test_demo(run: Any, api: Any) -> None:
    def row(strategy: str, answers: str, average: float, routed: float | None) -> dict[str, Any]:
        scores = {"average_accuracy": average, "learning_accuracy": 0.9, "backward_transfer": -0.0125}
        scores["scores"] = {"sentiment": 0.8125, "spam": 0.5}
        routing = {"oracle": None if routed is None else 0.88, "routing_accuracy": routed}
        task_id = "given" if routed is None else "routed"
        return {"strategy": strategy, "answers": answers, "task_id": task_id, **scores, "forgetting": 0.02, **routing}

    api["demo"] = DemoResult(
        rows=(row("seqlora", "as-trained", 0.6, None), row("olora", "prototype", 0.87, 0.915)),
        paths=("lorabank-demo/olora.png",),
        seconds=301.0,
    )
    shown = run("demo", "--epochs", "1")
    lines = [line.split() for line in shown.out.splitlines()]
    assert ["task", "id", "sentiment", "spam", "average", "forgotten"] in lines
    (seqlora,) = [line for line in shown.out.splitlines() if line.startswith("one adapter for all tasks (seqlora)")]
    assert seqlora.split()[-5:] == ["given", "0.8125", "0.5000", "0.6000", "0.0200"]
    assert "prototype finds the task of 92% of the texts by itself and scores 0.870" in shown.out
    assert "it would score 0.880" in shown.out
    assert "lorabank-demo/olora.png" in shown.out
    assert api.called("demo")["epochs"] == 1.0
    assert Path(api.called("demo")["target"]) == Path("lorabank-demo")


def test_the_demo_refuses_a_bank(run: Any, api: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for words in (("demo", "-b", "team"), ("-b", "team", "demo"), ("demo", "./try", "--bank", "team")):
        refused = run(*words)
        assert (refused.code, refused.out) == (2, "")
        assert "error: demo makes banks of its own and does not use --bank\n  nothing was changed\n" in refused.err
        assert "-b team" not in refused.err  # what is proposed would be refused again
    monkeypatch.setenv("LORABANK_BANK", "team")  # which is there for the other commands
    api["demo"] = DemoResult((), (), 1.0)
    monkeypatch.setattr("lorabank_cli.commands.demo._text", lambda *_: "done")
    assert run("demo").code == 0


def test_ctrl_c_in_the_demo_says_how_to_resume(run: Any, api: Any) -> None:
    api["demo"] = KeyboardInterrupt()
    shown = run("demo")
    assert shown.code == 130
    assert "  what was done is kept\n  hint: the same command resumes from there\n" in shown.err


def test_the_demo_is_short_in_a_pipe_and_shows_bars_on_a_terminal(run: Any, api: Any, terminal: Any) -> None:
    def work(target: object, *, seed: int, epochs: object, observer: Any) -> DemoResult:
        observer.notice("step 1 of 13: seqlora learns sentiment")
        observer.start("training", 90)
        for done in range(1, 91):
            observer.advance(done, {"loss": 0.5})
        observer.finish()
        return DemoResult((), (), 1.0)

    api["demo"] = work
    assert run("demo").err == "step 1 of 13: seqlora learns sentiment\n"
    terminal("stderr")
    assert "90/90" in run("demo").err


def test_notices_of_the_demo_stand_above_its_one_bar(run: Any, api: Any, terminal: Any) -> None:
    def work(target: object, *, seed: int, epochs: object, observer: Any) -> DemoResult:
        observer.start("demo", 4)
        for done in range(1, 5):
            observer.notice(f"step {done} of 4")
            observer.advance(done, {"loss": 0.5})
        observer.finish()
        return DemoResult((), (), 1.0)

    api["demo"] = work
    terminal("stderr")
    shown = run("demo").err
    lines = [line.split("\r")[-1].removeprefix("\x1b[K").rstrip() for line in shown.split("\n")]
    assert lines[:4] == [f"step {done} of 4" for done in range(1, 5)]
    assert len([line for line in lines if "demo" in line]) == 1
    assert "4/4" in shown.split("\n")[-2]
