"""Several rows of a causal language model in one sequence, as if each were alone: no padding, the same loss.

The rows of a pack stand one behind the other, and each row's positions begin at 0. From that transformers masks the
attention in blocks, so that no token sees another row, and sliding windows count within a row. Whether a model does so
is measured, as padding is: a state or a convolution over tokens would carry one row into the next.

Rows are put together by best fit decreasing (Johnson, 1974; for packing: Ding et al., arXiv 2404.10830): the longest
first, each into the pack in which the least room is left.
"""

from __future__ import annotations

import inspect
from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, overload

import torch
from torch import Tensor, nn

from lorabank.core.errors import IncompatibleError
from lorabank.models.tasks.batches import takes, takes_positions
from lorabank.models.tasks.causal_lm import IGNORED, check_labelled, inner, mean_cross_entropy
from lorabank.models.tasks.encoding import in_block
from lorabank.models.tasks.padding import same_numbers
from lorabank.models.tasks.probing import can_be_probed, random_rows, undisturbed

_PROBED = (21, 8, 13)
"""Tokens of the rows that are tried."""


def packs(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Row numbers in packs of at most so many tokens; a longer row is a pack of its own.

    Args:
        lengths: Tokens of each row.
        most: Tokens of a pack.
    """
    found: list[list[int]] = []
    with_room: dict[int, list[int]] = defaultdict(list)  # room to the numbers of packs that have it
    rooms: list[int] = []  # those of which there are packs, ascending
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        place = bisect_left(rooms, lengths[row])
        if place < len(rooms):
            room = rooms[place]
            pack = with_room[room].pop()
            if not with_room[room]:
                rooms.pop(place)
        else:
            room, pack = max(most, lengths[row]), len(found)
            found.append([])
        found[pack].append(row)
        left = room - lengths[row]
        if left:
            if not with_room[left]:
                insort(rooms, left)
            with_room[left].append(pack)
    return found


class PackedRows(Sequence[list[Mapping[str, Any]]]):
    """Packs of rows, each a list that is made when it is asked for.

    Args:
        rows: What `CausalLM.encode` makes.
        packs: The numbers of each pack's rows.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]], packs: Sequence[Sequence[int]]) -> None:
        self._rows = rows
        self._packs = packs

    def __len__(self) -> int:
        return len(self._packs)

    @overload
    def __getitem__(self, index: int) -> list[Mapping[str, Any]]: ...
    @overload
    def __getitem__(self, index: slice) -> PackedRows: ...
    def __getitem__(self, index: int | slice) -> list[Mapping[str, Any]] | PackedRows:
        if isinstance(index, slice):
            return PackedRows(self._rows, self._packs[index])
        return [self._rows[row] for row in self._packs[index]]


def collate_packs(tokenizer: Any, rows: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Tensor]:
    """A batch of packs, each a sequence of the rows that `CausalLM.encode` makes.

    Returns:
        ``input_ids``, ``position_ids`` and ``labels``, int64 ``[n, longest pack]``, padded on the right. Every token
        of the padding is a row of its own; -100 stands where nothing is to be learnt.
    """
    ids: list[list[int]] = []
    positions: list[list[int]] = []
    labels: list[list[int]] = []
    for pack in rows:
        tokens: list[int] = []
        places: list[int] = []
        wanted: list[int] = []
        for row in pack:
            own = [*row["prompt"], *row["completion"]][:-1]
            answers = [*[IGNORED] * (len(row["prompt"]) - 1), *row["completion"]]
            tokens += own
            places += range(len(own))
            wanted += answers[len(answers) - len(own) :]
        ids.append(tokens)
        positions.append(places)
        labels.append(wanted)
    blocks = ((ids, int(tokenizer.pad_token_id)), (positions, 0), (labels, IGNORED))
    names = ("input_ids", "position_ids", "labels")
    found = {
        name: torch.from_numpy(in_block(block, filler, left=False)[0])
        for name, (block, filler) in zip(names, blocks, strict=True)
    }
    check_labelled(found["labels"])
    return found


def packed_loss(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Mean cross entropy of the answers' tokens of a batch of packs: what the rows would give unpacked.

    Args:
        model: One that `check_packable` lets pass.
        inputs: What `collate_packs` gives, on the model's device.
    """
    labels = inputs["labels"]
    columns = (labels != IGNORED).any(0).nonzero().squeeze(-1)
    logits = _logits(model, inputs["input_ids"], inputs["position_ids"], columns)
    return mean_cross_entropy(logits, labels[:, columns])


def _logits(model: nn.Module, ids: Tensor, positions: Tensor, columns: Tensor) -> Tensor:
    """Logits ``[n, columns, vocabulary]`` of some columns, without a mask: the positions say where rows begin."""
    known = inspect.signature(inner(model).forward).parameters
    given = {"logits_to_keep": columns, "use_cache": False}
    output = model(
        input_ids=ids, position_ids=positions, **{name: value for name, value in given.items() if name in known}
    )
    logits: Tensor = output.logits
    return logits if logits.shape[1] == len(columns) else logits[:, columns]


def check_packable(model: Any, name: str) -> None:
    """Refuse a model in which rows of a pack would change each other, or that takes no positions of tokens.

    Args:
        model: The base.
        name: What it is called.

    Raises:
        IncompatibleError: It is such a model.
    """
    if not can_be_probed(model) or not takes_positions(model) or not takes(model, "input_ids") or not _apart(model):
        raise IncompatibleError(
            f"--packing: in {name!r} texts of one sequence would change each other",
            hint="leave --packing out",
            unchanged="nothing was changed",
        )


def _apart(model: Any) -> bool:
    """Whether three rows give in one pack, beside padding, what they give alone."""
    rows = random_rows(model, _PROBED, seed=2)
    ids = torch.tensor([[token for row in rows for token in row] + [rows[0][0]] * 2], device=model.device)
    places = torch.tensor([[place for row in rows for place in range(len(row))] + [0] * 2], device=model.device)
    with undisturbed(model):
        try:
            alone = [_all_logits(model, torch.tensor([row], device=model.device), None) for row in rows]
            together = _all_logits(model, ids, places)
        except Exception:  # whatever a model raises that takes no such input
            return False
    every, eps, first = torch.cat(alone), torch.finfo(model.dtype).eps, 0
    for row in alone:
        if not same_numbers(together[first : first + len(row)], row, every, eps):
            return False
        first += len(row)
    return True


def _all_logits(model: Any, ids: Tensor, positions: Tensor | None) -> Tensor:
    """float32 logits ``[tokens, vocabulary]`` of one sequence."""
    places = torch.arange(ids.shape[1], device=ids.device)[None] if positions is None else positions
    return _logits(model, ids, places, torch.arange(ids.shape[1], device=ids.device))[0].float()
