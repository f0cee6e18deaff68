"""Special tokens: where a tokenizer puts them, and texts that spell them.

``</s>`` in a text is four characters that somebody wrote, and means no end of the text: a text is data. Only what the
tokenizer puts around it, a prompt template and a chat template steer the model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary


@dataclass(frozen=True)
class Edges:
    """What a tokenizer puts before and behind the words of a text."""

    begin: list[int]
    end: list[int]

    @property
    def size(self) -> int:
        """How many tokens they are."""
        return len(self.begin) + len(self.end)


def edges_of(tokenizer: Any) -> Edges:
    """Found by what the tokenizer does with a letter: post-processors cannot be asked."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole = tokenizer("a")["input_ids"]
    at = next((k for k in range(len(whole)) if bare and whole[k : k + len(bare)] == bare), len(whole))
    return Edges(list(whole[:at]), list(whole[at + len(bare) :]))


def special_ids(tokenizer: Any) -> frozenset[int]:
    """The ids that steer a model; the unknown word's only where it has another role, since ordinary texts have it."""
    if tokenizer not in _SPECIAL:  # some tokenizers have thousands
        added = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
        roles = (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.cls_token_id, tokenizer.sep_token_id)
        unknown = {tokenizer.unk_token_id}.difference(roles)
        _SPECIAL[tokenizer] = frozenset(added.union(tokenizer.all_special_ids) - unknown - {None})
    return _SPECIAL[tokenizer]


_SPECIAL: WeakKeyDictionary[Any, frozenset[int]] = WeakKeyDictionary()


def spellings(tokenizer: Any) -> list[str]:
    """How the special tokens are spelled, the longest first."""
    return sorted(map(str, tokenizer.convert_ids_to_tokens(sorted(special_ids(tokenizer)))), key=len, reverse=True)


def count_special(ids: Sequence[int], special: frozenset[int]) -> int:
    """How many of the ids are special."""
    return 0 if special.isdisjoint(ids) else sum(token in special for token in ids)


def as_written(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text in which every special token is what it is spelled with, without tokens around it."""
    special = special_ids(tokenizer)
    given: dict[str, Any] = {"add_special_tokens": False, "truncation": False, "verbose": False}
    ids: list[int] = []
    for token in tokenizer(text, split_special_tokens=True, **given)["input_ids"]:
        if token not in special:
            ids.append(token)
            continue
        # The vocabulary has the whole spelling as a word of its own (SentencePiece): letter by letter it is none.
        letters = tokenizer.convert_tokens_to_ids(list(tokenizer.convert_ids_to_tokens(token)))
        ids += [letter for letter in letters if letter is not None and letter not in special]
    return ids
