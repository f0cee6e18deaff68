"""A report over several banks, or over a whole sequence with its orders and seeds."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from lorabank.bank.bank import Bank
from lorabank.bank.catalog.times import now
from lorabank.bank.failures import reported
from lorabank.components import markup
from lorabank.core.commands import Command
from lorabank.core.errors import ConfigError, DamagedError, NotFoundError
from lorabank.evaluation.metrics import Values, average_through_time
from lorabank.evaluation.paired import Paired, paired_test
from lorabank.evaluation.reporting.compared import Against, Estimate, Result, as_csv, as_latex, result_of
from lorabank.evaluation.reporting.several import Source, render_comparison
from lorabank.evaluation.reporting.subjects import title_of
from lorabank.evaluation.reporting.words import chance_warning as at_chance
from lorabank.sequences.folder import check_once, write_text
from lorabank.sequences.protocol import card_lines
from lorabank.sequences.results import Interval, SequenceRow, SequenceRun
from lorabank.sequences.table import chance_warning, interval, order_cells, table_rows
from lorabank.workflows.publish import (
    Stored,
    paired_with_first,
    report,
    require_folder,
    stored_results,
    with_mistakes,
    writing,
)
from lorabank.workflows.results import MatrixReport

TABLES: Mapping[str, Callable[[Sequence[Result]], str]] = {".csv": as_csv, ".tex": as_latex}
"""Suffix of a file to what is written into it."""


class _Found(NamedTuple):
    """What was found in a folder: of a bank the stored results by name, of a sequence the runs."""

    source: Source
    stored: tuple[tuple[str, Stored], ...] = ()
    runs: tuple[SequenceRun, ...] = ()


def write_report(folders: Sequence[Path], target: Path, tables: Sequence[Path] = ()) -> Path:
    """Write one HTML file about a bank, or one that compares what was measured in banks and sequences.

    Args:
        folders: Banks, and folders of sequences with results; one at least.
        target: The file.
        tables: Files for the table of results as well: ``.csv`` or ``.tex``.

    Raises:
        ConfigError: A table has another suffix, the target is a folder, or a folder or file is named twice; nothing is
            written then.
        NotFoundError: A folder is neither, nothing was measured in any of several, or a file's folder is missing.
        DamagedError: A ``results.json`` cannot be read.
    """
    for table in tables:
        if table.suffix.lower() not in TABLES:
            raise ConfigError(
                f"cannot write the table {str(table)!r}: a table is a .csv or .tex file",
                hint="for example --table results.tex",
                unchanged="nothing was written",
            )
    if target.is_dir():
        raise ConfigError(
            f"the report cannot be written as {str(target)!r}: it is a folder",
            hint="the file comes first, then the folders that it is about",
            commands=[Command("--bank", str(target), "report", "report.html")],
            unchanged="nothing was written",
        )
    check_once(folders)
    check_once([target, *tables])
    for file in (target, *tables):
        require_folder(file)
    alone = len(folders) == 1 and not _results(folders[0]).is_file()
    found = [] if alone and not tables else _read(folders)
    if alone:
        report(folders[0], target)
    else:
        _write_comparison(found, target)
    results = [result for one in found for result in one.source.results]
    for table in tables:
        with writing(table):
            write_text(table, TABLES[table.suffix.lower()](results))
    return target


def _write_comparison(found: Sequence[_Found], target: Path) -> None:
    from lorabank import __version__

    made = now()
    page = render_comparison([one.source for one in found], _tests(found), created_at=made, version=__version__)
    with writing(target):
        write_text(target, page)


def _results(folder: Path) -> Path:
    return folder / "results.json"


def _read(folders: Sequence[Path]) -> list[_Found]:
    names = _names(folders)
    found = [_found(folder, name, alone=len(names) == 1) for folder, name in zip(folders, names, strict=True)]
    if not any(one.source.results for one in found):
        raise NotFoundError(
            f"nothing was measured in {', '.join(map(str, folders))}",
            hint="score every stage of a bank first",
            commands=[Command("--bank", str(folders[0]), "eval", "--all", "--forgetting-matrix")],
            unchanged="nothing was written",
        )
    return found


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, or their paths where two have one name."""
    own = [folder.absolute().name for folder in folders]
    return own if len(set(own)) == len(own) else [str(folder) for folder in folders]


def _found(folder: Path, name: str, *, alone: bool) -> _Found:
    before = "" if alone else f"{name}: "
    if _results(folder).is_file():
        return _of_sequence(_results(folder), name, before)
    if Bank.exists(folder):
        return _of_bank(Bank.open(folder), name, before)
    raise NotFoundError(
        f"{folder} is neither a bank nor the folder of a sequence with results",
        hint="name the folder that init, add-task or sequence run wrote",
        unchanged="nothing was written",
    )


def _of_bank(bank: Bank, name: str, before: str) -> _Found:
    snapshot = bank.snapshot()
    stored = stored_results(bank, snapshot)
    named = [f"{before}{title_of(one.report)}" for one in stored]
    reports = with_mistakes(bank, snapshot, [one.report for one in stored])
    strategies = dict.fromkeys(snapshot.adapter_of(task.name).strategy for task in snapshot.tasks)
    facts = [
        ("base model", snapshot.base.name),
        ("tasks", ", ".join(task.name for task in snapshot.tasks) or "none"),
        ("strategy", ", ".join(strategies) or "–"),
        ("compositions", ", ".join(one.name for one in snapshot.compositions) or "none"),
        ("bank", snapshot.id),
    ]
    results = [result_of(one, title) for title, one in zip(named, reports, strict=True)]
    low = [note.rstrip(".") for one in reports if (note := at_chance(one))]
    source = Source(name, facts, results, list(zip(named, reports, strict=True)), warning="; ".join(low) or None)
    return _Found(source, stored=tuple(zip(named, stored, strict=True)))


