"""The form of a file, told by its columns."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError, DataError
from lorabank.core.shelves import FORMS
from lorabank.data.forms.base import load_form
from lorabank.data.loading import detect_form, load_task_data


def file_with(folder: Path, *columns: str) -> str:
    file = folder / "data.jsonl"
    file.write_text(json.dumps(dict.fromkeys(columns, "x")) + "\nnot read\n")
    return str(file)


def detect(folder: Path, *columns: str, **changes: Any) -> str:
    return detect_form(TrainConfig(data=file_with(folder, *columns), **changes))


@pytest.mark.parametrize("name", FORMS)
def test_every_form_is_told_by_its_own_columns(tmp_path: Path, name: str) -> None:
    assert detect(tmp_path, "id", *load_form(name).columns) == name


@pytest.mark.parametrize(
    ("columns", "form"),
    [
        (("text", "label", "prompt", "completion"), "classification"),
        (("instruction", "input", "output", "text"), "alpaca"),  # as the original alpaca file has it
        (("prompt", "prompt_id", "messages"), "messages"),
        (("text", "prompt"), "text"),
        (("text", "table", "source"), "text"),
    ],
)
def test_further_columns_do_not_hide_the_form(tmp_path: Path, columns: tuple[str, ...], form: str) -> None:
    assert detect(tmp_path, *columns) == form


def test_where_the_form_decides_the_base_plain_text_beside_others_is_asked_for(tmp_path: Path) -> None:
    data = file_with(tmp_path, "text", "category", "id")
    with pytest.raises(DataError, match=r"no column 'label'.* one of 'category', 'id'") as caught:
        detect_form(TrainConfig(data=data), decides=True)
    assert "--label-column COLUMN" in (caught.value.hint or "")
    assert "--format text" in (caught.value.hint or "")
    assert detect_form(TrainConfig(data=data)) == "text"
    assert detect_form(TrainConfig(data=data, format="text"), decides=True) == "text"
    assert detect_form(TrainConfig(data=data, label_column="category"), decides=True) == "classification"
    assert detect_form(TrainConfig(data=file_with(tmp_path, "text")), decides=True) == "text"


def test_two_forms_at_once_ask_for_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="fit several forms: prompt-completion, messages") as caught:
        detect(tmp_path, "prompt", "completion", "messages")
    assert "--format prompt-completion" in (caught.value.hint or "")
    assert detect(tmp_path, "prompt", "completion", "messages", format="messages") == "messages"


@pytest.mark.parametrize(
    ("columns", "column", "hint"),
    [
        (("text", "lable"), "label", "--map lable=label, or --format text"),
        (("Txt", "Labels"), "text", "--map Txt=text --map Labels=label"),
        (("prompt", "completions"), "completion", "--map completions=completion"),
        (("conversation",), "conversations", "--map conversation=conversations"),
        (("txt",), "text", "--map txt=text"),
        (("text", "instruction", "outputs"), "output", "--map outputs=output, or --format text"),
    ],
)
def test_a_misspelt_column_is_named_and_not_taken_for_another_form(
    tmp_path: Path, columns: tuple[str, ...], column: str, hint: str
) -> None:
    with pytest.raises(DataError, match=f"no column {column!r}") as caught:
        detect(tmp_path, *columns)
    assert caught.value.hint == hint


def test_columns_of_no_form_are_listed_with_those_that_are_needed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="its columns 'review', 'stars' fit no form of rows") as caught:
        detect(tmp_path, "review", "stars")
    for word in ("--map", "--text-column", "prompt-completion: prompt, completion", "messages: messages"):
        assert word in (caught.value.hint or "")


def test_named_columns_mean_labelled_or_plain_text(tmp_path: Path) -> None:
    assert detect(tmp_path, "review", "stars", text_column="review", label_column="stars") == "classification"
    assert detect(tmp_path, "review", "prompt", "completion", text_column="review") == "text"
    with pytest.raises(DataError, match=r"no column 'star'.*Did you mean 'stars'"):
        detect(tmp_path, "text", "stars", label_column="star")
    assert detect(tmp_path, "text", "stars", label_column="STARS") == "classification"
    with pytest.raises(DataError, match="no column 'rating'"):
        detect(tmp_path, "text", "stars", label_column="rating")


def test_a_given_form_needs_its_columns(tmp_path: Path) -> None:
    assert detect(tmp_path, "text", "label", format="text") == "text"
    with pytest.raises(DataError, match="no column 'messages'") as caught:
        detect(tmp_path, "text", "label", format="messages")
    assert "--map COLUMN=messages" in (caught.value.hint or "")


def test_the_evaluation_file_needs_the_columns_of_the_form(tmp_path: Path) -> None:
    train, test = tmp_path / "train.jsonl", tmp_path / "test.jsonl"
    train.write_text('{"prompt": "a", "completion": "b"}\n')
    test.write_text('{"prompt": "c", "answer": "d"}\n')
    with pytest.raises(DataError, match=r"test\.jsonl': no column 'completion'") as caught:
        load_task_data(TrainConfig(data=str(train), eval_data=str(test)), labelled=False)
    assert "--map COLUMN=completion" in (caught.value.hint or "")


def test_without_rows_or_without_a_file_there_is_no_form(tmp_path: Path) -> None:
    (tmp_path / "blank.jsonl").write_text("\n \n")
    with pytest.raises(DataError, match="no rows"):
        detect_form(TrainConfig(data=str(tmp_path / "blank.jsonl")))
    with pytest.raises(ConfigError, match="no training data"):
        detect_form(TrainConfig())


# ------------------------------------------------------------------------------------------------------- a classifier


@pytest.mark.parametrize(
    "columns", [("prompt", "completion"), ("messages",), ("text", "instruction", "output"), ("conversations",)]
)
def test_a_classifier_does_not_learn_other_forms(tmp_path: Path, columns: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="a classifier learns only labelled texts") as caught:
        load_task_data(TrainConfig(data=file_with(tmp_path, *columns)))
    assert "--task-type CAUSAL_LM" in (caught.value.hint or "")


def test_a_classifier_with_another_format_given_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has the form text"):
        load_task_data(TrainConfig(data=file_with(tmp_path, "text", "label"), format="text"))


def test_for_a_classifier_texts_without_labels_lack_the_label_column(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no column 'label'") as caught:
        load_task_data(TrainConfig(data=file_with(tmp_path, "text")))
    assert "--label-column" in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"set": ("prompt_template={text}",)}, "prompt_template"),
        ({"set": ("label_words=0=a,1=b",)}, "label_words"),
        ({"scoring": "generation"}, "--scoring"),
    ],
)
def test_settings_of_text_to_text_are_refused_for_a_classifier(
    tmp_path: Path, changes: dict[str, Any], option: str
) -> None:
    with pytest.raises(ConfigError, match=f"{option} is for text to text"):
        load_task_data(TrainConfig(data=file_with(tmp_path, "text", "label"), **changes))
