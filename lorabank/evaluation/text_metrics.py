"""Scores of one generated answer against the right one, in [0, 1]; the score of a task is their mean.

The normalisation is that of the papers that compare continual learning on language models: SQuAD's without the removal
of articles, as Super-NaturalInstructions (arXiv 2204.07705) and after it O-LoRA (arXiv 2310.14152) compute it.

Their words are what stands between blanks, for ROUGE runs of ASCII letters and digits. A script that writes no blanks
(Chinese, Japanese, Thai, Lao, Khmer, Burmese, Tibetan) has no words then: here each of its characters is one, and for
ROUGE the letters of every script are letters. Both differ from the papers; texts in ASCII give their very numbers.
"""

from __future__ import annotations

import string
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import groupby
from statistics import median_low
from unicodedata import category

_UNSPACED = (
    (0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x19E0, 0x19FF), (0x2E80, 0x2FDF),
    (0x3000, 0x30FF), (0x3100, 0x312F), (0x31A0, 0x31BF), (0x31F0, 0x31FF), (0x3400, 0x4DBF), (0x4E00, 0x9FFF),
    (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F), (0xF900, 0xFAFF), (0xFF00, 0xFF0F), (0xFF1A, 0xFF20), (0xFF3B, 0xFF40),
    (0xFF5B, 0xFF9F), (0x1AFF0, 0x1B16F), (0x20000, 0x3FFFF),
)  # fmt: skip
"""First and last code point of the blocks of scripts without blanks between words, their punctuation included."""
_FIRST = [first for first, _ in _UNSPACED]

_SHORT = 5
"""Words of an answer that is right or wrong as a whole."""

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
    found, right = words(said), words(gold)
    if not (found and right):
        return float(found == right)
    same = sum((Counter(found) & Counter(right)).values())
    return 2 * same / (len(found) + len(right))


def words(text: str) -> list[str]:
    """What stands between blanks after normalisation; of a script without blanks each character."""
    return [piece for word in normalise(text).split() for piece in _pieces(word)]


def _pieces(word: str) -> Iterator[str]:
    """A word parted into the characters of scripts without blanks, each with its marks, and what is between them."""
    if word.isascii():
        yield word
        return
    characters: list[str] = []
    for character in word:
        if characters and category(character)[0] == "M" and _unspaced(characters[-1][0]):
            characters[-1] += character
        else:
            characters.append(character)
    for unspaced, run in groupby(characters, lambda one: _unspaced(one[0])):
        if unspaced:
            yield from (one for one in run if category(one[0])[0] in "LMN")
        else:
            yield "".join(run)


def _unspaced(character: str) -> bool:
    at = bisect_right(_FIRST, ord(character)) - 1
    return at >= 0 and ord(character) <= _UNSPACED[at][1]


def rouge_l(said: str, gold: str) -> float:
    """F-measure of the longest common subsequence of stemmed words (ROUGE-L), as the package ``rouge-score`` has it.

    Its own words are runs of ASCII letters and digits; see above for other scripts. The words are the package's; the
    subsequence is found here, since its table of every pair of words takes minutes and gigabytes for long texts.

    Source:
        Lin, ROUGE: A Package for Automatic Evaluation of Summaries, https://aclanthology.org/W04-1013; with stemming,
        as in Super-NaturalInstructions.
    """
    tokenize, fmeasure = _rouge()
    found, right = tokenize(said), tokenize(gold)
    if not (found and right):
        return 0.0
    same = longest_common(found, right)
    return float(fmeasure(same / len(found), same / len(right)))


def longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, a word of the longer text at a time against all of the other.

    Source:
        Hyyrö, Bit-parallel LCS-length computation revisited, AWOCA 2004.
    """
    short, long = sorted((one, other), key=len)
    places: dict[str, int] = {}
    for place, word in enumerate(short):
        places[word] = places.get(word, 0) | 1 << place
    everywhere = (1 << len(short)) - 1
    unmatched = everywhere
    for word in long:
        here = unmatched & places.get(word, 0)
        unmatched = (unmatched + here | unmatched - here) & everywhere
    return len(short) - unmatched.bit_count()


@cache
def _rouge() -> tuple[Callable[[str], list[str]], Callable[[float, float], float]]:
    """The words of a text, and the mean of precision and recall."""
    from rouge_score.scoring import fmeasure
    from rouge_score.tokenizers import DefaultTokenizer  # a second of imports

    published = DefaultTokenizer(use_stemmer=True)

    def tokenize(text: str) -> list[str]:
        """The published words of ASCII; other letters are letters too."""
        if text.isascii():
            return list(published.tokenize(text))
        letters = "".join(one if category(one)[0] in "LMN" else " " for one in text.lower())
        pieces = [piece for word in letters.split() for piece in _pieces(word)]
        return [token for one in pieces for token in (published.tokenize(one) if one.isascii() else [one])]

    return tokenize, fmeasure


def usual_metric(answers: Sequence[str]) -> str:
    """The metric that judges a task's answers best.

    Long answers are never the very words of the data, so that an exact match says nothing about them.

    Args:
        answers: The answers of the evaluation rows, one at least.

    Returns:
        ``"exact_match"`` where at least half of them have at most five words, else ``"token_f1"``.
    """
    return "exact_match" if median_low(len(words(answer)) for answer in answers) <= _SHORT else "token_f1"
