"""Labels that a reader would take for one are told with their counts, and stay apart."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorabank.core.config import TrainConfig
from lorabank.core.errors import DataError
from lorabank.data.forms.look_alikes import look_alikes
from lorabank.data.loading import load_task_data

ALIKE = {
    "Unicode form": ("caf\u00e9", "cafe\u0301"),
    "case": ("pos", "POS"),
    "case of a language": ("stra\u00dfe", "STRASSE"),
    "source": ("true", "True"),
    "width": ("\uff2f\uff2b", "OK"),
    "ligature": ("\ufb01n", "fin"),
    "blanks inside": ("very good", "very  good"),
    "no-break blank": ("very good", "very\u00a0good"),
    "zero width": ("good", "go\u200bod"),
    "soft hyphen": ("good", "go\u00adod"),
    "byte order mark": ("good", "\ufeffgood"),
    "decimals": ("1", "1.0"),
    "leading zero": ("7", "007"),
    "sign": ("1", "+1"),
}
APART = [("a", "b"), ("1", "10"), ("0", "00.1"), ("-1", "1"), ("", "a"), ("e", "\u00e9"), ("1.5", "1"), ("ab", "a b")]


@pytest.mark.parametrize("kind", ALIKE)
def test_each_kind_is_told_with_both_labels_and_their_rows(kind: str) -> None:
    one, other = ALIKE[kind]
    (group,) = look_alikes({"x": 5, one: 3, other: 2000, "y": 1})
    assert group.labels == {other: 2000, one: 3}
    text = str(group)
    assert "2,000 rows" in text
    assert "(3 rows)" in text
    shown = [part.split(" (")[0] for part in text.partition("own: ")[2].split(" and ")]
    assert len(set(shown)) == 2, "what is shown tells them apart"


@pytest.mark.parametrize("pair", APART)
def test_what_looks_different_is_not_told(pair: tuple[str, str]) -> None:
    assert look_alikes(dict.fromkeys(pair, 1)) == ()


def test_three_of_a_kind_are_one_group() -> None:
    (group,) = look_alikes({"pos": 1, "Pos": 2, "POS": 3})
    assert str(group).endswith("own: 'POS' (3 rows), 'Pos' (2 rows) and 'pos' (1 rows)")


def write(path: Path, labels: list[str]) -> str:
    rows = [json.dumps({"text": f"text {index}", "label": label}) for index, label in enumerate(labels)]
    (path / "rows.jsonl").write_text("\n".join(rows) + "\n")
    return str(path / "rows.jsonl")


@pytest.mark.parametrize("task_type", ["SEQ_CLS", "CAUSAL_LM"])
def test_the_labels_of_a_task_stay_apart(tmp_path: Path, task_type: str) -> None:
    data = load_task_data(
        TrainConfig(data=write(tmp_path, ["pos"] * 6 + ["Pos"] * 4 + ["neg"] * 4)), labelled=task_type == "SEQ_CLS"
    )
    assert set(data.labels) == {"pos", "Pos", "neg"}
    assert [dict(group.labels) for group in data.look_alikes] == [{"pos": 6, "Pos": 4}]


def test_completions_are_no_labels(tmp_path: Path) -> None:
    config = TrainConfig(data=write(tmp_path, ["pos"] * 6 + ["Pos"] * 4), scoring="generation")
    assert load_task_data(config, labelled=False).look_alikes == ()


@pytest.mark.parametrize("label", ["{text}", "a {text} b", "{ text }", "{labels}", "{Text}"])
def test_a_label_that_spells_a_slot_is_named(tmp_path: Path, label: str) -> None:
    source = write(tmp_path, [label] * 4 + ["other"] * 4)
    with pytest.raises(DataError, match="spells a slot of the prompt template") as caught:
        load_task_data(TrainConfig(data=source), labelled=False)
    assert repr(label) in caught.value.message
    assert "--set label_words=" in (caught.value.hint or "")
    assert label in load_task_data(TrainConfig(data=source)).labels, "a classifier has no template"
