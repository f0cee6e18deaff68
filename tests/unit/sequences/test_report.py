"""The report over several banks or a sequence, and its table: compared with numbers computed here."""

from __future__ import annotations

import csv
import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from lorabank import api
from lorabank.core.errors import ConfigError, DamagedError, NotFoundError
from lorabank.evaluation.reporting.compared import Estimate, Result, as_csv, as_latex, shown
from lorabank.evaluation.reporting.several import Source, render_comparison
from lorabank.sequences.results import SequenceRun
from lorabank.sequences.table import table_rows
from lorabank.workflows.results import MatrixReport
from tests.unit.components.page import assert_well_made

NAN = None
TASKS = ("one", "two", "three")


def matrix(seed: int, drop: float) -> list[list[float | None]]:
    chance = np.random.default_rng(seed)
    rows: list[list[float | None]] = [[NAN] * 3]
    for stage in range(3):
        learnt = [round(0.9 - drop * (stage - task) - 0.05 * float(chance.random()), 4) for task in range(stage + 1)]
        rows.append([*learnt, *[NAN] * (2 - stage)])
    return rows


def run_of(strategy: str, order: int, seed: int, drop: float) -> SequenceRun:
    values = matrix(100 * order + seed, drop)
    last = [value for value in values[-1] if value is not None]
    scalars: dict[str, Any] = dict.fromkeys(
        ("learning_accuracy", "backward_transfer", "forgetting", "forward_transfer")
    )
    scalars["average_accuracy"] = sum(last) / 3
    report = MatrixReport(
        "as-trained", "as-trained", "given", TASKS, values, values, values, [40] * 3, scalars, 6, 0, None, {}
    )
    return SequenceRun(order, strategy, seed, report)


@pytest.fixture
def runs() -> list[SequenceRun]:
    drops = {"seqlora": 0.1, "olora": 0.02}
    return [run_of(name, order, seed, drop) for name, drop in drops.items() for order in (1, 2) for seed in (0, 1, 2)]


@pytest.fixture
def folder(tmp_path: Path, runs: list[SequenceRun]) -> Path:
    path = tmp_path / "letters"
    path.mkdir()
    rows = [asdict(row) | {"judged": 18, "at_chance": 18} for row in table_rows(runs)]
    card = {"sequence": "letters", "version": "1"}
    document = {"name": "letters", "settings": {}, "card": card, "rows": rows, "runs": [asdict(one) for one in runs]}
    (path / "results.json").write_text(json.dumps(document), encoding="utf-8")
    return path


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """The card is that of another test; here two lines of it."""
    monkeypatch.setattr("lorabank.sequences.report.card_lines", lambda card: [*card.items()])


@pytest.mark.usefixtures("card")
def test_a_sequence_has_means_bands_and_paired_tests(folder: Path, runs: list[SequenceRun], tmp_path: Path) -> None:
    html = api.report(folder, tmp_path / "r.html").read_text(encoding="utf-8")
    page = assert_well_made(html)
    found = {
        name: np.array([one.report.values for one in runs if one.strategy == name], dtype=float)
        for name in ("seqlora", "olora")
    }
    averages = {name: values[:, -1].mean(axis=1) for name, values in found.items()}
    for own in averages.values():
        half = stats.t.ppf(0.975, 5) * stats.sem(own)
        assert f"{own.mean():.3f} ± {half:.3f}" in page.texts
    through = found["olora"][:, 2, :2].mean(axis=1)
    half = stats.t.ppf(0.975, 5) * stats.sem(through)
    assert f"{through.mean():.4g} [{through.mean() - half:.4g}, {through.mean() + half:.4g}]" in page.texts
    assert len([one for one in page.classes("path") if (one or "").startswith("band")]) == 2
    differences = averages["olora"] - averages["seqlora"]
    low, high = stats.t.interval(0.95, 5, differences.mean(), stats.sem(differences))
    start = page.texts.index("Difference to seqlora, as-trained, paired by run, with its 95 % interval")
    row = page.texts[start + 9 : start + 17]
    assert row[:4] == ["olora, as-trained", f"{differences.mean():+.3f}", f"{low:+.3f}", f"{high:+.3f}"]
    assert row[4] == f"{2 / 2**6:.3f}", "six of six differences have one sign"
    assert row[5:] == ["6", "0", "6"]
    assert "letters: EVERY RUN IS AT CHANCE" in " ".join(page.texts)
    assert "Average accuracy by order" in page.texts
    assert "olora, as-trained has the highest average" in html


@pytest.mark.usefixtures("card")
def test_the_table_is_written(folder: Path, runs: list[SequenceRun], tmp_path: Path) -> None:
    api.report(folder, tmp_path / "r.html", tables=[tmp_path / "t.csv", tmp_path / "t.tex"])
    (first, second) = csv.DictReader((tmp_path / "t.csv").read_text(encoding="utf-8").splitlines())
    assert (first["result"], first["runs"]) == ("seqlora, as-trained", "6")
    own = [run.report.values[-1] for run in runs if run.strategy == "olora"]
    assert float(second["average_accuracy"]) == pytest.approx(np.mean(np.array(own, dtype=float)))
    assert float(second["score.two"]) == pytest.approx(np.mean([scores[1] for scores in own]))
    assert float(second["score.two.half"]) == pytest.approx(
        stats.t.ppf(0.975, 5) * stats.sem([scores[1] for scores in own])
    )
    latex = (tmp_path / "t.tex").read_text(encoding="utf-8")
    assert latex.startswith("\\begin{tabular}{llr}\n\\toprule\n")
    assert re.search(r"olora, as-trained & given & \\textbf\{0\.\d{3} \$\\pm\$ 0\.\d{3}\}", latex)
    with pytest.raises(ConfigError, match=r"t\.xlsx"):
        api.report(folder, tmp_path / "u.html", tables=[tmp_path / "u.csv", tmp_path / "t.xlsx"])
    assert not (tmp_path / "u.csv").exists()
    assert not (tmp_path / "u.html").exists()


