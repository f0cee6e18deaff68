"""Scores of one generated answer against the right one, in [0, 1]; the score of a task is their mean.

The normalisation is that of the papers that compare continual learning on language models: SQuAD's without the removal
of articles, as Super-NaturalInstructions (arXiv 2204.07705) and after it O-LoRA (arXiv 2310.14152) compute it.
"""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from lorabank.core.errors import MissingExtraError
from lorabank.core.installing import install

_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalise(text: str) -> str:
    """Lower case, ASCII punctuation dropped (not replaced: ``e-mail`` becomes ``email``), blanks collapsed."""
    return " ".join(text.lower().translate(_NO_PUNCTUATION).split())


def exact_match(said: str, gold: str) -> float:
    """1 where both are the same after normalisation, else 0.

    Where nothing is left of one of them (an answer of punctuation alone), the texts themselves are compared.
    """
    one, other = normalise(said), normalise(gold)
    if not (one and other):
        one, other = said.strip(), gold.strip()
    return float(one == other)


def token_f1(said: str, gold: str) -> float:
    """Harmonic mean of precision and recall over the words after normalisation, each counted as often as it occurs.

    1 where both have no words, 0 where one has none.

    Source:
        SQuAD, arXiv 1606.05250, and for answers without words SQuAD 2.0, arXiv 1806.03822.
    """
    words, right = normalise(said).split(), normalise(gold).split()
    if not (words and right):
        return float(words == right)
    same = sum((Counter(words) & Counter(right)).values())
    return 2 * same / (len(words) + len(right))


def rouge_l(said: str, gold: str) -> float:
    """F-measure of the longest common subsequence of stemmed words (ROUGE-L), by the package ``rouge-score``.

    Its words are runs of ASCII letters and digits: texts in other scripts score 0.

    Source:
        Lin, ROUGE: A Package for Automatic Evaluation of Summaries, https://aclanthology.org/W04-1013; with stemming,
        as in Super-NaturalInstructions.

    Raises:
        MissingExtraError: The package is not installed.
    """
    return float(_rouge_scorer().score(target=gold, prediction=said)["rougeL"].fmeasure)


TEXT_METRICS: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "token_f1": token_f1,
    "rouge_l": rouge_l,
}
"""Name to a function of what was said and what would have been right."""


@cache
def _rouge_scorer() -> Any:
    try:
        module = import_module("rouge_score.rouge_scorer")
    except ImportError as error:
        raise MissingExtraError(f"rouge_l needs the package rouge-score: {error}", hint=install("rouge")) from error
    return module.RougeScorer(["rougeL"], use_stemmer=True)
