"""The environment that a cell was computed in; a matrix whose cells differ in it says so.

It does not enter a cell's key. Scores of two versions or thread counts agree but for the last digits and the rows on
the edge between two answers, so a cell stays valid; a reader of a matrix that mixes them should know.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

from lorabank.core.records import EvaluationRecord

KEY = "computed_with"
"""Where a cell's detail holds it."""

PACKAGES = ("lorabank", "torch", "transformers")
THREADS = "threads"


def this_environment(threads: int) -> dict[str, Any]:
    """Versions of what decides a score, and the threads that add it up."""
    return {package: version(package) for package in PACKAGES} | {THREADS: threads}


def environments_of(records: Iterable[EvaluationRecord]) -> tuple[dict[str, Any], ...]:
    """Each environment once, with the number of its ``cells``; versions are None where a cell does not say."""
    found: dict[tuple[Any, ...], int] = {}
    names = (*PACKAGES, THREADS)
    for record in records:
        said = record.detail.get(KEY)
        said = said if isinstance(said, dict) else {}
        environment = tuple(said[name] if isinstance(said.get(name), str | int) else None for name in names)
        found[environment] = found.get(environment, 0) + 1
    return tuple({"cells": cells, **dict(zip(names, values, strict=True))} for values, cells in found.items())


def mixed(environments: Sequence[Mapping[str, Any]]) -> str | None:
    """In words, where there are several: ``3 cells with torch 2.12.0, ...; 1 cell unknown``; otherwise None."""
    if len(environments) < 2:
        return None
    return "; ".join(map(_described, environments))


def _described(environment: Mapping[str, Any]) -> str:
    cells = f"{environment['cells']} cell{'s' if environment['cells'] != 1 else ''}"
    known = [f"{package} {environment[package]}" for package in PACKAGES if environment[package]]
    if not known:
        return f"{cells} unknown"
    threads = environment[THREADS]
    return f"{cells} with {', '.join(known)}, {threads} thread{'s' if threads != 1 else ''}"
