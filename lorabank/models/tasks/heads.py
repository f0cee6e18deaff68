"""Classification heads: one per task, of different sizes, on one body.

A head is what the model's own class puts behind its body: one module (BERT's ``classifier``, Llama's ``score``) or
several (DistilBERT's ``pre_classifier`` and ``classifier``). It is built by that class, so any architecture works.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from math import inf, nan
from typing import TYPE_CHECKING, Any, Protocol
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from lorabank.core.errors import IncompatibleError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Head:
    """The head of one task: its modules by their names in the model."""

    modules: dict[str, nn.Module]
    num_labels: int

    def state(self) -> dict[str, Tensor]:
        """Its tensors under their names in the model, for example ``classifier.weight``."""
        return {
            f"{name}.{key}": value
            for name, module in self.modules.items()
            for key, value in module.state_dict().items()
        }


class HeadSelection:
    """Says which task's head answers; shared by the switches of one model. Made by ``switch_heads``.

    Args:
        num_labels: Labels of each head.
        place: Called with a head's index before the head is chosen for the first time.
    """

    def __init__(self, num_labels: Sequence[int], place: Callable[[int], None]) -> None:
        self.num_labels = tuple(num_labels)
        self.rows: int | Tensor = 0
        self._place = cache(place)

    def select(self, rows: int | Tensor) -> None:
        """Choose the heads of the next batches, until chosen again.

        Args:
            rows: Index of the head for all rows, or LongTensor [n] with one index for each row.

        Raises:
            IndexError: There is no such head.
        """
        chosen = torch.as_tensor(rows)
        if chosen.numel() and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(self.num_labels):
            raise IndexError(f"there are {len(self.num_labels)} heads, {rows} was chosen")
        for index in set(chosen.flatten().tolist()):
            self._place(index)
        self.rows = rows

    @contextmanager
    def chosen(self, rows: int | Tensor) -> Iterator[None]:
        """`select` for the length of a block: a pass behind it, over other rows, finds what was chosen before.

        A pooler without weights belongs to the head, and features pass through it too.
        """
        before = self.rows
        self.select(rows)
        try:
            yield
        finally:
            self.rows = before


class HeadSwitch(nn.Module):
    """Stands in the place of one head module and sends each row to its task's own.

    Args:
        selection: Says which one a row uses.
        width: Columns that the outputs are padded to; 0 for a module that does not make the labels.

    Attributes:
        options: The module of each task; an empty one until its head is chosen.
    """

    def __init__(self, selection: HeadSelection, width: int) -> None:
        super().__init__()
        self.options = nn.ModuleList([nn.Module()] * len(selection.num_labels))
        self.selection = selection
        self.width = width

    def forward(self, hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the chosen modules.

        Args:
            hidden: [n, ..., h], any floating dtype.
            *args: Passed on.
            **kwargs: Passed on.

        Returns:
            [n, ..., w], w being the width of the widest head; columns that a row's head does not have are -inf.

        Raises:
            ValueError: The rows chosen are not as many as those of the batch.
        """
        rows = self.selection.rows
        if isinstance(rows, int):
            return self._pad(self.options[rows](hidden, *args, **kwargs))
        if len(rows) != len(hidden):
            raise ValueError(f"heads were chosen for {len(rows)} rows, the batch has {len(hidden)}")
        rows = rows.cpu()  # most often they are there, and nothing waits for a device
        parts, places = [], []
        for index in torch.unique(rows).tolist():
            places.append((rows == index).nonzero(as_tuple=True)[0])
            own = hidden[places[-1].to(hidden.device, non_blocking=True)]
            parts.append(self._pad(self.options[index](own, *args, **kwargs)))
        return torch.cat(parts)[torch.cat(places).argsort().to(hidden.device, non_blocking=True)]

    def _pad(self, out: Tensor) -> Tensor:
        missing = self.width - out.shape[-1]
        return nn.functional.pad(out, (0, missing), value=-inf) if missing > 0 else out


def build_head(
    model: PreTrainedModel,
    head_modules: Sequence[str],
    num_labels: int,
    seed: int,
    *,
    dtype: torch.dtype | None = None,
) -> Head:
    """A freshly initialised head, as the model's own class initialises it.

    Weights are drawn on the CPU, so a seed means the same head on every device; the global random state is kept.

    Args:
        model: Sequence classifier; its class, config and device are used, its weights are not.
        head_modules: Names of the head's modules.
        num_labels: Number of labels.
        seed: Seed of the weights.
        dtype: Of its weights, into which what it reads is converted; default: the model's.

    Raises:
        IncompatibleError: The model's class leaves a weight of its head without a value.
    """
    shell = _shell(model, num_labels)
    modules = _empty(shell, head_modules)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        for name, module in modules.items():
            for parameter in module.parameters():
                parameter.fill_(nan)
            for part in reversed(list(module.modules())):  # inner modules first
                if callable(reset := getattr(part, "reset_parameters", None)):
                    reset()
                shell._init_weights(part)
            if any(bool(p.isnan().any()) for p in module.parameters()):
                raise IncompatibleError(f"{type(model).__name__} does not initialise its head module {name!r}")
    return _finish(model, modules, num_labels, dtype)


