"""Paired tests as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorabank.core.escaping import safe
from lorabank_cli.render.text import pairs, table, terminal_width

if TYPE_CHECKING:
    from lorabank.evaluation.paired import Paired, PairedReport
    from lorabank.workflows.results import GeneralSkills, HarnessScore

_TESTS = {
    "mcnemar": "McNemar's exact test",
    "all": "sign flips, every pattern",
    "sampled": "sign flips, 10,000 patterns",
}


def paired(report: PairedReport) -> str:
    """The difference of each task and of all, with its interval and p-value."""
    name = safe(report.baseline)
    head = (
        f"against {name}",
        name,
        "difference",
        "std. error",
        "95 % interval",
        "p",
        "better",
        "worse",
        "rows",
        "test",
    )
    rows = [_row(task, report.values[task], test) for task, test in report.tasks.items()]
    if report.overall and len(rows) > 1:
        rows.append(_row("all tasks", sum(report.values.values()) / len(report.values), report.overall))
    return table(head, rows, limit=terminal_width())


def general(skills: GeneralSkills) -> str:
    """The perplexity of held-out text before and after, and what a token's log-likelihood changed by."""
    change = skills.change
    left = f", {skills.left_out} pieces did not fit" if skills.left_out else ""
    facts = [
        ("perplexity of held-out text", f"{skills.before:.3f} before any task, {skills.after:.3f} now"),
        ("log-likelihood of a token", f"{change.difference:+.4f} ({change.low:+.4f} .. {change.high:+.4f})"),
        ("p", _p(change.p_value)),
        ("measured on", f"{change.rows} pieces, {skills.tokens} tokens{left}"),
    ]
    return pairs(facts)


def harness(scores: Sequence[HarnessScore]) -> str:
    """Each metric of the harness before and after, with the paired test of its rows where there is one."""
    head = ("general skills", "metric", "before any task", "now", "difference", "95 % interval", "p", "rows")
    rows: list[list[object]] = []
    for one in scores:
        change = one.change
        rows.append(
            [
                safe(one.task),
                safe(one.metric) + {True: "", False: " (lower is better)", None: ""}[one.higher_is_better],
                _with_error(one.before, one.before_error),
                _with_error(one.after, one.after_error),
                f"{one.after - one.before:+.4f}",
                None if change is None else f"{change.low:+.4f} .. {change.high:+.4f}",
                None if change is None else _p(change.p_value),
                one.rows,
            ]
        )
    return table(head, rows, limit=terminal_width())


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" if error is None else f"{value:.4f} ± {error:.4f}"


def _p(value: float) -> str:
    return f"{value:.4f}" if value >= 1e-4 else f"{value:.0e}"


def _row(name: str, baseline: float, test: Paired) -> list[object]:
    return [
        name,
        baseline,
        f"{test.difference:+.4f}",
        test.standard_error,
        f"{test.low:+.4f} .. {test.high:+.4f}",
        _p(test.p_value),
        test.better,
        test.worse,
        test.rows,
        _TESTS[test.test],
    ]
