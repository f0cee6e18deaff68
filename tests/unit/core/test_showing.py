"""What a prompt and a notebook show."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

import pytest

from lorabank.core.records import AdapterRecord, TaskRecord
from lorabank.core.showing import brief
from lorabank.workflows.results import AddTaskResult, MatrixReport

HOSTILE = "<script>alert(1)</script>\x1b[31m\u202e&\"'"


def task(name: str = "spam", labels: tuple[str, ...] = ("ham", "spam")) -> TaskRecord:
    return TaskRecord(name, 1, "SEQ_CLS", labels, "ready")


def result(name: str) -> AddTaskResult:
    many: dict[str, Any] = {f"fact {number}": "x" * 500 for number in range(100)}
    adapter = AdapterRecord(
        "d" * 64,
        name,
        8,
        16.0,
        False,
        ("query",) * 50,
        "olora",
        {},
        (),
        0,
        10,
        1.0,
        "cpu",
        1,
        None,
        many,
        many,
        many,
        many,
    )
    score = {"metric": "accuracy", "value": 0.912345, "n": 40, "low": 0.8, "high": 0.95, "labels": None}
    return AddTaskResult(task(name), adapter, (), score, bank="bank", bank_created=False)


def report(tasks: tuple[str, ...], subject: str = "as-trained") -> MatrixReport:
    values = [[None, None], [0.9, None], [0.85, 0.75]]
    return MatrixReport(
        subject, "as-trained", "given", tasks, values, values, values, [4, 4],
        {"average_accuracy": 0.8}, 3, 0, None, {"huge": "x" * 10_000},
    )  # fmt: skip


class Cells(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        assert not attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_a_result_is_one_short_line() -> None:
    assert repr(result("spam")) == (
        "AddTaskResult(task='spam', score={'metric': 'accuracy', 'value': 0.9123, 'n': 40, 'low': 0.8, 'high': 0.95, "
        "...}, bank='bank', warnings=[])"
    )
    assert (
        repr(task())
        == "TaskRecord(name='spam', position=1, task_type='SEQ_CLS', labels=['ham', 'spam'], state='ready')"
    )
    assert repr(report(("a", "b"))) == (
        "MatrixReport(subject='as-trained', mode='as-trained', tasks=['a', 'b'], scalars={'average_accuracy': 0.8}, "
        "computed=3, cached=0)"
    )


@pytest.mark.parametrize("one", [result("s" * 5000), task("s" * 5000, ("l" * 5000,) * 999), report(("a" * 9999,) * 2)])
def test_nothing_makes_it_long(one: object) -> None:
    assert len(repr(one)) < 800


def test_a_matrix_is_a_table_of_its_scores() -> None:
    cells = Cells(report(("a", "b"))._repr_html_())
    assert cells.texts == [
        "as-trained (as-trained): accuracy",
        "a",
        "b",
        "after a",
        "0.900",
        "after b",
        "0.850",
        "0.750",
    ]


@pytest.mark.parametrize(
    "one", [result(HOSTILE), task(HOSTILE, (HOSTILE,)), report((HOSTILE, "b"), HOSTILE), result(HOSTILE).adapter]
)
def test_hostile_text_is_only_text(one: Any) -> None:
    html = one._repr_html_()
    cells = Cells(html)
    assert set(cells.tags) <= {"table", "caption", "tr", "th", "td"}
    assert "<script>" in "".join(cells.texts)
    assert (html + repr(one)).isprintable()


def test_values_in_few_words() -> None:
    assert brief([1, 2.0, None, "a", (), {}]) == "[1, 2, None, 'a', [], ...]"
    assert brief({"a": [task()]}) == "{'a': ['spam']}"