def load_head(
    model: PreTrainedModel,
    head_modules: Sequence[str],
    num_labels: int,
    state: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
) -> Head:
    """A head with stored weights.

    Args:
        model: Sequence classifier; its class, config and device are used.
        head_modules: Names of the head's modules.
        num_labels: Number of labels.
        state: Tensors as ``Head.state`` names them.
        dtype: As of `build_head`.

    Raises:
        IncompatibleError: A tensor is missing, too many, or of another shape.
    """
    modules = _empty(_shell(model, num_labels), head_modules)
    head = Head(modules, num_labels)
    expected = {name: tuple(tensor.shape) for name, tensor in head.state().items()}
    found = {name: tuple(tensor.shape) for name, tensor in state.items()}
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise IncompatibleError(
                f"head tensor {name!r} has shape {found.get(name, 'none')}, {num_labels} labels need "
                f"{expected.get(name, 'none')}"
            )
    for name, module in modules.items():
        start = f"{name}."
        module.load_state_dict({k.removeprefix(start): v for k, v in state.items() if k.startswith(start)})
    return _finish(model, modules, num_labels, dtype)


def grow_head(head: Head, earlier: Mapping[str, Tensor]) -> None:
    """Give a head, in place, the weights of one that has its first labels; the rows of new labels stay as drawn.

    Args:
        head: The head of n labels.
        earlier: Tensors of the head of the first m <= n labels, as ``Head.state`` names them. Tensors that make the
            labels have one row for each label; all others have equal shapes in both heads.

    Raises:
        IncompatibleError: A tensor is missing, too many, or of another shape.
    """
    own = head.state()
    for name in sorted(own.keys() | earlier.keys()):
        new, old = own.get(name), earlier.get(name)
        if new is None or old is None or new.shape[1:] != old.shape[1:] or old.shape[:1] > new.shape[:1]:
            raise IncompatibleError(f"head tensor {name!r} is not one that the earlier head could grow into")
        (new[: len(old)] if old.dim() else new).copy_(old)


def head_state(model: nn.Module, head_modules: Sequence[str]) -> dict[str, Tensor]:
    """The tensors of the model's present head under their names in the model."""
    return Head({name: model.get_submodule(name) for name in head_modules}, 0).state()


def put_head(model: PreTrainedModel, head: Head) -> None:
    """Make ``head`` the model's one head, in place."""
    for name, module in head.modules.items():
        model.set_submodule(name, module)
    model.config.num_labels = head.num_labels
    if hasattr(model, "num_labels"):
        setattr(model, "num_labels", head.num_labels)  # noqa: B010, nn.Module types attributes as modules


class Heads(Protocol):
    """The heads of a bank, by their index."""

    def __getitem__(self, index: int, /) -> Head:
        """One of them."""


def switch_heads(model: PreTrainedModel, heads: Sequence[Head]) -> HeadSelection:
    """Give the model all heads at once, in place; ``put_head`` brings it back to one.

    Returns:
        The selection: ``select`` says which head answers for which row of the next batch.
    """
    selection = reserve_heads(model, heads, [head.num_labels for head in heads])
    selection.select(torch.arange(len(heads)))
    selection.select(0)
    return selection


def reserve_heads(model: PreTrainedModel, heads: Heads, num_labels: Sequence[int]) -> HeadSelection:
    """As `switch_heads`; the first head is asked for now, every other one when it is first chosen.

    Args:
        model: Sequence classifier.
        heads: Gives a head.
        num_labels: Labels of each head.
    """
    first = heads[0]
    shells = [_shell(model, size) for size in dict.fromkeys(num_labels)]
    switches: dict[str, HeadSwitch] = {}

    def place(index: int) -> None:
        for name, module in (heads[index] if index else first).modules.items():
            switches[name].options[index] = module

    selection = HeadSelection(num_labels, place)
    for name in first.modules:
        shapes = {tuple(p.shape for p in shell.get_submodule(name).parameters()) for shell in shells}
        # Options of one shape have outputs of one width: only the module that makes the labels is ever padded.
        switches[name] = HeadSwitch(selection, max(num_labels) if len(shapes) > 1 else 0)
        model.set_submodule(name, switches[name])
    selection.select(0)
    return selection


_SHELLS: WeakKeyDictionary[PreTrainedModel, dict[int, PreTrainedModel]] = WeakKeyDictionary()
"""Of each model by number of labels: making one costs more than all else about a head."""


def _shell(model: PreTrainedModel, num_labels: int) -> PreTrainedModel:
    """A model of the same class with another number of labels, without memory for its weights."""
    shells = _SHELLS.setdefault(model, {})
    if num_labels not in shells:
        config = copy.deepcopy(model.config)
        config.num_labels = num_labels
        with torch.device("meta"):
            shells[num_labels] = type(model)(config)
    return shells[num_labels]


def _empty(shell: PreTrainedModel, head_modules: Sequence[str]) -> dict[str, nn.Module]:
    """The shell's head with memory of its own, no values in it."""
    return {name: copy.deepcopy(shell.get_submodule(name)).to_empty(device="cpu") for name in head_modules}


def _finish(model: PreTrainedModel, modules: dict[str, nn.Module], num_labels: int, dtype: torch.dtype | None) -> Head:
    """Trainable, in the model's mode, on its device, in the dtype."""
    for module in modules.values():
        module.to(device=model.device, dtype=dtype or model.dtype).train(model.training).requires_grad_(True)
        if dtype not in (None, model.dtype):
            module.register_forward_pre_hook(_in_own_dtype, with_kwargs=True)
    return Head(modules, num_labels)


def _in_own_dtype(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    dtype = next(module.parameters()).dtype

    def converted(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(map(converted, args)), {name: converted(value) for name, value in kwargs.items()}
