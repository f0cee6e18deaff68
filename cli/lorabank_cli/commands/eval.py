"""``lorabank eval``."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lorabank.core.commands import file_word, shell_line
from lorabank.core.config import EvalConfig
from lorabank.core.errors import ConfigError, GateError, NotFoundError
from lorabank.core.escaping import safe
from lorabank_cli.completion import complete_names
from lorabank_cli.options import Option
from lorabank_cli.render.heatmap import heatmap
from lorabank_cli.render.labels import details
from lorabank_cli.render.output import plain
from lorabank_cli.render.paired import general, harness, paired
from lorabank_cli.render.routing import audit, routing
from lorabank_cli.render.text import named, pairs, table, terminal_width, wants_color
from lorabank_cli.render.texts import answered
from lorabank_cli.verb import Run, verb

if TYPE_CHECKING:
    from lorabank.workflows.results import MatrixReport

PLOTS = (".png", ".svg")


@verb(
    "eval",
    configs={"Scoring": EvalConfig},
    examples=(
        "eval",
        "eval --forgetting-matrix",
        "eval --task sentiment --state learnt",
        "eval routed",
        "eval routed --against as-trained",
        "eval --text held-out.txt",
        "eval --lm-eval arc_easy --lm-eval-limit 200",
        "eval --forgetting-matrix --curves forgetting.png",
        "eval --all --forgetting-matrix --plot matrix.png --csv matrix.csv",
        "eval --composition routed --forward-transfer --json",
        "eval routed --audit --abstain 0.8",
        "eval --forgetting-matrix --gate 'backward_transfer>=-0.02'",
    ),
)
@click.argument(
    "names", nargs=-1, shell_complete=complete_names, help="Compositions to score, or as-trained; default: as-trained."
)
@click.option(
    "--plot", metavar="FILE", help="Write the matrix (with --task, of its labels) as a picture: .png or .svg."
)
@click.option("--curves", metavar="FILE", help="Draw the score of each task over the stages: .png or .svg.")
@click.option("--csv", metavar="FILE", help="Write the matrix as a table.")
@click.option(
    "--gate", "gates", cls=Option, multiple=True, metavar="EXPR", help="Exit with 12 unless it holds; may be repeated."
)
def evaluate(
    run: Run, names: tuple[str, ...], plot: str | None, curves: str | None, csv: str | None, gates: tuple[str, ...]
) -> None:
    """Measure what the bank knows and what it forgot.

    A cell [after task i, on task j] is the score on the evaluation rows of j when tasks 1 to i were known. Cells
    are kept in the bank: what was measured before is not computed again. With several subjects the file names of
    --plot, --curves and --csv get the subject's name.
    """
    from lorabank import api

    _check_targets({"--plot": plot, "--curves": curves}, csv)
    config = run.config(EvalConfig)
    config = replace(config, compositions=tuple(dict.fromkeys((*names, *config.compositions))))
    api.check_gates((), gates)  # a gate that cannot be read should not cost the evaluation first
    with run.observer as observer:
        reports = api.evaluate(run.bank, config, observer)
    results = {report.subject: api.check_gates((report,), gates) for report in reports}
    run.output.data({"reports": reports, "gates": results}, _text(reports, results, wants_color(sys.stdout)))
    for report in reports:
        if plot is not None:
            run.output.notice(f"wrote {api.save_plot(report, _target(plot, report.subject, len(reports) > 1))}")
        if curves is not None:
            target = _target(curves, report.subject, len(reports) > 1)
            run.output.notice(f"wrote {report.curves().save(target)}")
        if csv is not None:
            run.output.notice(f"wrote {api.save_csv(report, _target(csv, report.subject, len(reports) > 1))}")
    checked = [gate for gates in results.values() for gate in gates]
    failed = [gate for gate in checked if not gate.passed]
    if failed:
        raise GateError(
            f"{len(failed)} of {len(checked)} gates failed",
            hint="the table of gates shows which",
            unchanged="the scores are kept in the bank",
        )


def _check_targets(plots: Mapping[str, str | None], csv: str | None) -> None:
    """Refuse a file that cannot be written before anything is computed for it."""
    unchanged = "nothing was computed"
    for option, plot in plots.items():
        if plot is not None and Path(plot).suffix.lower() not in PLOTS:
            raise ConfigError(f"{option} {plot}: not a .png or .svg file", unchanged=unchanged)
    for target in (*plots.values(), csv):
        if target is not None and not Path(target).parent.is_dir():
            folder = Path(target).parent
            made = shell_line("mkdir", "-p", file_word(folder))
            raise NotFoundError(f"no folder {folder}", unchanged=unchanged, hint=made)


def _target(path: str, subject: str, several: bool) -> Path:
    """``matrix.png``, or ``matrix-routed.png`` when there are several subjects."""
    target = Path(path)
    return target.with_name(f"{target.stem}-{subject}{target.suffix}") if several else target


def _text(reports: Sequence[MatrixReport], gates: Mapping[str, Sequence[Any]], color: bool) -> str:
    blocks = [_report(report, color) for report in reports]
    rows = [
        ("passed" if gate.passed else "FAILED", gate.gate, subject, plain(gate.value))
        for subject, checked in gates.items()
        for gate in checked
    ]
    if rows:
        blocks.append(table(("gate", "condition", "subject", "value"), rows))
    return "\n\n".join(blocks)


def _report(report: MatrixReport, color: bool) -> str:
    if report.state is not None:
        (task,) = report.tasks
        lines = [
            f"task {safe(task)} as trained, in its state {report.state}; the task id is given",
            *_environments(report),
            "",
            _last_row(report, "task"),
            *(f"\n{details(scores)}" for scores in report.labels.values()),
            *answered(report.texts),
        ]
        return "\n".join(lines)
    given = "given: each text is answered as its own task"
    routed = "not given: the router finds each text's task"
    mode = f" ({safe(report.mode)})" if report.mode != report.subject else ""
    lines = [
        f"{safe(report.subject)}{mode}: {named(report.metric)} [after task, on task]",
        heatmap(report.tasks, report.values, color=color, limit=terminal_width()),
        "",
        f"task id {given if report.task_id == 'given' else routed}",
        f"{report.computed} {'cell' if report.computed == 1 else 'cells'} computed, {report.cached} cached",
        *_environments(report),
        "",
        _last_row(report),
        *_chance(report),
        *answered(report.texts),
        "",
        *_scalars(report),
    ]
    if report.routing:
        lines += ["", routing(plain(report.routing))]
    if report.audit:
        lines += ["", audit(report.audit)]
    if report.general:
        lines += ["", general(report.general)]
    if report.harness:
        lines += ["", harness(report.harness)]
    if report.against:
        lines += ["", paired(report.against)]
    return "\n".join(lines)


def _environments(report: MatrixReport) -> list[str]:
    """One line where cells were computed in different environments."""
    from lorabank.evaluation.environments import mixed

    told = mixed(report.environments)
    return [f"cells of different environments: {safe(told)}"] if told else []


def _chance(report: MatrixReport) -> list[str]:
    """One line for each task whose score is not above chance."""
    return [f"{safe(task)}: {note}" for task, scores in report.labels.items() if (note := scores.chance_note)]


def _scalars(report: MatrixReport) -> list[str]:
    """The metrics of the matrix; where the last row alone was measured, one line stands for those of the whole."""
    scalars = plain(report.scalars)
    last_alone = len(report.tasks) > 1 and not any(value is not None for row in report.values[1:-1] for value in row)
    shown = [
        (name, "not defined here" if value is None else value)
        for name, value in scalars.items()
        if not (last_alone and value is None)
    ]
    return [pairs(shown), *(["  what was learnt and forgotten: --forgetting-matrix"] if last_alone else [])]


def _last_row(report: MatrixReport, title: str = "after the last task") -> str:
    columns = zip(report.tasks, report.values[-1], report.low[-1], report.high[-1], report.counts, strict=True)
    rows: list[list[object]] = [
        [name, value, f"{low:.4f} .. {high:.4f}" if low is not None and high is not None else None, count]
        for name, value, low, high, count in columns
    ]
    head = [title, named(report.metric), "95 % interval", "rows"]
    if report.labels:
        head.insert(3, "macro-F1")
        for row in rows:
            row.insert(3, report.labels[str(row[0])].macro_f1 if row[0] in report.labels else None)
    return table(head, rows)
