"""``python -m tests.architectures``: judge every class and compare with docs/bases.md; a difference exits with 1."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor

# Before torch and transformers are imported, here and in the processes that are started.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
os.environ |= {"TOKENIZERS_PARALLELISM": "false", "TRANSFORMERS_VERBOSITY": "error"}

from tests.architectures import table, zoo
from tests.architectures.contract import Verdict, judge, silence
from tests.architectures.zoo import Pair


def main() -> int:
    """Judge what was asked for, and print a line for each verdict."""
    options = _options()
    if options.share < 1:
        print("--share is at least 1")
        return 2
    pairs = [pair for pair in zoo.pairs() if not options.only or any(word in str(pair) for word in options.only)]
    pairs = pairs[options.turn % options.share :: options.share]
    verdicts: list[Verdict] = []
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.jobs, mp_context=context, initializer=silence) as pool:
        for found in pool.map(judge, pairs):
            for verdict in found:
                print(f"{verdict.pair!s:45} {verdict.targets:10} {verdict.kind:9} {verdict.reason}", flush=True)
            verdicts += found
    count = table.counted(verdicts)
    print(f"\n{count.total()} pairs: " + ", ".join(f"{number} {kind}" for kind, number in count.items()))
    if options.write and not options.only and options.share == 1:
        table.PAGE.write_text(table.page(verdicts), encoding="utf-8")
        return 1 if count["wrong"] else 0
    return 1 if count["wrong"] or _differ(pairs, verdicts) else 0


def _differ(pairs: Sequence[Pair], verdicts: Sequence[Verdict]) -> bool:
    """Whether a row is not in the page as it is committed; says which."""
    known = table.rows_of(table.PAGE.read_text(encoding="utf-8"))
    found = [table.row(pair, [verdict for verdict in verdicts if verdict.pair == pair]) for pair in pairs]
    new = [line for line in found if line not in known]
    for line in new:
        print(f"not in docs/bases.md: {line}")
    return bool(new)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.architectures", description=__doc__)
    parser.add_argument("only", nargs="*", help="parts of names, for example CAUSAL_LM-Llama; default: all")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--share", type=int, default=1, help="judge every so manyth pair")
    parser.add_argument("--turn", type=int, default=0, help="where to begin with them")
    parser.add_argument("--write", action="store_true", help="write docs/bases.md")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
