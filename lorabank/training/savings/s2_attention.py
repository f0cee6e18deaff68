r"""Shifted sparse attention of LongLoRA (ICLR 2024, arXiv 2309.12307), for causal language models, in training alone.

The T tokens of a text are cut into groups of G. Half of the heads attend inside of each group; the other half do so in
groups that begin G / 2 tokens later, so that what one half separates the other one joins:

    head in the first half     query i sees keys j <= i  with  floor(i / G) = floor(j / G)
    head in the second half    query i sees keys j <= i  with  floor((i - G/2) / G) = floor((j - G/2) / G)

That costs G / T of a whole attention. At inference attention is whole. The paper's code rolls the second half of the
heads by G / 2 and takes the causal mask of positions in a group, so that in the group around the seam the first tokens
see the last ones of the text, which come behind them; here they do not, as the equation says.

Tokens are counted with the padding in front of a text. Each batch's longest text is T, and G is ``ratio T``, rounded
up to an even number; a text of at most ``shortest`` tokens is read whole. LongLoRA's embeddings and norms, which it
trains as well, are not part of an adapter.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorabank.core.errors import IncompatibleError
from lorabank.core.settings import setting
from lorabank.training.savings.base import Saving

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from lorabank.training.context import TrainContext
    from lorabank.training.layers.attaching import Attached
    from lorabank.training.savings.attention import Attend, Result


@dataclass(frozen=True)
class S2Attention(Saving):
    """Every head attends within groups of tokens while training, half of them shifted by half a group."""

    paper: ClassVar[str | None] = "LongLoRA, arXiv 2309.12307"
    attends: ClassVar[bool] = True

    ratio: float = setting(0.25, "Tokens of a group, as a share of the batch's longest text.", gt=0, le=1)
    shortest: int = setting(64, "Texts of at most so many tokens are read whole.", ge=0)

    def refusal(self, model: PreTrainedModel, adapted: Collection[str] = ()) -> IncompatibleError | None:
        """The model is not a causal decoder with rotary positions, bounds its logits, or has its own attention."""
        from lorabank.training.savings.attention import fixed_attention  # `lorabank methods` needs no transformers

        config, problem = model.config.get_text_config(), ""
        rotary = getattr(config, "rope_parameters", None) or getattr(config, "rope_theta", None)
        if not rotary or model.config.is_encoder_decoder or not _is_causal(model):
            problem = "is not a causal decoder with rotary positions, which shifted sparse attention is for"
        elif any(getattr(module, "attn_logit_softcapping", None) is not None for module in model.modules()):
            problem = "bounds the logits of its attention (attn_logit_softcapping), which s2-attention does not"
        if not problem:
            return fixed_attention(model)
        return IncompatibleError(
            f"{type(model).__name__} {problem}",
            hint="leave out --saving s2-attention",
            unchanged="nothing was changed",
        )

    def attach(self, context: TrainContext, attached: Attached) -> Attached:
        """The attentions of the model see groups where gradients are wanted.

        Raises:
            IncompatibleError: See `refusal`.
        """
        from lorabank.training.savings.attention import replace_attention

        if refusal := self.refusal(context.model):
            raise refusal
        restore = replace_attention(context.model, self._attend)
        return replace(attached, ends=(*attached.ends, restore))

    def _attend(
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
        tokens = query.shape[2]
        size = group_size(tokens, self.ratio)
        whole = tokens <= self.shortest or size >= tokens or key.shape[2] != tokens
        other = not getattr(module, "is_causal", True) or given.get("softcap") is not None
        if not torch.is_grad_enabled() or whole or other:
            return usual(module, query, key, value, mask, **given)
        key, value = (_for_heads(one, query.shape[1]) for one in (key, value))
        half = query.shape[1] // 2
        seen = _seen(mask, len(query), tokens, query.device)
        more = {"scale": given.get("scaling"), "dropout_p": given.get("dropout", 0.0)}
        parts = [
            _grouped(query[:, heads], key[:, heads], value[:, heads], seen, size, before, more)
            for heads, before in ((slice(0, half), 0), (slice(half, None), size // 2))
        ]
        return torch.cat(parts, dim=1).transpose(1, 2).contiguous(), None


def _is_causal(model: nn.Module) -> bool:
    """Whether some attention of a model is causal, or none says that it is not."""
    said = [bool(module.is_causal) for module in model.modules() if hasattr(module, "is_causal")]
    return any(said) or not said


def group_size(tokens: int, ratio: float) -> int:
    """Tokens of a group: even, at least 2."""
    return max(2, 2 * -int(-ratio * tokens // 2))


def _for_heads(one: Tensor, heads: int) -> Tensor:
    """Keys or values of fewer heads ``[n, h, t, d]``, each repeated for the queries that share it."""
    return one if one.shape[1] == heads else one.repeat_interleave(heads // one.shape[1], dim=1)


def _grouped(
    query: Tensor, key: Tensor, value: Tensor, seen: Tensor, size: int, before: int, more: dict[str, Any]
) -> Tensor:
    """Attention inside of groups ``[n, h, t, d]``, the first of which ends ``before`` tokens behind the start."""
    n, heads, tokens, d = query.shape
    front = (size - before) % size
    behind = -(front + tokens) % size
    groups = (front + tokens + behind) // size

    def cut(one: Tensor) -> Tensor:
        """``[n * groups, h, size, d]``, zeros in front and behind."""
        padded = F.pad(one, (0, 0, front, behind)).reshape(n, heads, groups, size, one.shape[-1])
        return padded.transpose(1, 2).reshape(n * groups, heads, size, one.shape[-1])

    whole = F.pad(seen, (front, behind, front, behind))
    blocks = whole.reshape(n, groups, size, groups, size).diagonal(dim1=1, dim2=3).permute(0, 3, 1, 2)
    # what is padded in front and behind sees itself: a row of nothing would not be a number
    blocks = blocks | torch.eye(size, dtype=torch.bool, device=query.device)
    out = F.scaled_dot_product_attention(
        cut(query), cut(key), cut(value), blocks.reshape(n * groups, 1, size, size), **more
    )
    joined = out.reshape(n, groups, heads, size, d).transpose(1, 2).reshape(n, heads, groups * size, d)
    return joined[:, :, front : front + tokens]


def _seen(mask: Tensor | None, n: int, tokens: int, device: torch.device) -> Tensor:
    """Which keys a query sees of a whole attention, bool ``[n, tokens, tokens]``."""
    if mask is None:
        causal = torch.ones(tokens, tokens, dtype=torch.bool, device=device).tril()
        return causal.expand(n, tokens, tokens)
    seen = mask if mask.dtype == torch.bool else mask > torch.finfo(mask.dtype).min / 2
    return seen[:, 0].expand(n, tokens, tokens)