@pytest.mark.usefixtures("card")
def test_nothing_is_written_where_one_of_the_files_cannot_be(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"no folder .*none"):
        api.report(folder, tmp_path / "r.html", tables=[tmp_path / "t.csv", tmp_path / "none" / "t.tex"])
    with pytest.raises(ConfigError, match="letters': it is a folder") as caught:
        api.report(tmp_path, folder, beside=[folder])
    assert list(map(str, caught.value.commands)) == [f"lorabank --bank {folder} report report.html"]
    assert [one.name for one in tmp_path.iterdir()] == ["letters"]
    assert [one.name for one in folder.iterdir()] == ["results.json"]


def test_averages_over_different_tasks_are_not_ranked() -> None:
    def one(name: str, average: float, *tasks: str, metric: str = "accuracy") -> Result:
        return Result(name, "given", metric, 1, {"average_accuracy": Estimate(average)}, dict.fromkeys(tasks))

    def told(*results: Result) -> tuple[str, int]:
        html = render_comparison([Source("s", [], results, [])], [], created_at="", version="1")
        (said,) = re.findall('<p class="headline">(.*?)</p>', html)
        return said, as_latex(results).count("textbf")

    apart = ("The results are about different tasks or metrics, so their averages do not say which is better.", 0)
    first = one("a", 0.5, "x", "y")
    assert told(first, one("b", 0.75, "x")) == apart
    assert told(first, one("b", 0.75, "x", "y", metric="rouge_l")) == apart
    ranked = "Of 2 ways to train and answer, b has the highest average (0.750) and a the lowest (0.500)."
    assert told(first, one("b", 0.75, "y", "x")) == (ranked, 1)


def test_hostile_names_break_neither_csv_nor_latex() -> None:
    name = "=1+1 & 5 % of $x_1$ \\input{y} ~^#<>|\n"
    one = Result(name, "given", "accuracy", 1, {"average_accuracy": Estimate(-0.5)}, {"a,b": None})
    (row,) = csv.DictReader(as_csv([one]).splitlines())
    assert row["result"] == "'=1+1 & 5 % of $x_1$ \\input{y} ~^#<>|\\x0a"
    assert row["average_accuracy"] == "-0.5"
    assert row["score.a,b"] == ""
    line = as_latex([one]).splitlines()[4]
    assert line == (
        r"=1+1 \& 5 \% of \$x\_1\$ \textbackslash{}input\{y\} "
        r"\textasciitilde{}\textasciicircum{}\#\textless{}\textgreater{}"
        r"\textbar{}\textbackslash{}x0a & given & \textbf{$-$0.500} \\"
    )
    html = render_comparison([Source("<b>", [("<i>", "<u>")], [one], [])], [], created_at="", version="1")
    page = assert_well_made(html)
    assert not any(tag in {"b", "i", "u"} for tag, _ in page.tags)


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize("again", ["letters", "./letters", "letters/../letters", "link"])
def test_a_folder_that_is_named_twice_is_refused(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("link").symlink_to("letters")
    with pytest.raises(ConfigError, match=r"letters (is named twice|and .* are the same)"):
        api.report("letters", "r.html", beside=[again])
    assert not Path("r.html").exists()
    with pytest.raises(ConfigError, match=r"letters (is named twice|and .* are the same)"):
        api.tradeoff(["letters", again])


@pytest.mark.usefixtures("card")
def test_a_copy_is_another_folder(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    api.report(folder, tmp_path / "r.html", beside=[copy])
    assert (tmp_path / "r.html").exists()


@pytest.mark.usefixtures("card")
def test_one_file_cannot_hold_the_report_and_a_table(folder: Path, tmp_path: Path) -> None:
    for target, tables in (("t.csv", ["t.csv"]), ("r.html", ["t.csv", "letters/../t.csv"])):
        with pytest.raises(ConfigError, match=r"t\.csv (is named twice|and .* are the same)"):
            api.report(folder, tmp_path / target, tables=[tmp_path / one for one in tables])
    assert [one.name for one in tmp_path.iterdir()] == ["letters"]


@pytest.mark.usefixtures("card")
def test_what_holds_nothing_is_named(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(NotFoundError, match="neither a bank nor the folder of a sequence"):
        api.report(folder, tmp_path / "r.html", beside=[tmp_path])
    (folder / "results.json").write_text('{"runs": 3}', encoding="utf-8")
    with pytest.raises(DamagedError, match=r"results\.json cannot be read"):
        api.report(folder, tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


def test_what_is_rounded_to_zero_has_no_sign() -> None:
    assert (shown(Estimate(-0.0001)), shown(Estimate(-0.25, 0.5))) == ("0.000", "-0.250 ± 0.500")
    one = Result("a", "given", "accuracy", 1, {"average_accuracy": Estimate(-0.0001)}, {})
    assert as_latex([one]).splitlines()[4] == r"a & given & \textbf{0.000} \\"


def test_a_result_of_many_runs_keeps_within_the_scale() -> None:
    through = np.array([[0.99, 0.98, 0.5], [1.0, 0.6, 0.4]])
    line = Result("a", "given", "accuracy", 2, {}, {}, through).line
    assert line.y == pytest.approx([0.995, 0.79, 0.45])
    assert line.high is not None
    assert max(line.high) == 1.0
