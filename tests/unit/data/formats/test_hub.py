"""Data sets of the hub, through a package that stands in for ``datasets`` and lets through what that one does."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError, DataError, MissingExtraError, NotFoundError
from lorabank.data.loading import detect_form, load_task_data, read_rows


class GenerationError(Exception):
    """Like ``datasets.exceptions.DatasetGenerationError``: the useful part is in its cause."""


@dataclass
class FakeDataset:
    """Like ``datasets.Dataset``: columns of equal length; a key that a row lacks is None."""

    cells: Mapping[str, Sequence[Any]]
    features: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.features = {column: SimpleNamespace() for column in self.cells} | self.features

    @property
    def column_names(self) -> list[str]:
        return list(self.cells)

    def __len__(self) -> int:
        return len(next(iter(self.cells.values())))

    def __getitem__(self, column: str) -> Sequence[Any]:
        return self.cells[column]


class FakeHub:
    """What is on the hub, by path, configuration and split; an exception is raised."""

    def __init__(self) -> None:
        self.sets: dict[tuple[str, str | None, str], FakeDataset | Exception] = {}

    def load_dataset(self, path: str, name: str | None = None, *, split: str) -> FakeDataset:
        found = self.sets.get((path, name, split), FileNotFoundError(f"Dataset '{path}' doesn't exist on the Hub"))
        if isinstance(found, Exception):
            raise found
        return found


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub()
    module = ModuleType("datasets")
    module.load_dataset = fake.load_dataset  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", module)
    return fake


def test_class_labels_are_read_by_their_names(hub: FakeHub) -> None:
    cells = {"text": ["a", "b", "c", "d"], "label": [0, 1, 1, 0]}
    labels = {"label": SimpleNamespace(names=["World", "Sports"])}
    hub.sets["owner/news", None, "train"] = FakeDataset(cells, labels)
    rows = read_rows("hf:owner/news", text_column="text", label_column="label")
    assert (rows.texts, rows.labels) == (("a", "b", "c", "d"), ("World", "Sports", "Sports", "World"))
    assert (rows.source, rows.unit, rows.lines) == ("hf:owner/news", "row", (1, 2, 3, 4))


def test_a_row_without_a_class_label_is_named(hub: FakeHub) -> None:
    labels = {"label": SimpleNamespace(names=["World", "Sports"])}
    hub.sets["owner/news", None, "test"] = FakeDataset({"text": ["a", "b"], "label": [0, -1]}, labels)
    with pytest.raises(DataError, match=r"'hf:owner/news:test', row 2, column 'label': .* found nothing \(null\)"):
        read_rows("hf:owner/news:test", text_column="text", label_column="label")


def test_configuration_and_split_are_named_behind_the_set(hub: FakeHub) -> None:
    hub.sets["o-1/n.2", "main", "train"] = FakeDataset({"question": ["1?", "2?"], "answer": ["1", "2"]})
    hub.sets["o-1/n.2", "main", "test[:10]"] = FakeDataset({"question": ["3?"], "answer": ["3"]})
    renames = ("question=prompt", "answer=completion")
    config = TrainConfig(data="hf:o-1/n.2/main", eval_data="hf:o-1/n.2/main:test[:10]", map=renames)
    assert detect_form(config) == "prompt-completion"
    data = load_task_data(config, labelled=False)
    assert (data.train.texts, data.train.labels) == (("1?", "2?"), ("1", "2"))
    assert (data.eval.texts, data.eval.columns) == (("3?",), ("question", "answer"))


@pytest.mark.parametrize(
    ("cells", "problem"),
    [
        # A mistyped key is a column of None to datasets, in the rows that have the right one.
        ({"prompt": ["a", "b"], "completion": ["x", None], "completoin": [None, "y"]}, "row 2, column 'completion'"),
        ({"prompt": ["a", 7], "completion": ["x", "y"]}, "row 2, column 'prompt': expected a text, found 7"),
        ({"prompt": ["a", "b"], "completions": ["x", "y"]}, "no column 'completion'"),
    ],
)
def test_what_the_package_lets_through_is_found(hub: FakeHub, cells: dict[str, list[Any]], problem: str) -> None:
    hub.sets["owner/name", None, "train"] = FakeDataset(cells)
    with pytest.raises(DataError) as caught:
        load_task_data(TrainConfig(data="hf:owner/name"), labelled=False)
    assert problem in caught.value.message
    assert "'hf:owner/name'" in caught.value.message


def test_an_optional_column_may_be_absent(hub: FakeHub) -> None:
    hub.sets["owner/alpaca", None, "train"] = FakeDataset({"instruction": ["a", "b"], "output": ["x", "y"]})
    data = load_task_data(TrainConfig(data="hf:owner/alpaca"), labelled=False)
    assert data.form == "alpaca"


def failed() -> Exception:
    error = GenerationError("An error occurred while generating the dataset")
    error.__cause__ = ValueError("JSON parse error in row 3\nmore")
    return error


@pytest.mark.parametrize(
    ("error", "kind", "problem"),
    [
        (
            FileNotFoundError("Dataset 'o/n' doesn't exist"),
            NotFoundError,
            "cannot be loaded: Dataset 'o/n' doesn't exist",
        ),
        (ConnectionError("Couldn't reach 'o/n' on the Hub"), NotFoundError, "Couldn't reach 'o/n' on the Hub"),
        (ValueError("Unknown split \"train\". Should be one of ['test']."), DataError, "Should be one of ['test']"),
        (failed(), DataError, "cannot be loaded: JSON parse error in row 3"),
        (KeyError(), DataError, "cannot be loaded: KeyError"),
    ],
)
def test_what_fails_in_the_package_is_one_line(hub: FakeHub, error: Exception, kind: type, problem: str) -> None:
    hub.sets["o/n", None, "train"] = error
    with pytest.raises(kind) as caught:
        read_rows("hf:o/n", text_column="text", label_column=None)
    assert problem in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.unchanged == "nothing was changed"


def test_a_column_that_is_not_there_and_a_set_without_rows(hub: FakeHub) -> None:
    hub.sets["o/n", None, "train"] = FakeDataset({"txt": ["a"]})
    with pytest.raises(DataError, match=r"no column 'text'; its columns are 'txt'\. Did you mean 'txt'\?"):
        read_rows("hf:o/n", text_column="text", label_column=None)
    hub.sets["o/n", None, "train"] = FakeDataset({"text": []})
    with pytest.raises(DataError, match="has no rows"):
        read_rows("hf:o/n", text_column="text", label_column=None)


@pytest.mark.parametrize("module", [None, ModuleType("datasets")], ids=["not installed", "a folder of that name"])
def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, module: ModuleType | None) -> None:
    monkeypatch.setitem(sys.modules, "datasets", module)
    with pytest.raises(MissingExtraError, match="the package datasets") as caught:
        load_task_data(TrainConfig(data="hf:owner/name"))
    assert caught.value.hint == 'pip install "datasets>=4"'


@pytest.mark.parametrize("name", ["hf:", "hf:name", "hf:a/b/c/d", "hf:a/b:", "hf:a b/c", "hf:/b", "hf:a/b: test"])
def test_a_name_that_is_none_is_refused(hub: FakeHub, name: str) -> None:
    with pytest.raises(ConfigError, match="does not name a data set of the hub") as caught:
        read_rows(name, text_column="text", label_column=None)
    assert "hf:OWNER/NAME" in (caught.value.hint or "")
