"""The rows of a sequence: sampled by label, never scored where they are trained on, copied as they are."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from lorabank.core.config import InitConfig
from lorabank.core.errors import ConfigError, DataError
from lorabank.core.records import BaseModelRecord
from lorabank.core.task_kinds import task_kind
from lorabank.data.loading import load_task_data
from lorabank.models.bases.open_base import OpenBase
from lorabank.sequences.file import read_sequence
from lorabank.sequences.rows import SequenceTask, read_tasks, write_tasks
from lorabank.workflows.bases import described

Rows = Sequence[tuple[str, str]]


def labelled(start: str, counts: dict[str, int]) -> list[tuple[str, str]]:
    """Different texts, ``counts`` of each label."""
    labels = [label for label, count in counts.items() for _ in range(count)]
    return [(f"{start} {label} {number}", label) for number, label in enumerate(labels)]


def write(path: Path, rows: Rows) -> Path:
    path.write_text("".join(json.dumps({"text": text, "label": label}) + "\n" for text, label in rows))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, save_base: Callable[..., Path]) -> BaseModelRecord:
    return described(InitConfig(base=str(save_base(tmp_path_factory.mktemp("base") / "tiny"))))


@pytest.fixture
def tasks(tmp_path: Path) -> Callable[..., Path]:
    """``tasks(top, a=..., b=...)``: a sequence of files that are there; further lines above and below each task."""
    write(tmp_path / "a.jsonl", labelled("a", {"no": 30, "yes": 10}))
    write(tmp_path / "a-test.jsonl", labelled("a test", {"no": 6, "yes": 6}))
    write(tmp_path / "b.jsonl", labelled("b", {"x": 8, "y": 8}))
    write(tmp_path / "b-test.jsonl", labelled("b test", {"x": 4, "y": 4}))

    def make(top: str = "", *, a: str = "", b: str = "", selection: str = "on rows cut from train") -> Path:
        text = f'name = "t"\norders = [["a", "b"]]\nstrategies = ["olora"]\nselection = "{selection}"\n{top}\n'
        for name, more in (("a", a), ("b", b)):
            given = "" if "eval_data" in more else f'eval_data = "{name}-test.jsonl"\n'
            text += f'[tasks.{name}]\ndata = "{name}.jsonl"\n{given}{more}\n'
        (tmp_path / "t.toml").write_text(text)
        return tmp_path / "t.toml"

    return make


def read(file: Path, base: BaseModelRecord, *, dev: bool = False) -> dict[str, SequenceTask]:
    return read_tasks(read_sequence(file), OpenBase(base), dev=dev)


def test_samples_keep_the_share_of_each_label(tasks: Callable[..., Path], base: BaseModelRecord) -> None:
    found = read(tasks("max_train_rows = 20\nmax_eval_rows = 4"), base)
    assert Counter(found["a"].data.train.labels) == {"no": 15, "yes": 5}
    assert Counter(found["a"].data.eval.labels) == {"no": 2, "yes": 2}
    assert found["a"].of == (40, 12)
    assert len(found["b"].data.train) == 16, "there are no more"


def test_the_sample_depends_on_its_own_seed(tasks: Callable[..., Path], base: BaseModelRecord) -> None:
    one, same, other = (
        read(tasks(f"max_train_rows = 20\n{more}"), base)["a"].data.train.texts
        for more in ("", "seeds = [5, 6]", "sample_seed = 1")
    )
    assert one == same != other


def test_a_sample_must_hold_every_label(tasks: Callable[..., Path], base: BaseModelRecord, tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", labelled("a", {"no": 500, "yes": 1}))
    with pytest.raises(DataError, match="no row of the label 'yes' is among the 10 sampled") as caught:
        read(tasks("max_train_rows = 10"), base)
    assert "max_train_rows" in str(caught.value.hint)


def test_a_text_that_another_task_trains_on_is_not_scored(
    tasks: Callable[..., Path], base: BaseModelRecord, tmp_path: Path
) -> None:
    rows = labelled("a test", {"no": 2, "yes": 2})
    write(tmp_path / "a-test.jsonl", [*rows, labelled("b", {"x": 8})[2]])
    with pytest.raises(DataError, match="is not among the training labels"):
        read(tasks(), base)
    write(tmp_path / "a-test.jsonl", [*rows, (labelled("b", {"x": 8})[2][0], "yes")])
    with pytest.raises(DataError) as caught:
        read(tasks("max_train_rows = 2\nmax_eval_rows = 2"), base)  # whatever the samples hold
    message = caught.value.message
    assert f"{str(tmp_path / 'a-test.jsonl')!r} line 5" in message
    assert f"{str(tmp_path / 'b.jsonl')!r} line 3 (task 'b')" in message
    assert "task 'a' is scored on" in message


def test_its_own_training_texts_neither(tasks: Callable[..., Path], base: BaseModelRecord, tmp_path: Path) -> None:
    write(tmp_path / "b-test.jsonl", [*labelled("b test", {"x": 2}), labelled("b", {"x": 8})[0]])
    with pytest.raises(DataError, match=r"b-test.jsonl' line 3, as '.*b.jsonl' line 1"):
        read(tasks(), base)


def test_dev_data_that_is_eval_data_must_be_admitted(tasks: Callable[..., Path], base: BaseModelRecord) -> None:
    same = 'dev_data = "a-test.jsonl"'
    with pytest.raises(DataError, match=r"\[tasks.a\] dev_data holds the rows of eval_data") as caught:
        read(tasks(a=same), base)
    assert "selection" in str(caught.value.hint)
    found = read(tasks(a=same, selection="on eval_data: as the papers do"), base)
    assert found["a"].notes == (
        "a: dev_data holds the rows of eval_data: the settings were chosen on the rows that are scored",
    )


def test_dev_data_may_not_even_share_texts_with_eval_data(
    tasks: Callable[..., Path], base: BaseModelRecord, tmp_path: Path
) -> None:
    write(tmp_path / "dev.jsonl", [*labelled("a dev", {"no": 2}), *labelled("a test", {"no": 1})])
    with pytest.raises(DataError, match="dev_data shares 1 texts with eval_data"):
        read(tasks(a='dev_data = "dev.jsonl"'), base)


def test_dev_rows_are_scored_on_request_alone(
    tasks: Callable[..., Path], base: BaseModelRecord, tmp_path: Path
) -> None:
    write(tmp_path / "dev.jsonl", labelled("a dev", {"no": 2, "yes": 1}))
    file = tasks("dev_fraction = 0.25", a='dev_data = "dev.jsonl"')
    final, dev = read(file, base), read(file, base, dev=True)
    assert set(final["a"].data.eval.texts) == {text for text, _ in labelled("a test", {"no": 6, "yes": 6})}
    assert set(dev["a"].data.eval.texts) == {text for text, _ in labelled("a dev", {"no": 2, "yes": 1})}
    assert final["a"].of[0] == 40, "a file of its own takes nothing from the training rows"
    assert final["b"].data.train == dev["b"].data.train
    assert Counter(dev["b"].data.eval.labels) == {"x": 2, "y": 2}
    assert not set(dev["b"].data.eval.texts) & set(dev["b"].data.train.texts)
    assert final["b"].of == (12, 8)
    with pytest.raises(ConfigError, match=r"\[tasks.a\] has no rows to choose settings on"):
        read(tasks(), base, dev=True)


def test_rows_of_labels_that_are_left_out(tasks: Callable[..., Path], base: BaseModelRecord, tmp_path: Path) -> None:
    rows = labelled("a test", {"no": 2, "-": 3, "yes": 2})
    write(tmp_path / "a-test.jsonl", rows)
    with pytest.raises(DataError, match="'-' is not among the training labels"):
        read(tasks(), base)
    file = tasks(a='leave_out_labels = ["-"]')
    task = read(file, base)["a"]
    assert task.left_out == (0, 3)
    assert list(zip(task.data.eval.texts, task.data.eval.labels, strict=True)) == [*rows[:2], *rows[5:]]
    assert task.data.eval.lines == (1, 2, 6, 7), "places are those of the file"
    assert task.data.eval.source == str(tmp_path / "a-test.jsonl")
    write(tmp_path / "a-test.jsonl", [*rows, ("more", "maybe")])
    with pytest.raises(DataError, match=r"a-test.jsonl', line 8.*'maybe' is not among"):
        read(file, base)


def reloaded(file: Path, base: BaseModelRecord, folder: Path) -> list[tuple[SequenceTask, Any]]:
    """Each task of a sequence, and what its written files hold."""
    config = read_sequence(file)
    found = read_tasks(config, OpenBase(base), dev=False)
    write_tasks(config, found.values(), folder)
    return [
        (
            task,
            load_task_data(
                task.written(config.training(name, "olora", seed=9), folder),
                labelled=task_kind(base.task_type).labelled,
                render_chat=lambda messages: "".join(f"<{m['role']}>{m['content']}" for m in messages),
            ),
        )
        for name, task in found.items()
    ]


def test_written_files_hold_the_rows(tasks: Callable[..., Path], base: BaseModelRecord, tmp_path: Path) -> None:
    for task, data in reloaded(tasks("max_train_rows = 12"), base, tmp_path / "data"):
        assert data.train.sha256 == task.digests["train"]
        assert data.eval.sha256 == task.digests["eval"]
        assert data.labels == task.data.labels


def test_a_split_of_one_file_does_not_depend_on_the_training_seed(
    tasks: Callable[..., Path], base: BaseModelRecord, tmp_path: Path
) -> None:
    file = tasks()
    file.write_text(file.read_text(encoding="utf-8").replace('eval_data = "b-test.jsonl"\n', "eval_fraction = 0.25\n"))
    (_, _), (task, data) = reloaded(file, base, tmp_path / "data")
    assert (len(data.train), len(data.eval)) == (12, 4)
    assert data.eval.sha256 == task.digests["eval"]


def test_written_files_keep_columns_words_and_form(
    tmp_path: Path, tasks: Callable[..., Path], make_language_model: Callable[..., Path]
) -> None:
    base = described(InitConfig(base=str(make_language_model())))
    with (tmp_path / "a.csv").open("w", newline="") as target:
        rows = [("body", "kind"), *((f"line one,\nline {i} of a", str(i % 2)) for i in range(12))]
        csv.writer(target).writerows(rows)
    chat = [
        {"conversations": [{"from": "human", "value": f"say {i}"}, {"from": "gpt", "value": f"<{i}>"}]}
        for i in range(12)
    ]
    (tmp_path / "b.json").write_text(json.dumps(chat))
    file = tasks("max_train_rows = 4\nmax_eval_rows = 2")
    text = file.read_text(encoding="utf-8").replace('"a.jsonl"', '"a.csv"').replace('"b.jsonl"', '"b.json"')
    for name, more in (("a", 'map = ["body=text", "kind=label"]\nlabel_words = "0=bad,1=good"'), ("b", "")):
        text = text.replace(f'eval_data = "{name}-test.jsonl"', more)
    file.write_text(text)
    (words, read_words), (chats, read_chats) = reloaded(file, base, tmp_path / "data")
    assert read_words.train.sha256 == words.digests["train"]
    assert set(read_words.train.labels) == {"bad", "good"}
    assert read_words.prompt_template == words.data.prompt_template
    assert read_chats.form == "sharegpt"
    assert read_chats.scoring == "generation"
    assert {prompt.removeprefix("<user>say ") for prompt in read_chats.train.texts} == {
        answer.strip("<>") for answer in read_chats.train.labels
    }
    assert len(read_chats.train) == 4
    assert chats.of == (10, 2)


def test_files_of_any_dialect_are_read_and_written_as_plain_ones(
    tasks: Callable[..., Path], base: BaseModelRecord, tmp_path: Path
) -> None:
    rows = "".join(f'"größe {i}";{"xy"[i % 2]}\r\n' for i in range(16))
    (tmp_path / "b.csv").write_bytes(f"Text;Label\r\n{rows};x\r\n".encode("cp1252"))
    more = 'data = "b.csv"\nencoding = "cp1252"\nskip_bad = true'
    file = tasks(b="leave_out_labels = []")
    text = file.read_text().replace('data = "b.jsonl"', more)
    file.write_text(text)
    for task, data in reloaded(file, base, tmp_path / "out"):
        assert (data.train.sha256, data.eval.sha256) == (task.digests["train"], task.digests["eval"])
        if task.name == "b":
            assert len(data.train) == 16
            assert data.notes == ()
