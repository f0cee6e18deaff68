"""Learning against forgetting: points of tables and banks, and the front among them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from lorabank import api
from lorabank.core.errors import DamagedError, NotFoundError
from lorabank.evaluation.plots.tradeoff import Point, pareto_front, tradeoff_plot


def results(folder: Path, *rows: tuple[str, float | None, float]) -> Path:
    folder.mkdir()
    scalars = [
        {
            "learning_accuracy": learnt and {"mean": learnt, "half": 0.01, "runs": 3},
            "forgetting": {"mean": forgotten, "half": None, "runs": 1},
        }
        for _, learnt, forgotten in rows
    ]
    found = [
        {"strategy": name, "answers": "as-trained", "scalars": one}
        for (name, _, _), one in zip(rows, scalars, strict=True)
    ]
    (folder / "results.json").write_text(json.dumps({"rows": found}))
    return folder


def test_the_front_by_hand() -> None:
    points = [Point("a", 0.8, 0.1), Point("b", 0.9, 0.2), Point("c", 0.8, 0.2), Point("d", 0.8, 0.1)]
    assert pareto_front(points) == (0, 1, 3), "c learns no more than a and forgets more; equal points beat neither"
    assert pareto_front([Point("a", 0.8, 0.1), Point("b", 0.8, 0.05)]) == (1,)


def test_points_of_several_folders_have_their_names(tmp_path: Path) -> None:
    small = results(tmp_path / "r8", ("olora", 0.8, 0.05), ("joint", None, 0.0))
    large = results(tmp_path / "r64", ("olora", 0.9, 0.2))
    found = api.tradeoff([small, large])
    assert found.points == (
        Point("r8: olora, as-trained", 0.8, 0.05, 0.01, None),
        Point("r64: olora, as-trained", 0.9, 0.2, 0.01, None),
    )
    assert found.front == (0, 1)
    assert api.tradeoff([small]).points[0].name == "olora, as-trained"


@pytest.mark.parametrize("text", ["", "[]", '{"rows": [{}]}', '{"rows": 1}', "[" * 100_000])
def test_results_that_cannot_be_read(tmp_path: Path, text: str) -> None:
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(DamagedError, match=r"results\.json cannot be read"):
        api.tradeoff([tmp_path])


def test_a_folder_with_nothing_in_it(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="neither the folder of a sequence with results nor a bank"):
        api.tradeoff([tmp_path])
    with pytest.raises(NotFoundError, match="says what was learnt and forgotten"):
        api.tradeoff([results(tmp_path / "one", ("joint", None, 0.0))])


def test_the_plot_names_every_point(tmp_path: Path) -> None:
    points = [Point("olora <&>", 0.8, 0.05, 0.01, 0.02), Point("seqlora", 0.9, 0.2)]
    text = tradeoff_plot(points).save(tmp_path / "a.svg").read_text()
    for word in ("olora &lt;&amp;&gt; ★", "seqlora ★", "learning accuracy  (up is better)"):
        assert f"<!-- {word} -->" in text or f"<!-- {word.replace('&lt;', '<').replace('&gt;', '>')} -->" in text
