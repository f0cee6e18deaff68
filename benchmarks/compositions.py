"""``python -m benchmarks.compositions``: every router, gate and merger of the shelves, on the same adapters.

The tasks of ``--data`` are learnt once per seed, by O-LoRA and isolated, each in a bank of its own; every method then
composes the adapters of each bank, with its default settings, and is scored on the test rows of every task after the
last one. Settings of methods come from papers and from training rows (their pages say which), never from test rows.
A run that is interrupted resumes where it stopped: finished tasks, compositions and cells are in the banks, and rows
that ``--json FILE`` has already are kept as they are, even if the banks are gone.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: two processes side by side beat two threads

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.sequences import Told
from benchmarks.task_orders import Asked, earlier, learn_all, made, prepare, read_arguments, spread, write_rows
from lorabank.core.records import AS_TRAINED
from lorabank.core.shelves import GATES, MERGERS, ROUTERS

STRATEGIES = ("isolated", "olora")
"""How the adapters are trained: each alone, or each on top of the earlier ones."""
FAMILIES = {"router": ("routed", ROUTERS), "gate": ("gated", GATES), "merger": ("merged", MERGERS)}
"""Setting of `compose` that chooses a method, to its mode and shelf."""


def missing(
    families: Iterable[str], wanted: Collection[str], done: Collection[tuple[str, str]]
) -> list[tuple[str, str]]:
    """Family and method of each row that a bank still has to give; all methods of the families where none is named."""
    every = [("", AS_TRAINED)]
    every += [(f, name) for f in families for name in FAMILIES[f][1] if not wanted or name in wanted]
    return [one for one in every if one not in done]


def rows_of(
    folder: Path, asked: Asked, strategy: str, seed: int, methods: Collection[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    """One bank: its tasks are learnt, and each family and method of ``methods`` is scored."""
    from lorabank.core.config import ComposeConfig, EvalConfig
    from lorabank.core.errors import LorabankError
    from lorabank.sequences.bank import compose_and_measure

    observer, bank = Told(), folder / f"{strategy}-{seed}"
    learn_all(bank, folder / "data", asked, {"strategy": strategy, "seed": seed}, observer)
    for family, name in methods:
        if not family:
            yield row(strategy, seed, "", name, compose_and_measure(bank, (), EvalConfig(), observer)[0], 0.0)
            continue
        config = ComposeConfig(
            mode=FAMILIES[family][0], name=f"{family}-{name}", stages="last", scores=False, seed=seed
        )
        measured, begun = EvalConfig(compositions=(config.name,)), time.process_time()
        try:
            reports = compose_and_measure(bank, [replace(config, **{family: name})], measured, observer)
        except LorabankError as error:
            observer.notice(f"{strategy}, seed {seed}: {family} {name} is left out: {error}")
        else:
            yield row(strategy, seed, family, name, reports[0], time.process_time() - begun)


def row(strategy: str, seed: int, family: str, name: str, report: Any, seconds: float) -> dict[str, Any]:
    """What one method scored; ``oracle`` and ``routed`` are of a method that needs no task id."""
    routing = report.routing or {}
    return {
        "strategy": strategy,
        "seed": seed,
        "family": family,
        "method": name,
        "task_id": report.task_id,
        "scores": dict(zip(report.tasks, report.values[-1], strict=True)),
        "average": report.scalars["average_accuracy"],
        "oracle": routing.get("oracle"),
        "routed": routing.get("accuracy"),
        "seconds": round(seconds, 1),
        **made(),
    }


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Mean and sample standard deviation over the seeds, best first in each family, as Markdown."""
    own = {(r["strategy"], r["seed"]): r["oracle"] for r in rows if r["oracle"] is not None}
    groups: dict[tuple[str, str, str], dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for one in rows:
        groups[one["family"], one["method"], one["task_id"]][one["strategy"]].append(one)
    strategies = list(dict.fromkeys(one["strategy"] for one in rows))
    seeds = len({one["seed"] for one in rows})
    titles = [f"{strategy}: {what}" for strategy in strategies for what in ("average", "to own", "routed right")]
    lines = [f"| {' | '.join(['method', 'task id', *titles])} |", f"| --- | --- |{' ---: |' * len(titles)}"]
    bound = {s: [v for (strategy, _), v in own.items() if strategy == s] for s in strategies}
    cells = [cell for s in strategies for cell in (spread(bound[s]), "", "")]
    lines.append(f"| {' | '.join(['each task: its own adapter', 'given', *cells])} |")
    families = list(dict.fromkeys(family for family, _, _ in groups))
    best = sorted(groups.items(), key=lambda item: (families.index(item[0][0]), -_mean_average(item[1])))
    for (family, method, task_id), by_strategy in best:
        cells = []
        for strategy in strategies:
            these = by_strategy.get(strategy, [])
            gaps = [one["average"] - own[strategy, one["seed"]] for one in these if (strategy, one["seed"]) in own]
            routed = [one["routed"] for one in these if one["routed"] is not None]
            cells += [spread([one["average"] for one in these], seeds), spread(gaps, seeds), spread(routed, seeds)]
        lines.append(f"| {' | '.join([f'{family} `{method}`'.strip(), task_id, *cells])} |")
    return "\n".join(lines)


def command(rows: Sequence[Mapping[str, Any]]) -> str:
    """The module and the options that choose these rows."""
    strategies, families, methods = (
        " ".join(dict.fromkeys(one[name] for one in rows if one["family"] or name == "strategy"))
        for name in ("strategy", "family", "method")
    )
    chosen = f" --families {families} --methods {methods}" if methods else ""
    return f"benchmarks.compositions --strategies {strategies}{chosen}"


def _mean_average(by_strategy: Mapping[str, Sequence[Mapping[str, Any]]]) -> float:
    return statistics.mean(one["average"] for group in by_strategy.values() for one in group)


def main() -> int:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compositions", description=__doc__)
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--families", nargs="+", choices=FAMILIES, default=list(FAMILIES))
    found, asked = read_arguments(parser, "compositions", [name for _, shelf in FAMILIES.values() for name in shelf])
    offered = {name for family in found.families for name in FAMILIES[family][1]}
    if unlike := [name for name in found.methods if name not in offered]:
        parser.error(f"--methods: {unlike[0]!r} is not a {' or '.join(found.families)}")
    folder = asked.folder(found.folder)
    prepare(folder / "data", asked)
    rows = earlier(found.json, asked)
    for seed in found.seeds:
        for strategy in found.strategies:
            done = [
                (one["family"], one["method"]) for one in rows if (one["strategy"], one["seed"]) == (strategy, seed)
            ]
            left = missing(found.families, found.methods, done)
            for one in rows_of(folder, asked, strategy, seed, left) if left else ():
                print(json.dumps(one), file=sys.stderr, flush=True)
                rows.append(one)
                if found.json:
                    note = '"to own" is the distance to each task\'s own adapter'
                    write_rows(found.json, "Compositions", command(rows), asked, rows, note, table(rows))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
