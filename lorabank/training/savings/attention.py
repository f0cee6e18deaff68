"""Attentions of transformers that compute something else while a model is trained.

transformers lets a model ask any function of a registry for its attentions
(https://huggingface.co/docs/transformers/attention_interface). The one here calls what a saving gives, around
PyTorch's fused attention; the model's masks stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lorabank.core.errors import IncompatibleError

_NAME, _USUAL = "lorabank", "sdpa"

Result = tuple[Tensor, None]
"""The output ``[n, queries, heads, d]``, and no weights."""


class Attend(Protocol):
    """An attention."""

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, /, **given: Any
    ) -> Result:
        """What an attention gives.

        Args:
            module: The layer that asks.
            query: ``[n, heads, queries, d]``.
            key: ``[n, heads of keys, keys, d]``.
            value: As the keys.
            mask: Bool, true where a query sees a key, or what is added to the logits; ``[n, 1, queries, keys]`` or
                broadcast to it. None for all keys, or in a causal model those up to the query.
            given: What else transformers gives, as ``scaling`` and ``position_bias`` (added to the logits).
        """


class Around(Protocol):
    """An attention that has the usual one at hand."""

    def __call__(
        self,
        usual: Attend,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None,
        /,
        **given: Any,
    ) -> Result:
        """As `Attend`."""


_changed: WeakKeyDictionary[nn.Module, Around] = WeakKeyDictionary()


def fixed_attention(model: PreTrainedModel) -> IncompatibleError | None:
    """Why the attentions of a model cannot be replaced: they are its own and ask no registry. None where they can."""
    own = model.config._attn_implementation
    if own == _USUAL and model._can_set_attn_implementation():
        return None
    return IncompatibleError(
        f"{type(model).__name__} computes its attention by itself ({own}), where nothing can be changed",
        hint="choose another --saving, or none",
        unchanged="nothing was changed",
    )


def replace_attention(model: PreTrainedModel, around: Around) -> Callable[[], None]:
    """Let the attentions of a model, in place, compute something else.

    Returns:
        What takes it off again.

    Raises:
        IncompatibleError: See `fixed_attention`.
    """
    if refusal := fixed_attention(model):
        raise refusal
    AttentionInterface.register(_NAME, _attend)
    AttentionMaskInterface.register(_NAME, sdpa_mask)
    for module in model.modules():
        _changed[module] = around
    model.set_attn_implementation(_NAME)
    return partial(_restore, model)


def _restore(model: PreTrainedModel) -> None:
    model.set_attn_implementation(_USUAL)
    for module in model.modules():
        _changed.pop(module, None)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **given: Any
) -> Result:
    usual: Any = sdpa_attention_forward
    return _changed[module](usual, module, query, key, value, attention_mask, **given)
