"""Training rows that are held out: drawn from the training file, apart from both other splits."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lorabank.core.config import TrainConfig
from lorabank.core.errors import DataError
from lorabank.data.loading import TaskData, load_task_data

ROWS = [(f"text {i}", "pos" if i % 4 else "neg") for i in range(100)]  # 75 pos, 25 neg


def load(folder: Path, rows: list[tuple[str, str]] = ROWS, **settings: Any) -> TaskData:
    path = folder / "rows.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in rows), encoding="utf-8")
    return load_task_data(TrainConfig(data=str(path), **settings), labelled=True)


def rows_of(rows: Any) -> set[tuple[str, str]]:
    return set(zip(rows.texts, rows.labels, strict=True))


@pytest.mark.parametrize("asked", [{"eval_every": 5}, {"early_stopping": 2}])
def test_the_evaluation_rows_stay_what_they_are(tmp_path: Path, asked: dict[str, int]) -> None:
    plain, held = load(tmp_path), load(tmp_path, held_fraction=0.25, **asked)
    assert plain.held is None
    assert held.held is not None
    assert (held.eval, held.eval.sha256) == (plain.eval, plain.eval.sha256)
    assert rows_of(held.train) | rows_of(held.held) == rows_of(plain.train)
    assert not rows_of(held.train) & rows_of(held.held)
    # 60 pos and 20 neg are left of 75 and 25; a quarter of each label
    assert Counter(held.held.labels) == {"pos": 15, "neg": 5}
    assert Counter(held.train.labels) == {"pos": 45, "neg": 15}


def test_the_choice_is_the_seeds(tmp_path: Path) -> None:
    first, again, other = (load(tmp_path, eval_every=1, seed=seed).held for seed in (0, 0, 1))
    assert first == again
    assert first is not None
    assert other is not None
    assert first.texts != other.texts


def test_rows_of_one_text_stay_together(tmp_path: Path) -> None:
    rows = [(f"text {i % 20}", "pos" if i % 2 else "neg") for i in range(200)]
    data = load(tmp_path, rows, eval_every=1, held_fraction=0.3)
    assert data.held is not None
    texts = [set(part.texts) for part in (data.train, data.held, data.eval)]
    assert sum(map(len, texts)) == len(set.union(*texts)) == 20
    assert len(data.held) == len(set(data.held.texts)), "each is measured once"


def test_with_evaluation_rows_of_their_own_too(tmp_path: Path) -> None:
    own = tmp_path / "own.csv"
    own.write_text("text,label\nother,pos\nanother,neg\n")
    data = load(tmp_path, eval_data=str(own), eval_every=1)
    assert data.held is not None
    assert len(data.eval) == 2
    assert len(data.held) + len(data.train) == 100
    assert len(data.held) == round(0.1 * 75) + round(0.1 * 25)


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    rows = [("a", "x"), ("b", "x"), ("c", "y"), ("d", "y")]
    with pytest.raises(DataError, match=r"too few training rows to hold some out \(2 rows beside") as caught:
        load(tmp_path, rows, eval_fraction=0.5, early_stopping=1)
    assert caught.value.hint == "leave out --eval-every and --early-stopping"
