"""What is told of a router, against counts written out."""

from __future__ import annotations

import pytest

from lorabank.evaluation.routing.audit import Routes, audit_of
from lorabank.evaluation.routing.stripping import Stripped


def routes(task: str, routed: list[str], rerouted: list[str], *, sure: list[float] | None = None) -> Routes:
    texts = [f"{task} text {k}" for k in range(len(routed))]
    left = tuple(
        text if a == b else text.removeprefix(f"{task} ") for text, a, b in zip(texts, routed, rerouted, strict=True)
    )
    names = {task: sum(text != new for text, new in zip(texts, left, strict=True))}
    return Routes(task, texts, routed, sure or [], Stripped(left, names, {"a b c": 2}), rerouted)


def test_confusions_are_counted_with_the_surest_examples() -> None:
    sent = ["one", "two", "two", "six", "two", "two"]
    one = routes("one", sent, sent, sure=[1, 0.6, 0.9, 0.8, 0.7, 0.9])
    two = routes("two", ["two", "one"], ["two", "one"], sure=[0.9, 0.5])
    six = routes("six", ["six"], ["six"], sure=[0.9])
    audit = audit_of([one, two, six])
    assert [(pair.task, pair.routed, pair.rows, pair.share) for pair in audit.confused] == [
        ("one", "two", 4, pytest.approx(4 / 6)),
        ("one", "six", 1, pytest.approx(1 / 6)),
        ("two", "one", 1, 0.5),
    ]
    assert [(one.row, one.probability) for one in audit.confused[0].examples] == [(3, 0.9), (6, 0.9), (5, 0.7)]
    assert audit.confused[0].examples[0].text == "one text 2"
    assert audit.right == pytest.approx(3 / 9)


def test_a_task_that_is_found_by_its_name_is_told() -> None:
    leaking = routes("spam", ["spam"] * 20, ["spam"] * 16 + ["mail"] * 4)
    sound = routes("mail", ["mail"] * 20, ["mail"] * 18 + ["spam"] * 2)
    audit = audit_of([leaking, sound])
    assert audit.warnings == (
        "routing to 'spam' depends on names or repeated phrases: without them 16 of 20 rows are routed to it, with "
        "them 20",
    )
    assert (audit.right, audit.right_stripped, audit.moved) == (1.0, 34 / 40, 6 / 40)
    assert (audit.stripped, audit.names) == (6, {"spam": 4, "mail": 2})
    assert [(task.moved, task.right_stripped, task.phrases) for task in audit.tasks] == [
        (4, 0.8, {"a b c": 2}),
        (2, 0.9, {"a b c": 2}),
    ]


def test_without_probabilities_the_first_rows_are_examples() -> None:
    audit = audit_of([routes("one", ["two"] * 5, ["two"] * 5), routes("two", ["two"], ["two"])])
    assert [(one.row, one.probability) for one in audit.confused[0].examples] == [(1, None), (2, None), (3, None)]
