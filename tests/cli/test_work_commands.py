"""init, add-task, eval, predict, import: what they pass on and what they show."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorabank.core.config import InitConfig, TrainConfig
from lorabank.core.records import BaseModelRecord, DatasetRecord, TaskRecord
from lorabank.workflows.results import AddTaskResult, MatrixReport, Prediction

BASE = BaseModelRecord("tiny", "local", None, "c" * 64, "f" * 64, "7" * 64, "float32", "SEQ_CLS", 32, 1000)
NOTHING = SimpleNamespace(adapters={})


def _added(records: Any, **changes: Any) -> AddTaskResult:
    return AddTaskResult(
        task=TaskRecord("spam", 2, "SEQ_CLS", ("ham", "spam"), "ready", adapter="a" * 64),
        adapter=records("spam", **changes),
        datasets=(DatasetRecord("spam", "eval", 96, ("text", "label"), "1" * 64, "s.jsonl"),),
        score={"metric": "accuracy", "value": 0.9583, "n": 96, "low": 0.8985, "high": 0.9837},
        bank="bank",
        bank_created=False,
    )


def test_init(run: Any, api: Any) -> None:
    api["init_bank"] = SimpleNamespace(id="1234", base=BASE)
    shown = run("init", "--base", "./tiny")
    assert shown.out.splitlines()[0] == "made a bank at bank"
    assert api.called("init_bank")["config"] == InitConfig(base="./tiny")
    assert run("init", "--json").document["base"]["name"] == "tiny"
    planned = run("init", "--base", "./tiny", "--dry-run", "--json").document
    assert planned["settings"]["base"] == {"value": "./tiny", "source": "flag"}
    assert len([name for name, _ in api.calls if name == "init_bank"]) == 2


def test_add_task_says_what_was_held_and_what_to_do_next(run: Any, api: Any, records: Any) -> None:
    metrics = {"overlap": {"b" * 64: 0.0021}, "capacity_left": 0.958333, "directions_left": 375}
    api["add_task"] = _added(records, context=("b" * 64,), metrics=metrics)
    api["overview"] = SimpleNamespace(adapters={"b" * 64: records("sentiment")})
    shown = run("add-task", "spam", "--data", "s.jsonl", "--base", "./tiny")
    assert shown.out.splitlines() == [
        "added task spam (number 2) to bank",
        f"  adapter        {'a' * 64}",
        "  accuracy       0.9583 [0.8985, 0.9837] on 96 rows (95 % interval, task id given)",
        "  strategy       olora, r 8, 120 steps, 3 s",
        "  held           sentiment (active, frozen; orthogonal 0.5)",
        "  overlap        sentiment 0.0021",
        "  capacity left  95.8 % of the input space",
        "  room           46 more tasks of rank 8 fit",
        "next:",
        "  lorabank predict --task spam TEXT",
        "  lorabank eval --forgetting-matrix",
    ]
    arguments = api.called("add_task")
    assert arguments["config"] == TrainConfig(data="s.jsonl")
    assert arguments["init"] == InitConfig(base="./tiny")
    assert (arguments["resume"], arguments["restart"]) == (False, False)


def test_a_task_without_labels_is_asked_by_generate(run: Any, api: Any, records: Any) -> None:
    added = _added(records)
    api["add_task"] = replace(added, task=added.task._replace(position=1, task_type="CAUSAL_LM", labels=()))
    api["overview"] = NOTHING
    assert run("-b", "my bank", "add-task", "spam", "--data", "s.jsonl").out.splitlines()[-3:] == [
        "next:",
        "  lorabank -b 'my bank' generate --task spam TEXT",
        "  lorabank -b 'my bank' add-task NAME --data FILE",
    ]


def test_the_first_task_holds_nothing(run: Any, api: Any, records: Any) -> None:
    api["add_task"] = _added(records)
    api["overview"] = NOTHING
    assert "held      nothing: no earlier adapter was active" in run("add-task", "spam", "--data", "s.jsonl").out
    assert run("add-task", "spam", "--data", "s.jsonl", "--json").document["score"]["n"] == 96


def test_notices_go_to_stderr_and_quiet_silences_them(run: Any, api: Any, records: Any) -> None:
    def work(observer: Any, **_: Any) -> AddTaskResult:
        observer.notice("made a bank at bank\x1b[2J")
        observer.start("training spam", 40)
        for step in range(1, 41):
            observer.advance(step, {"loss": 1 / step, "orthogonal": 0.5})
        observer.finish()
        return _added(records)

    api["add_task"] = work
    api["overview"] = NOTHING
    shown = run("add-task", "spam", "--data", "s.jsonl")
    assert shown.out.startswith("added task spam")
    lines = shown.err.splitlines()
    assert lines[:2] == ["made a bank at bank\\x1b[2J", "training spam: 0/40"]
    assert lines[2:] == [
        f"training spam: {step}/40  loss {1 / step:.4g}  orthogonal 0.5" for step in (1, *range(4, 41, 4))
    ]
    assert run("add-task", "spam", "--data", "s.jsonl", "-q").err == ""


def test_on_a_terminal_there_is_one_bar_with_the_losses(run: Any, api: Any, records: Any, terminal: Any) -> None:
    def work(observer: Any, **_: Any) -> AddTaskResult:
        observer.start("training spam", 2)
        observer.advance(1, {"loss": 0.75})
        observer.advance(2, {"loss": 0.25})
        observer.notice("measuring")
        return _added(records)

    api["add_task"] = work
    api["overview"] = NOTHING
    terminal("stderr")
    shown = run("add-task", "spam", "--data", "s.jsonl")
    assert "training spam" in shown.err
    assert "2/2" in shown.err
    assert "loss 0.25" in shown.err
    assert shown.err.splitlines()[-1].endswith("measuring")
    assert "training" not in shown.out


def test_resume_takes_the_stored_settings(run: Any, api: Any, records: Any) -> None:
    api["add_task"] = _added(records)
    api["overview"] = NOTHING
    assert run("add-task", "spam", "--resume").code == 0
    assert api.called("add_task")["config"] is None
    assert run("add-task", "spam", "--resume", "--data", "s.jsonl").code == 0
    assert api.called("add_task")["config"] == TrainConfig(data="s.jsonl")
    refused = run("add-task", "spam", "--resume", "--r", "4")
    assert refused.code == 2
    assert "leave out --r" in refused.err


@pytest.mark.parametrize("words", [(), ("--restart",), ("--resume", "--restart"), ("--resume", "--dry-run")])
def test_add_task_needs_data_or_resume(run: Any, api: Any, words: tuple[str, ...]) -> None:
    assert run("add-task", "spam", *words).code == 2
    assert api.calls == []


def _report(subject: str = "as-trained", **changes: Any) -> MatrixReport:
    values: dict[str, Any] = {
        "subject": subject,
        "mode": "olora",
        "task_id": "given",
        "tasks": ("sentiment", "spam"),
        "values": [[None, None], [0.9, None], [0.8, 0.95]],
        "low": [[None, None], [0.85, None], [0.75, 0.9]],
        "high": [[None, None], [0.95, None], [0.85, 0.98]],
        "counts": [96, 80],
        "scalars": {"average_accuracy": 0.875, "backward_transfer": -0.1, "forward_transfer": None},
        "computed": 3,
        "cached": 0,
        "routing": None,
        "settings": {"batch_size": 64},
    }
    return MatrixReport(**{**values, **changes})


def _gates(reports: Any, gates: Any) -> tuple[Any, ...]:
    from lorabank.evaluation.thresholds import check_gates, parse_gate

    parsed = [parse_gate(gate) for gate in gates]
    return tuple(result for report in reports for result in check_gates(parsed, report.scalars))


def test_eval_shows_matrix_intervals_and_every_scalar(run: Any, api: Any) -> None:
    api["evaluate"] = (_report(),)
    api["check_gates"] = _gates
    shown = run("eval", "--forgetting-matrix")
    assert shown.code == 0
    assert shown.out.splitlines() == [
        "as-trained (olora): accuracy [after task, on task]",
        "after \\ on  sentiment   spam",
        "1 sentiment    0.9000",
        "2 spam         0.8000 0.9500",
        "",
        "task id given: each text is answered as its own task",
        "3 cells computed, 0 cached",
        "",
        "after the last task  accuracy  95 % interval     rows",
        "sentiment              0.8000  0.7500 .. 0.8500    96",
        "spam                   0.9500  0.9000 .. 0.9800    80",
        "",
        "  average_accuracy   0.8750",
        "  backward_transfer  -0.1000",
        "  forward_transfer   not defined here",
    ]


def test_eval_of_the_last_row_names_the_option_for_what_was_forgotten(run: Any, api: Any) -> None:
    api["evaluate"] = (_report(values=[[None, None], [None, None], [0.8, 0.95]]),)
    api["check_gates"] = _gates
    assert run("eval", "--all").out.splitlines()[-4:] == [
        "",
        "  average_accuracy   0.8750",
        "  backward_transfer  -0.1000",
        "  what was learnt and forgotten: --forgetting-matrix",
    ]


def test_eval_as_json_rounds_nothing_and_writes_null(run: Any, api: Any) -> None:
    api["evaluate"] = (_report(values=[[None, float("nan")], [1 / 3, None], [0.8, 0.95]]),)
    api["check_gates"] = _gates
    document = run("eval", "--json").document
    assert document["reports"][0]["values"] == [[None, None], [1 / 3, None], [0.8, 0.95]]
    assert document["gates"] == {"as-trained": []}


def test_eval_shows_routing(run: Any, api: Any) -> None:
    routing = {"routed": 0.81, "oracle": 0.875, "accuracy": 0.91, "confusion": [[90, 6], [4, 76]]}
    routing["tasks"] = ["sentiment", "spam"]
    api["evaluate"] = (_report("routed", task_id="routed", routing=routing),)
    api["check_gates"] = _gates
    shown = run("eval", "--composition", "routed")
    assert "task id not given: the router finds each text's task" in shown.out
    assert "score with known tasks (oracle)  0.8750" in shown.out
    assert shown.out.splitlines()[-2].split() == ["sentiment", "90", "6"]


def test_a_failed_gate_exits_with_12_after_everything_was_shown(run: Any, api: Any) -> None:
    api["evaluate"] = (_report(), _report("routed", scalars={"backward_transfer": 0.0}))
    api["check_gates"] = _gates
    words = ("eval", "--all", "--gate", "backward_transfer>=-0.02")
    shown = run(*words)
    assert shown.code == 12
    rows = [line.split() for line in shown.out.splitlines()[-2:]]
    assert rows == [
        ["FAILED", "backward_transfer>=-0.02", "as-trained", "-0.1000"],
        ["passed", "backward_transfer>=-0.02", "routed", "0.0000"],
    ]
    assert "error: 1 of 2 gates failed" in shown.err
    document = run(*words, "--json").document
    assert [gate["passed"] for gate in document["gates"]["as-trained"]] == [False]
    assert run("eval", "--gate", "backward_transfer>=-0.1").code == 0


def test_a_gate_or_plot_that_cannot_be_is_refused_before_the_work(run: Any, api: Any) -> None:
    api["evaluate"] = (_report(),)
    api["check_gates"] = _gates
    assert run("eval", "--gate", "backward_transfr>=0").code == 2
    assert run("eval", "--plot", "matrix.gif").code == 2
    assert run("eval", "--csv", "nowhere/matrix.csv").code == 3
    assert "evaluate" not in [name for name, _ in api.calls]


def test_plots_and_tables_are_named_after_their_subject(run: Any, api: Any) -> None:
    api["check_gates"] = _gates
    api["save_plot"] = lambda report, path: path
    api["save_csv"] = lambda report, path: path
    api["evaluate"] = (_report(),)
    Path("out").mkdir()
    shown = run("eval", "--plot", "out/matrix.png")
    assert shown.err == "wrote out/matrix.png\n"
    api["evaluate"] = (_report(), _report("routed"))
    run("eval", "--all", "--plot", "matrix.svg", "--csv", "m.csv")
    written = [(name, str(arguments["path"])) for name, arguments in api.calls if name.startswith("save")]
    assert written[1:] == [
        ("save_plot", "matrix-as-trained.svg"),
        ("save_csv", "m-as-trained.csv"),
        ("save_plot", "matrix-routed.svg"),
        ("save_csv", "m-routed.csv"),
    ]


def test_eval_of_one_task_says_its_state(run: Any, api: Any) -> None:
    api["check_gates"] = _gates
    one = {"tasks": ("spam",), "values": [[None], [0.95]], "low": [[None], [0.9]], "high": [[None], [0.98]]}
    api["evaluate"] = (_report(**one, counts=[80], state="learnt"),)
    shown = run("eval", "--task", "spam", "--state", "learnt")
    assert shown.out.splitlines()[0] == "task spam as trained, in its state learnt; the task id is given"
    assert shown.out.splitlines()[-1].split() == ["spam", "0.9500", "0.9000", "..", "0.9800", "80"]
    assert (api.called("evaluate")["config"].task, api.called("evaluate")["config"].state) == ("spam", "learnt")
    assert run("eval", "--task", "spam", "--json").document["reports"][0]["state"] == "learnt"


def _predictions(texts: tuple[str, ...], **_: Any) -> tuple[Prediction, ...]:
    told = ("spam", 0.93, "spam", "routed", {"spam": 1.0}, "composition", "by-topic")
    return tuple(Prediction(text, *told) for text in texts)


def test_predict(run: Any, api: Any, terminal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    api["predict"] = _predictions
    monkeypatch.setenv("COLUMNS", "200")
    terminal("stdout")
    shown = run("predict", "You \x1b[2J won", "--composition", "routed")
    assert shown.out.splitlines()[0].split() == [
        "label",
        "probability",
        "task",
        "task",
        "id",
        "state",
        "adapters",
        "text",
    ]
    assert shown.out.splitlines()[1].split() == [
        "spam",
        "0.9300",
        "spam",
        "routed",
        "by-topic",
        "spam",
        "1",
        "You",
        "\\x1b[2J",
        "won",
    ]
    monkeypatch.setattr("sys.stdin", io.StringIO("one\n\ntwo\r\n"))
    document = run("predict", "-", "--task", "spam", "--json").document
    assert [p["text"] for p in document["predictions"]] == ["one", "two"]
    assert api.called("predict")["config"].task == "spam"
    assert run("predict").code == 2
    assert run("predict", "--data", "t.csv").code == 0


def test_import(run: Any, api: Any, records: Any) -> None:
    api["import_adapter"] = _added(records)
    shown = run("import", "./a", "--task", "spam", "--data", "s.jsonl", "--labels", "ham, spam", "--seed", "3")
    assert shown.out.splitlines()[0] == "imported task spam (number 2) into bank"
    arguments = api.called("import_adapter")
    assert arguments["config"] == TrainConfig(data="s.jsonl", seed=3)
    assert (arguments["source"], arguments["task"], arguments["labels"]) == ("./a", "spam", ["ham", "spam"])
    shown = run("import", "./a", "--task", "spam", "--data", "s.csv", "--delimiter", ";")
    assert "--delimiter is an old name: write --set '*.delimiter=;'" in shown.err
    assert api.called("import_adapter")["config"] == TrainConfig(data="s.csv", set=("*.delimiter=;",))
    assert run("import", "./a", "--task", "spam", "--data", "s.csv", "--penalty-weight", "1").code == 2
    assert run("import", "./a", "--task", "spam").code == 2
    words = ("--base-fingerprint", "ab12", "--part", "2", "--ignore-unknown")
    assert run("import", "some/one@main", "--as-task", "spam", "--data", "s.jsonl", *words).code == 0
    arguments = api.called("import_adapter")
    assert (arguments["source"], arguments["task"]) == ("some/one@main", "spam")
    assert (arguments["base_fingerprint"], arguments["part"], arguments["ignore_unknown"]) == ("ab12", 2, True)
