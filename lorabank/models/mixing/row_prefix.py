"""The frozen lower layers of a model, computed once for the two passes of a routed text.

The base reads a text for its feature, and then the text's route answers it. Where every adapter lies in layer N or
above, both passes have the same hidden states behind layer N - 1. They are kept text by text while features are
computed, and where all texts of a later batch are known, layers 0 to N - 1 are not computed again: the pass of the
answers costs what the layers above do. Other texts beside it change a hidden state by rounding, as they always do.

As in `lorabank.models.mixing.prefix` no model is trusted: the first batch that is kept is passed once more, from what
was kept of it, and where the results differ nothing is reused. Only rows that are padded on the right, behind a mask,
are kept and put together.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from lorabank.models.bases.body import body_of
from lorabank.models.mixing.prefix import frozen_layers
from lorabank.models.tasks.padding import same_numbers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROW_BYTES = 1 << 28
"""The maximum that is kept: 4,500 texts of 40 tokens at a width of 384."""


class RowPrefix:
    """Stands in front of a model's lower layers, for as long as the model lives.

    Args:
        model: A model of transformers; its frozen layers' ``forward`` is replaced. What it computes stays the same.
        adapted: Full names of all modules that may differ from the base.
    """

    def __init__(self, model: PreTrainedModel, adapted: Iterable[str]) -> None:
        layers = frozen_layers(model, adapted)
        self._on = bool(layers)
        self._keeping = self._checked = self._in_tuple = False
        self.forget()
        self._rest()
        for layer in layers:
            layer.forward = partial(self._layer, layer.forward, layer is layers[-1])
        if layers:
            body = body_of(model)
            self._signature = inspect.signature(body.forward)
            body.register_forward_pre_hook(self._begin, with_kwargs=True)
            body.register_forward_hook(self._end, with_kwargs=True, always_call=True)

    @property
    def settled(self) -> bool:
        """Whether no pass has to run to its end any more, to show that the lower layers can be reused."""
        return self._checked or not self._on

    def forget(self) -> None:
        """Keep nothing of texts that will not come again."""
        self._rows: dict[bytes, Tensor] = {}
        self._free = ROW_BYTES

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """A block whose passes are of the base: what the lower layers give for their texts is kept."""
        self._keeping = True
        try:
            yield
        finally:
            self._keeping = False

    def _rest(self) -> None:
        self._texts: Sequence[bytes] | None = None
        self._found: Tensor | None = None

    def _begin(self, body: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self._rest()
        if not (self._on and (self._keeping or self._rows)) or body.training or torch.is_grad_enabled():
            return
        texts = _texts(self._signature, args, kwargs)
        if texts is None:
            return
        if self._keeping:
            self._texts = texts
        elif all(text in self._rows for text in texts):
            self._found = pad_sequence([self._rows[text] for text in texts], batch_first=True)

    def _layer(self, forward: Callable[..., Any], last: bool, *args: Any, **kwargs: Any) -> Any:
        if self._found is not None:  # what a lower layer gives is not looked at by the next; a model may write into it
            hidden = self._found.clone() if last else self._found
            return (hidden,) if self._in_tuple else hidden
        output = forward(*args, **kwargs)
        if last and self._texts is not None:
            self._keep(output)
        return output

    def _keep(self, output: Any) -> None:
        self._in_tuple = isinstance(output, tuple)
        if self._in_tuple and any(rest is not None for rest in output[1:]):
            self._on = False
            return
        hidden = output[0] if self._in_tuple else output
        for text, row in zip(self._texts or (), hidden, strict=True):
            own = row[: len(text) // _ID_BYTES]
            if text not in self._rows and own.nbytes <= self._free:
                self._rows[text] = own.clone()
                self._free -= own.nbytes

    def _end(self, body: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        texts = self._texts
        self._rest()
        if self._checked or output is None or texts is None or not all(text in self._rows for text in texts):
            return
        self._checked, self._keeping = True, False
        try:
            again = body(*args, **kwargs).last_hidden_state
        except Exception:  # whatever a model raises whose layers are not one behind the other
            again = None
        self._keeping = True
        self._on = again is not None and all(
            same_numbers(here[: len(text) // _ID_BYTES].float(), there[: len(text) // _ID_BYTES].float())
            for text, here, there in zip(texts, again, output.last_hidden_state, strict=True)
        )


_ID_BYTES = torch.int64.itemsize


def _texts(signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[bytes] | None:
    """The token ids of each row, int64; None where more is asked than a plain pass over rows padded on the right."""
    given = dict(signature.bind(*args, **kwargs).arguments)
    given |= given.pop("kwargs", {})
    plain = {name: value for name, value in given.items() if not (value is None or value is False)}
    plain.pop("return_dict", None)
    if plain.keys() != {"input_ids", "attention_mask"}:
        return None
    ids, mask = plain["input_ids"].cpu(), plain["attention_mask"].cpu().bool()
    if ids.shape != mask.shape:
        return None
    lengths = mask.sum(1)
    if not lengths.numel() or int(lengths.max()) < ids.shape[1]:
        return None  # columns that all rows pad would be missing in what is put together
    if not torch.equal(mask, torch.arange(ids.shape[1]) < lengths[:, None]):
        return None
    return [row[:length].numpy().tobytes() for row, length in zip(ids.long(), lengths.tolist(), strict=True)]
