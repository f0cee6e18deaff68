"""A task of text to text: labels, template, scoring, and splits of free completions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, reject
from hypothesis import strategies as st

from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError, DataError
from lorabank.data.loading import TaskData, example_row, load_task_data
from lorabank.data.rows import Rows, sample_rows
from lorabank.data.splits import split_rows

LABELLED = [{"text": f"text {i}", "label": i % 2} for i in range(10)]
PAIRS = [{"prompt": f"prompt {i}", "completion": "no" if i % 4 else "yes"} for i in range(12)]
TEXTS = [{"text": f"plain text {i}"} for i in range(10)]


def write(file: Path, rows: list[Any]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def load(folder: Path, rows: list[Any], evaluation: list[Any] | None = None, **changes: Any) -> TaskData:
    if evaluation is not None:
        changes["eval_data"] = write(folder / "test.jsonl", evaluation)
    return load_task_data(TrainConfig(data=write(folder / "train.jsonl", rows), **changes), labelled=False)


# ---------------------------------------------------------------------------------------------------- labelled texts


def test_a_labelled_text_keeps_its_raw_text_and_gets_the_default_template(tmp_path: Path) -> None:
    data = load(tmp_path, LABELLED)
    assert (data.form, data.scoring, data.labels) == ("classification", "likelihood", ("0", "1"))
    assert data.prompt_template == "{text}\nOption: 0, 1\nAnswer:"
    assert "text 0" in (*data.train.texts, *data.eval.texts)
    assert not data.train.free


def test_words_take_the_place_of_the_labels_everywhere(tmp_path: Path) -> None:
    template = 'Is "{text}" {labels}? Answer:'
    data = load(tmp_path, LABELLED, set=("label_words=1=even,0=Odd", f"prompt_template={template}"))
    assert data.labels == ("Odd", "even"), "in the order of the labels"
    assert data.prompt_template == 'Is "{text}" Odd, even? Answer:'
    for rows in (data.train, data.eval):
        assert rows.labels == tuple("even" if int(text[-1]) % 2 else "Odd" for text in rows.texts)
    first = data.train.texts[0]
    assert example_row(data) == (f'Is "{first}" Odd, even? Answer:', data.train.labels[0])


def test_the_split_is_that_of_the_classifier(tmp_path: Path) -> None:
    data = load(tmp_path, LABELLED, set=("label_words=0=a,1=b",))
    same = load_task_data(TrainConfig(data=str(tmp_path / "train.jsonl")))
    assert (data.train.texts, data.eval.texts) == (same.train.texts, same.eval.texts)
    assert example_row(same) == (same.train.texts[0], same.train.labels[0])


def test_words_are_those_of_the_training_labels(tmp_path: Path) -> None:
    unseen = [{"text": "new", "label": 2}]
    with pytest.raises(DataError, match=r"test\.jsonl', line 1, column 'label': the label '2' is not among"):
        load(tmp_path, LABELLED, unseen, set=("label_words=0=a,1=b",))
    data = load(tmp_path, LABELLED, [{"text": "new", "label": 1}], set=("label_words=0=a,1=b",))
    assert data.eval.labels == ("b",)


def test_generated_labels_still_stand_in_the_prompt(tmp_path: Path) -> None:
    data = load(tmp_path, LABELLED, scoring="generation")
    assert (data.labels, data.scoring) == ((), "generation")
    assert data.prompt_template == "{text}\nOption: 0, 1\nAnswer:"


def test_a_template_without_text_is_refused_before_the_rows_are_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no \{text\}"):
        load(tmp_path, [{"text": 3, "label": 0}], set=("prompt_template=What is it? {labels}",))


def test_templates_and_words_are_for_labelled_texts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"form prompt-completion .* 'prompt_template', which is one of form classi"):
        load(tmp_path, PAIRS, set=("prompt_template={text}",))
    with pytest.raises(ConfigError, match=r"form text .* 'label_words', which is one of form classification"):
        load(tmp_path, TEXTS, set=("label_words=0=a",))


# ----------------------------------------------------------------------------------------------------------- scoring


def test_completions_can_be_the_list_of_labels(tmp_path: Path) -> None:
    data = load(tmp_path, PAIRS, scoring="likelihood", eval_fraction=1 / 3)
    assert (data.labels, data.prompt_template) == (("no", "yes"), None)
    assert sorted(data.eval.labels) == ["no", "no", "no", "yes"], "a third of each label"


def test_free_completions_are_no_list_of_labels(tmp_path: Path) -> None:
    same = [{"prompt": f"p {i}", "completion": "always"} for i in range(4)]
    assert load(tmp_path, same).labels == ()
    with pytest.raises(DataError, match="every row has the label 'always'") as caught:
        load(tmp_path, same, scoring="likelihood")
    assert "--scoring generation" in (caught.value.hint or "")


def test_perplexity_can_be_measured_on_any_form(tmp_path: Path) -> None:
    assert load(tmp_path, PAIRS, scoring="perplexity").scoring == "perplexity"
    assert load(tmp_path, TEXTS).scoring == "perplexity"


@pytest.mark.parametrize("scoring", ["likelihood", "generation"])
def test_plain_text_has_no_answers(tmp_path: Path, scoring: str) -> None:
    with pytest.raises(ConfigError, match=f"plain text has no answers, so --scoring {scoring}"):
        load(tmp_path, TEXTS, scoring=scoring)


# ------------------------------------------------------------------------------------------------------------ splits


def test_plain_text_is_all_completion_and_no_text_is_on_both_sides(tmp_path: Path) -> None:
    data = load(tmp_path, [*TEXTS, *TEXTS[:5]], eval_fraction=0.5)
    assert set(data.train.texts + data.eval.texts) == {""}
    assert set(data.train.labels) | set(data.eval.labels) == {row["text"] for row in TEXTS}
    assert not set(data.train.labels) & set(data.eval.labels)
    assert len(data.eval) == 5
    assert len(data.train) + len(data.eval) + data.dropped == 15
    assert example_row(data) == ("", data.train.labels[0])
    assert data.train.free
    assert data.eval.free


@pytest.mark.parametrize(
    ("rows", "twin", "what"),
    [
        (PAIRS, {"prompt": "prompt 3", "completion": "another"}, "prompt"),
        (TEXTS, {"text": "plain text 3"}, "text"),
    ],
)
def test_an_evaluation_file_that_shares_a_prompt_or_text_is_refused(
    tmp_path: Path, rows: list[Any], twin: Any, what: str
) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, rows, [twin])
    assert f"an evaluation row repeats a training {what}, the first in " in caught.value.message
    assert "test.jsonl' line 1, as " in caught.value.message
    assert "train.jsonl' line 4" in caught.value.message


def test_one_prompt_alone_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 rows, all prompts are the same"):
        load(tmp_path, [{"prompt": "a", "completion": "b"}, {"prompt": "a", "completion": "c"}])


def free(*cells: tuple[str, str]) -> Rows:
    return Rows(
        texts=tuple(prompt for prompt, _ in cells),
        labels=tuple(completion for _, completion in cells),
        source="data.jsonl",
        columns=("prompt", "completion"),
        lines=tuple(range(1, 1 + len(cells))),
        unit="line",
        free=True,
    )


@given(
    cells=st.lists(st.tuples(st.sampled_from(["", *"abcdefgh"]), st.sampled_from("xyz")), min_size=1, max_size=40),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_no_prompt_stands_on_both_sides_and_the_share_is_of_prompts(
    cells: list[tuple[str, str]], fraction: float, seed: int
) -> None:
    keys = {prompt or completion for prompt, completion in cells}
    try:
        train, held, dropped = split_rows(free(*cells), fraction, seed)
    except DataError:
        assert len(keys) == 1
        reject()
    own = {prompt or completion for prompt, completion in zip(train.texts, train.labels, strict=True)}
    other = {prompt or completion for prompt, completion in zip(held.texts, held.labels, strict=True)}
    assert not own & other
    assert len(other) == min(max(1, round(fraction * len(keys))), len(keys) - 1)
    assert len(train) + len(held) + dropped == len(cells)
    assert len(set(zip(held.texts, held.labels, strict=True))) == len(held)
    again = split_rows(free(*reversed(cells)), fraction, seed)[1]
    assert set(again.texts) == set(held.texts), "the order of the rows does not matter"


def test_a_sample_of_free_completions_keeps_no_shares() -> None:
    """Each of 50 completions would have a share of 0.2 rows; the draw is by prompt alone."""
    rows = free(*((f"prompt {i}", f"completion {i % 50}") for i in range(100)))
    one = free(*((f"prompt {i}", "the same") for i in range(100)))
    sample = sample_rows(rows, 10, seed=1)
    assert len(sample) == 10
    assert sample.texts == sample_rows(one, 10, seed=1).texts
    assert sample.texts != sample_rows(rows, 10, seed=2).texts


def test_a_sample_of_plain_texts_is_seeded() -> None:
    rows = free(*(("", f"text {i}") for i in range(100)))
    first, other = sample_rows(rows, 10, seed=1), sample_rows(rows, 10, seed=2)
    assert len(first) == 10
    assert first.labels != other.labels
    assert first.labels != tuple(f"text {i}" for i in range(10)), "not simply the first ten"
