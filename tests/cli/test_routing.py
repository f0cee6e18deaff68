"""What eval and predict show of routing: how sure it is, what is set aside, what it confuses and what it goes by."""

from __future__ import annotations

from typing import Any

import pytest

from lorabank.evaluation.routing.audit import Confused, Example, RoutingAudit, TaskAudit
from lorabank.workflows.results import MatrixReport, RoutedPrediction

ROUTING = {
    "routed": 0.81, "oracle": 0.875, "accuracy": 0.91, "confusion": [[90, 6], [4, 76]], "tasks": ["mail", "spam"],
    "right": [0.9375, 0.95], "confidence": 0.93, "calibration_error": 0.02,
    "abstention": {"threshold": 0.8, "coverage": 0.75, "routed": 0.985, "score": 0.9, "covered": [0.7, 0.8125]},
}  # fmt: skip

AUDIT = RoutingAudit(
    rows=176,
    right=0.9432,
    confused=(
        Confused("mail", "spam", 6, 0.0625, (Example(7, 0.93, "win\n\x1b[2J now"), Example(2, None, "prize"))),
        Confused("spam", "mail", 4, 0.05, ()),
    ),
    stripped=30,
    moved=0.1,
    right_stripped=0.85,
    names={"spam": 20, "mail": 10},
    tasks=(
        TaskAudit("mail", 96, 0.9375, 10, 0, 0.9375, {}),
        TaskAudit("spam", 80, 0.95, 20, 17, 0.75, {"Is this spam or not?": 20}),
    ),
    warnings=("routing to 'spam' depends on names",),
)


def report(**changes: Any) -> MatrixReport:
    cells: list[list[float | None]] = [[None, None], [None, None], [0.8, 0.82]]
    return MatrixReport(
        "routed", "routed", "routed", ("mail", "spam"), cells, cells, cells, [96, 80], {}, 2, 0, ROUTING, {}, **changes
    )


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch, api: Any) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    api["check_gates"] = lambda reports, gates: ()


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_eval_shows_how_sure_the_router_is_and_what_is_set_aside(run: Any, api: Any) -> None:
    api["evaluate"] = (report(),)
    shown = lines(run("eval", "--composition", "routed", "--abstain", "0.8").out)
    assert api.called("evaluate")["config"].abstain == 0.8
    start = shown.index("score with routed tasks 0.8100")
    assert shown[start:] == [
        "score with routed tasks 0.8100",
        "score with known tasks (oracle) 0.8750",
        "texts routed to their task 0.9100",
        "mean probability of the routed task 0.9300",
        "calibration error 0.0200",
        "",
        "task \\ routed to mail spam right",
        "mail 90 6 0.9375",
        "spam 4 76 0.9500",
        "",
        "texts whose task is less likely than 0.8 set aside",
        "texts that are answered 0.7500",
        "of those, routed to their task 0.9850",
        "of those, score over all rows 0.9000",
        "",
        "task answered",
        "mail 0.7000",
        "spam 0.8125",
    ]
    assert run("eval", "--abstain", "0").code == 2
    assert run("eval", "--abstain", "1").code == 2


def test_eval_shows_the_audit(run: Any, api: Any) -> None:
    api["evaluate"] = (report(audit=AUDIT),)
    shown = lines(run("eval", "--composition", "routed", "--audit").out)
    start = shown.index("routing audit: 0.9432 of 176 rows are routed to their own task")
    assert shown[start + 2 : start + 6] == [
        "confused most often, with examples",
        "task routed to rows share row probability text",
        "mail spam 6 0.0625 7 0.9300 win \\x1b[2J now",
        "2 prize",
    ]
    assert "names found spam in 20, mail in 10" in shown
    assert "share of rows that change their route 0.1000" in shown
    assert "spam 0.9500 0.7500 20 17 Is this spam or not? (20)" in shown
    assert shown[-1] == "warning: routing to 'spam' depends on names"
    document = run("eval", "--composition", "routed", "--audit", "--json").document["reports"][0]["audit"]
    assert document["confused"][0]["examples"][0] == {"row": 7, "probability": 0.93, "text": "win\n\x1b[2J now"}
    assert document["tasks"][1]["phrases"] == {"Is this spam or not?": 20}


def test_predict_says_which_tasks_a_text_resembles_that_is_set_aside(run: Any, api: Any, terminal: Any) -> None:
    told = ("routed", {}, "composition", "routed", 0.1, {"mail": 0.6, "spam": 0.39, "news": 0.01})
    api["predict"] = (RoutedPrediction("What time is it?", None, None, None, *told),)
    terminal("stdout")
    shown = lines(run("predict", "--abstain", "0.8", "What time is it?").out)
    assert shown[1] == "none of these tasks (mail 0.60, spam 0.39, news 0.01) routed routed none What time is it?"
    assert api.called("predict")["config"].abstain == 0.8
    (document,) = run("predict", "--abstain", "0.8", "What time is it?", "--json").document["predictions"]
    assert (document["label"], document["task"]) == (None, None)
    assert document["posterior"] == {"mail": 0.6, "spam": 0.39, "news": 0.01}
