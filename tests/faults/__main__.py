"""``python -m tests.faults push|nightly|release``: run the fault programme; exit code 1 when anything was found."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # of models that are saved: the table is what is read

from tests.faults.programme import HARNESSES, LEVELS, PYTEST, run_harnesses, run_mutants
from tests.faults.report import HEADER, Report, catch_row, line, result_row


def main() -> int:
    """Run what was asked for, print as it goes, and say by the exit code whether all was well."""
    options = _options()
    only = frozenset(options.only.split(",")) if options.only else frozenset()
    unknown = only - {harness.name for harness in HARNESSES}
    if unknown:
        print(f"no harness {', '.join(sorted(unknown))}; there are {', '.join(h.name for h in HARNESSES)}")
        return 2
    if options.share < 1:
        print("--share is at least 1")
        return 2
    level = options.level if options.share == 1 else f"{options.level}, one of {options.share} shares"
    print(f"level {level}, seed {options.seed}\n")
    widths = (4, 42, 8, 5, 8, 9, 7)
    print(line(HEADER, widths), flush=True)
    report = Report(level, options.seed)
    for result in run_harnesses(options.level, options.seed, only, options.jobs, options.share):
        report.results.append(result)
        print(line(result_row(result), widths), flush=True)
        for text in (*result.outcome.notes, *result.outcome.examples):
            print(f"      {text}", flush=True)
        _write(options, report)
    if not options.without_mutants:
        print()
        for catch in run_mutants(options.seed, only, options.jobs, options.share):
            report.catches.append(catch)
            print(line(catch_row(catch), (60, 11, 100, 7)), flush=True)
            _write(options, report)
    if not only:
        print("\ntests of their own, run by pytest:")
        for name, path in PYTEST.items():
            print(f"  {name}  {path}{'' if Path(path).exists() else ' (not there)'}")
    print(f"\n{report.verdict}")
    return 1 if report.findings or report.missed else 0


def _write(options: argparse.Namespace, report: Report) -> None:
    """After every line: what a run of hours has found stays when it is stopped."""
    for file, text in ((options.json, report.as_json), (options.markdown, report.markdown)):
        if file:
            Path(file).write_text(text(), encoding="utf-8")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("level", choices=LEVELS)
    parser.add_argument("--only", help="names of harnesses, for example F1,F6; their mutants with them")
    parser.add_argument("--seed", type=int, default=20, help="what is chosen at random follows from it")
    parser.add_argument("--jobs", type=int, default=2, help="harnesses that run at once")
    parser.add_argument("--share", type=int, default=1, help="try one of so many shares of each count and the mutants")
    parser.add_argument("--without-mutants", action="store_true", help="the sound code alone")
    parser.add_argument("--json", metavar="FILE")
    parser.add_argument("--markdown", metavar="FILE")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