def _of_sequence(path: Path, name: str, before: str) -> _Found:
    """From ``results.json``; the matrices are those of the first run of each row."""
    with reported(path):
        text = path.read_text(encoding="utf-8")
    try:
        document = json.loads(text)
        runs = tuple(_run(one) for one in document["runs"])
        counts = [(one["judged"], one["at_chance"]) for one in document["rows"]]
        rows = [
            replace(row, judged=judged, at_chance=low)
            for row, (judged, low) in zip(table_rows(runs), counts, strict=True)
        ]
        groups = [[run for run in runs if _key(run) == key] for key in dict.fromkeys(map(_key, runs))]
        results = [_result(row, group, before) for row, group in zip(rows, groups, strict=True)]
        source = Source(
            name=name,
            facts=list(card_lines(document["card"])),
            results=results,
            measured=[
                (f"{one.name}, order {group[0].order}, seed {group[0].seed}", group[0].report)
                for one, group in zip(results, groups, strict=True)
            ],
            orders=_orders(rows, results),
            warning=chance_warning(rows),
        )
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RecursionError) as error:
        raise DamagedError(f"{path} cannot be read ({error})", hint="the same sequence run writes it again") from error
    return _Found(source, runs=runs)


def _run(run: Mapping[str, Any]) -> SequenceRun:
    """A run with its matrix, without its labels; the rows hold how many scores are at chance."""
    stored = run["report"]
    kept = ("subject", "mode", "task_id", "values", "low", "high", "counts", "scalars", "computed", "cached")
    facts = {name: stored[name] for name in (*kept, "routing", "settings", "metric")}
    found = MatrixReport(tasks=tuple(stored["tasks"]), **facts)
    found.matrix()  # refuses values of another shape
    if not all(isinstance(value, float | int | None) for value in found.scalars.values()):
        raise TypeError("a score is not a number")
    return SequenceRun(int(run["order"]), str(run["strategy"]), int(run["seed"]), found)


def _key(run: SequenceRun) -> tuple[str, str, str]:
    return run.strategy, run.report.subject, run.report.task_id


def _result(row: SequenceRow, runs: Sequence[SequenceRun], before: str) -> Result:
    values = [np.array(run.report.values, dtype=np.float64) for run in runs]
    return Result(
        name=f"{before}{row.strategy}, {row.answered}",
        task_id=row.task_id,
        metric=runs[0].report.metric,
        runs=row.runs,
        scalars={name: _estimate(one) for name, one in row.scalars.items()},
        tasks={name: _estimate(one) for name, one in row.tasks.items()},
        through=np.array([average_through_time(one) for one in values]),
    )


def _estimate(one: Interval | None) -> Estimate | None:
    return None if one is None else Estimate(one.mean, one.half)


def _orders(rows: Sequence[SequenceRow], results: Sequence[Result]) -> Markup | None:
    """How the average depends on the order, where there are several."""
    some = [(one.name, row.orders["average_accuracy"]) for row, one in zip(rows, results, strict=True) if row.orders]
    if not some:
        return None
    titles = ("mean over orders", "spread of orders", "due to the order", "worst order", "best order")
    head = [markup.head_cell("result"), *(markup.head_cell(title, numeric=True) for title in titles)]
    body = [
        markup.element(
            "tr",
            markup.row_head(name),
            *(markup.element("td", cell or "–", class_="n") for cell in order_cells(effect)),
        )
        for name, effect in some
    ]
    return markup.table("Average accuracy by order", Markup("").join(head), Markup("").join(body))


def _tests(found: Sequence[_Found]) -> list[Against]:
    """By row where all are banks, by run within a single sequence; results of both kinds have nothing to pair."""
    if not any(one.runs for one in found):
        return paired_with_first([pair for one in found for pair in one.stored])
    if len(found) == 1 and found[0].runs:
        return _by_run(found[0].source.results, found[0].runs)
    return []


def _by_run(results: Sequence[Result], runs: Sequence[SequenceRun]) -> list[Against]:
    """The average after the last task of each order and seed, less that of the first result of the same."""
    averages: dict[tuple[str, str, str], dict[tuple[int, int], float]] = {}
    for run in runs:
        average = run.report.scalars["average_accuracy"]
        averages.setdefault(_key(run), {})[run.order, run.seed] = np.nan if average is None else average
    (_, first), *others = averages.items()
    tests = []
    for result, (_, own) in zip(results[1:], others, strict=True):
        common = [own[pair] - first[pair] for pair in own if pair in first]
        differences = np.array([one for one in common if np.isfinite(one)])
        enough = len(differences) > 1
        refused = "fewer than two orders and seeds have both"
        tests.append(Against(result.name, _of_runs(differences) if enough else None, "run", refused))
    return tests


def _of_runs(differences: Values) -> Paired:
    """With the t-interval of the table: resamples of a few runs are too alike, and their interval too narrow."""
    mean = interval(differences.tolist())
    assert mean is not None
    assert mean.half is not None
    return replace(paired_test([differences]), low=mean.mean - mean.half, high=mean.mean + mean.half)
