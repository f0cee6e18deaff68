"""Prompts and answers as token ids: what is cut, and where the special tokens stand."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lorabank.core.errors import DataError, IncompatibleError
from lorabank.core.templates import ChatPrompt, check_template, fill_labels, parted
from lorabank.models.tasks.special_tokens import (
    Edges,
    as_written,
    count_special,
    edges_of,
    special_ids,
    spellings,
)
from lorabank.models.tasks.task_types import Examples
from lorabank.models.tasks.token_rows import Columns, TokenRows, blocks

_TEXT = "{text}"


@dataclass(frozen=True)
class EncodedPrompts:
    """Token ids of some prompts.

    Attributes:
        ids: One row of token ids per prompt, within its budget and never empty.
        cut: How many prompts were longer than that.
    """

    ids: TokenRows
    cut: int


def encode_prompts(
    tokenizer: Any,
    texts: Sequence[str],
    template: str | None,
    budget: int | Sequence[int],
    *,
    end: bool = False,
) -> EncodedPrompts:
    """Token ids of prompts.

    The tokenizer's beginning token stands there exactly once where the tokenizer adds one, also where a chat template
    wrote it already. A prompt without any token becomes a beginning token alone (the end token where there is none),
    so that the first word of what follows can be predicted. With a template, a prompt that is too long loses the end
    of its text; without one, and in a chat template, it loses its beginning.

    Special tokens of a template, or of a prompt without one, are special; in a text they are words like others.

    Args:
        tokenizer: A transformers tokenizer.
        texts: n texts.
        template: Prompt of a text with ``{text}``, its labels filled in; None where the text is the prompt.
        budget: Maximum tokens of a prompt, special ones included; one for all, or one for each.
        end: Whether the prompt ends as the tokenizer ends a text (T5's ``</s>``): for an encoder only.

    Raises:
        ConfigError: The template has no ``{text}``.
        DataError: A budget does not hold the template without text, or not one token of a prompt.
        IncompatibleError: A prompt is empty and the tokenizer has neither beginning nor end token.
    """
    budgets = [budget] * len(texts) if isinstance(budget, int) else list(budget)
    if len(budgets) != len(texts):
        raise ValueError(f"{len(budgets)} budgets for {len(texts)} texts")
    if not texts:
        return EncodedPrompts(TokenRows(), 0)
    edges = _edges(tokenizer, end)
    if template is not None:
        check_template(template)
    fitted = None if isinstance(template, ChatPrompt) else template
    if fitted is not None:
        least = edges.size + len(_filled(tokenizer, fitted, [""], edges.begin)[0])
        _check_budget("the prompt template without its text", least, min(budgets))

    def bodies() -> Iterator[list[int]]:
        for block in blocks(len(texts)):
            if template is None:
                yield from _bodies(tokenizer, texts[block], edges.begin)
            else:
                yield from _filled(tokenizer, template, texts[block], edges.begin)

    ids, cut = TokenRows(), 0
    for i, body in enumerate(bodies()):
        room = budgets[i] - edges.size
        if not body:
            _check_budget("an empty prompt", len(edges.nothing()), budgets[i])
            ids.append(edges.nothing())
            continue
        _check_budget("one token of a prompt", edges.size + 1, budgets[i])
        if len(body) > room:
            cut += 1
            body = body[-room:] if fitted is None else _fit(tokenizer, fitted, texts[i], room, edges.begin)
        ids.append([*edges.begin, *body, *edges.end])
    return EncodedPrompts(ids, cut)


def encode_completions(tokenizer: Any, completions: Sequence[str], *, glued: bool, end: bool = True) -> TokenRows:
    """Token ids of what is answered: without a beginning token, the end token once at the end.

    Special tokens that close an answer are special (the end of a turn); inside of it they are words like others.

    Args:
        tokenizer: A transformers tokenizer.
        completions: n answers.
        glued: Whether exactly one blank is put before the words, because they follow the words of a template.
        end: Whether the end token closes each of them.

    Raises:
        DataError: A completion has no tokens.
        IncompatibleError: The tokenizer has no end token.
    """
    if tokenizer.eos_token_id is None:
        raise IncompatibleError(
            "the base's tokenizer has no end token, so no answer can end",
            hint="use a base made for text to text: --base",
            unchanged="nothing was changed",
        )
    begin, blank = _edges(tokenizer, end=False).begin, _puts_blank(tokenizer)
    ids = TokenRows()
    for block in blocks(len(completions)):
        texts = [f" {words.lstrip()}" if glued else words for words in completions[block]]
        if blank:
            texts = [text.removeprefix(" ") for text in texts]
        for text, row in zip(texts, _bodies(tokenizer, texts, begin), strict=True):
            answer = _answer(tokenizer, text, row)
            if not answer:
                raise DataError(
                    f"completion {len(ids) + 1} is empty: {completions[len(ids)]!r} has no tokens",
                    hint="give every row an answer",
                    unchanged="nothing was changed",
                )
            ids.append([*answer, int(tokenizer.eos_token_id)] if end else answer)
    return ids


def _answer(tokenizer: Any, text: str, row: list[int]) -> list[int]:
    """An answer without end tokens; the special tokens inside of it are words."""
    special = special_ids(tokenizer)
    closing = next((k for k, token in enumerate(reversed(row)) if token not in special), len(row))
    if count_special(row[: len(row) - closing], special):
        row = _answer_as_written(tokenizer, text)
    while row and row[-1] == tokenizer.eos_token_id:
        row.pop()
    return row


def encode_labels(tokenizer: Any, labels: Sequence[str], *, glued: bool) -> TokenRows:
    """Token ids of the labels of a list; see `encode_completions`.

    Raises:
        DataError: Two labels are the same tokens, or one has none.
    """
    ids = encode_completions(tokenizer, labels, glued=glued)
    seen: dict[tuple[int, ...], str] = {}
    for label, row in zip(labels, map(tuple, ids), strict=True):
        if row in seen:
            raise DataError(
                f"the labels {seen[row]!r} and {label!r} are the same tokens to this model",
                hint=f"give them other words: --set 'label_words={seen[row]}=...,{label}=...'",
                unchanged="nothing was changed",
            )
        seen[row] = label
    return ids


def encode_pairs(
    tokenizer: Any,
    texts: Sequence[str],
    targets: Sequence[str],
    *,
    labels: Sequence[str],
    template: str | None,
    max_length: int,
    glued: bool,
) -> Examples:
    """Rows of prompt and completion, together at most ``max_length`` tokens long.

    The prompt is cut, the completion never: where it does not fit beside one token of its prompt, the row is dropped.
    A text to be learnt as it is (no template, empty prompt) has nothing but completion: it is cut at its end, and the
    end token, which would stand in the middle of the text, is cut with it.

    Args:
        tokenizer: A transformers tokenizer.
        texts: n texts.
        targets: What is answered to each.
        labels: The labels that fill the template's ``{labels}``; two that are the same tokens are refused.
        template: Prompt of a text, None where the text is the prompt.
        max_length: Maximum tokens of a row, special ones included.
        glued: Whether prompt and completion are one sequence, as in a causal model.

    Raises:
        ConfigError: The template has no ``{text}``.
        DataError: No row is left, the template does not fit, or labels collide.
        IncompatibleError: The tokenizer has no end token.
    """
    blank, chat = glued and parted(template), isinstance(template, ChatPrompt)
    if template is not None and not chat:
        template = fill_labels(template, labels)
    if labels:
        encode_labels(tokenizer, labels, glued=blank)
    edges = _edges(tokenizer, end=not glued)
    completions, kept, cut = TokenRows(), array("q"), 0
    longest = widest = 0
    for i, completion in enumerate(encode_completions(tokenizer, targets, glued=blank)):
        room = max_length - len(edges.nothing()) if template is None and not texts[i] else len(completion)
        if 0 < room < len(completion):
            completion = completion[:room]
            cut += 1
        if template is not None and not chat:
            least = 1  # a template that does not fit is a mistake, not a matter of single rows
        else:
            least = edges.size + 1 if texts[i] or chat else len(edges.nothing())
        longest, widest = max(longest, len(completion)), max(widest, least)
        if least + len(completion) <= max_length:
            completions.append(completion)
            kept.append(i)
    if texts and not kept:
        raise DataError(
            f"no training row is left: no answer fits into {max_length} tokens beside its prompt",
            hint=f"raise --max-length to {longest + widest} or more",
            unchanged="nothing was changed",
        )
    answers = completions.lengths
    budgets = [max_length - size for size in answers]
    prompts = encode_prompts(tokenizer, [texts[i] for i in kept], template, budgets, end=not glued)
    rows = Columns(prompt=prompts.ids, completion=completions, index=kept)
    lengths = array("i", map(sum, zip(prompts.ids.lengths, answers, strict=True)))
    return Examples(rows, lengths, cut + prompts.cut, len(texts) - len(kept))


# ------------------------------------------------------------------------------------------------ special tokens


@dataclass(frozen=True)
class _Edges(Edges):
    """What stands around the words of a prompt; ``alone`` is the whole of an empty one."""

    alone: list[int]

    def nothing(self) -> list[int]:
        if not self.alone:
            raise IncompatibleError(
                "the base's tokenizer has neither a beginning nor an end token, from which a text could start",
                hint="use a base made for text to text: --base",
                unchanged="nothing was changed",
            )
        return list(self.alone)


def _edges(tokenizer: Any, end: bool) -> _Edges:
    around = edges_of(tokenizer)
    behind = around.end if end else []
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    return _Edges(around.begin, behind, around.begin + behind or ([] if start is None else [int(start)]))


def _bodies(tokenizer: Any, texts: Sequence[str], begin: Sequence[int]) -> list[list[int]]:
    """Token ids without special tokens; a beginning that the text itself spells out is taken off."""
    return [_without(row, begin) for row in _bare(tokenizer, texts)]


def _bare(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    options = {"add_special_tokens": False, "verbose": False, "return_attention_mask": False}
    return [list(row) for row in tokenizer(list(texts), truncation=False, **options)["input_ids"]]


def _filled(tokenizer: Any, template: str, texts: Sequence[str], begin: Sequence[int]) -> list[list[int]]:
    """Token ids of the template with each text in it, whose special tokens are words."""
    special = special_ids(tokenizer)
    (empty, *rows) = _bare(tokenizer, [template.replace(_TEXT, text) for text in ("", *texts)])
    own = count_special(empty, special)
    for i, row in enumerate(rows):
        if count_special(row, special) > own:
            rows[i] = _filled_as_written(tokenizer, template, texts[i])
    return [_without(row, begin) for row in rows]


def _filled_as_written(tokenizer: Any, template: str, text: str) -> list[int]:
    """A template's special tokens part what is around them; what lies between two of them has none."""
    before, _, behind = template.partition(_TEXT)
    marks = spellings(tokenizer)
    first = max((before.rfind(mark) + len(mark) for mark in marks if mark in before), default=0)
    last = min((behind.find(mark) for mark in marks if mark in behind), default=len(behind))
    opening, closing = (_bare(tokenizer, [part])[0] if part else [] for part in (before[:first], behind[last:]))
    return [*opening, *as_written(tokenizer, before[first:] + text + behind[:last]), *closing]


def _answer_as_written(tokenizer: Any, text: str) -> list[int]:
    """An answer between the special tokens that may open and close it."""
    marks = spellings(tokenizer)
    begin = tokenizer.bos_token
    core = text
    while begin and core.startswith(begin):
        core = core.removeprefix(begin)
    end = len(core)
    while mark := next((mark for mark in marks if core[:end].endswith(mark)), ""):
        end -= len(mark)
    return [*as_written(tokenizer, core[:end]), *(_bare(tokenizer, [core[end:]])[0] if core[end:] else [])]


def _without(row: Sequence[int], begin: Sequence[int]) -> list[int]:
    start = 0
    while begin and list(row[start : start + len(begin)]) == list(begin):
        start += len(begin)
    return list(row[start:])


def _puts_blank(tokenizer: Any) -> bool:
    """Whether the tokenizer begins a text with a blank of its own, as SentencePiece does."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("a", add_special_tokens=False)["input_ids"])
    return bool(tokens) and tokens[0].startswith(("▁", "Ġ"))


# ------------------------------------------------------------------------------------------------------- cutting


def _check_budget(what: str, least: int, budget: int) -> None:
    if least > budget:
        raise DataError(
            f"{what} takes {least} tokens, but beside the answer there is room for {max(budget, 0)}",
            hint="raise --max-length, or shorten the prompt template or the labels",
            unchanged="nothing was changed",
        )


def _fit(tokenizer: Any, template: str, text: str, room: int, begin: Sequence[int]) -> list[int]:
    """Token ids of the template with as much of the text's beginning as there is room for."""

    def body(size: int) -> list[int]:
        return _filled(tokenizer, template, [text[:size]], begin)[0]

    size = len(text)
    if not tokenizer.is_fast or any(mark in text for mark in spellings(tokenizer)):
        size = bisect_right(range(size), room, key=lambda k: len(body(k))) - 1
    else:
        size = _token_start(tokenizer, template, text, size, len(body(size)) - room)
    ids = body(size)
    while len(ids) > room and size > 0:  # tokens merge otherwise where the text now ends
        size -= 1
        ids = body(size)
    return ids


def _token_start(tokenizer: Any, template: str, text: str, size: int, excess: int) -> int:
    """Where in the text the last ``excess`` of its tokens begin."""
    start = template.index(_TEXT)
    filled = template.replace(_TEXT, text[:size])
    spans = tokenizer(filled, add_special_tokens=False, verbose=False, return_offsets_mapping=True)["offset_mapping"]
    inside = [first - start for first, last in spans if first < start + size and last > start]
    if excess >= len(inside):
        return 0
    return len(text[: max(0, inside[-excess])].rstrip())
