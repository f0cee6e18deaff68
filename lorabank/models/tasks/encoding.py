"""Texts to token ids: truncation that is counted, padding only to the longest row of a batch."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lorabank.models.tasks.special_tokens import as_written, count_special, edges_of, special_ids
from lorabank.models.tasks.token_rows import TokenRows, blocks


@dataclass(frozen=True)
class EncodedTexts:
    """Token ids of some texts.

    Attributes:
        ids: One row of token ids per text, at most ``max_length`` long.
        lengths: Tokens of each text before it was cut.
        cut: How many texts were longer than ``max_length``.
    """

    ids: TokenRows
    lengths: Sequence[int]
    cut: int


def encode_texts(tokenizer: Any, texts: Sequence[str], max_length: int | Sequence[int]) -> EncodedTexts:
    """Tokenise with the tokenizer's special tokens; those that a text spells out are words like others.

    Args:
        tokenizer: A transformers tokenizer.
        texts: The texts.
        max_length: Longest row in tokens, special tokens included; one for all texts, or one for each.
    """
    rows, lengths, cut = TokenRows(), array("i"), 0
    for block in blocks(len(texts)):
        part = texts[block]
        limits = [max_length] * len(part) if isinstance(max_length, int) else max_length[block]
        ids, whole = _encode(tokenizer, part, limits)
        for row in ids:
            rows.append(row)
        lengths.extend(whole)
        cut += sum(length > limit for length, limit in zip(whole, limits, strict=True))
    return EncodedTexts(rows, lengths, cut)


def _encode(tokenizer: Any, texts: Sequence[str], limits: Sequence[int]) -> tuple[list[list[int]], list[int]]:
    """Token ids of a block of texts, and how many they were before they were cut."""
    options = {"add_special_tokens": True, "verbose": False, "return_attention_mask": False}
    ids = tokenizer(list(texts), truncation=False, **options)["input_ids"]
    special, edges = special_ids(tokenizer), edges_of(tokenizer)
    around = count_special([*edges.begin, *edges.end], special)
    spelled = {i for i, row in enumerate(ids) if count_special(row, special) > around}
    for i in spelled:
        ids[i] = [*edges.begin, *as_written(tokenizer, texts[i]), *edges.end]
    lengths = [len(row) for row in ids]
    long = [i for i, (length, limit) in enumerate(zip(lengths, limits, strict=True)) if length > limit]
    for i in spelled.intersection(long):
        ids[i] = [*ids[i][: limits[i] - len(edges.end)], *edges.end]
    for limit in {limits[i] for i in long}:
        rows = [i for i in long if limits[i] == limit and i not in spelled]
        shortened = tokenizer([texts[i] for i in rows], truncation=True, max_length=limit)["input_ids"] if rows else []
        for i, row in zip(rows, shortened, strict=True):
            ids[i] = row
    return ids, lengths


def pad_batch(tokenizer: Any, ids: Sequence[list[int]]) -> dict[str, Tensor]:
    """``input_ids`` and ``attention_mask`` ``[n, longest]`` int64, padded on the right."""
    rows, own = in_block(ids, int(tokenizer.pad_token_id), left=False)
    return {"input_ids": torch.from_numpy(rows), "attention_mask": torch.from_numpy(own.astype(np.int64))}


def in_block(rows: Sequence[Sequence[int]], filler: int, *, left: bool) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Rows of numbers as one block, filled up on one side.

    Args:
        rows: n rows.
        filler: Stands where a row has no number of its own.
        left: Whether it stands in front of a row, so that all end in one column.

    Returns:
        int64 ``[n, longest]``; and bool of its shape, where a row's own numbers are.
    """
    lengths = np.array([len(row) for row in rows])
    columns = np.arange(lengths.max())
    own = columns >= len(columns) - lengths[:, None] if left else columns < lengths[:, None]
    block = np.full(own.shape, filler, np.int64)
    block[own] = np.fromiter(chain.from_iterable(rows), np.int64, lengths.sum())
    return block, own


def cut_batches(
    order: Sequence[int], lengths: Sequence[object], batch_size: int, *, equal: bool = False
) -> list[list[int]]:
    """Row numbers in an order sorted by length, cut into batches.

    Args:
        order: Row numbers.
        lengths: Tokens of each row.
        batch_size: Maximum rows of a batch.
        equal: A batch holds rows of one length only.
    """
    parts = [list(rows) for _, rows in groupby(order, key=lambda i: lengths[i])] if equal else [list(order)]
    return [rows[i : i + batch_size] for rows in parts for i in range(0, len(rows), batch_size)]


def budget_batches(
    order: Sequence[int], widths: Sequence[int], tokens: int, *, equal: bool = False
) -> list[list[int]]:
    """Row numbers, the longest first, cut into batches of at most so many tokens, padding included.

    Args:
        order: Row numbers, by falling width.
        widths: Tokens of each row.
        tokens: Maximum tokens of a batch, unless it has one row.
        equal: A batch holds rows of one width only.
    """
    batches: list[list[int]] = []
    for i in order:
        if batches:
            widest = widths[batches[-1][0]]
            fits = (len(batches[-1]) + 1) * widest <= tokens and (not equal or widths[i] == widest)
        if batches and fits:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches
