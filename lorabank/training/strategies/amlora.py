"""AM-LoRA online (arXiv 2409.19611): the selector and the new adapter learn together, older adapters are frozen.

The mathematics stand in `lorabank.training.online_attention`. The state after task t is the attention over all t
adapters; it is recorded with the adapter. The first task has nothing to select from and is a plain adapter.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from lorabank.algebra.stack import AdapterStack
from lorabank.core.errors import ConfigError
from lorabank.core.settings import setting
from lorabank.core.states import SELECTOR
from lorabank.models.gates.attention_token import Selector
from lorabank.training.context import TrainContext
from lorabank.training.layers.attaching import Attached
from lorabank.training.online_attention import SELECTOR as SUBMODULE
from lorabank.training.online_attention import SelectorL1, attach_attended_adapter
from lorabank.training.strategies.base import Strategy
from lorabank.training.variants.base import Parametrization


@dataclass(frozen=True)
class _AMLoRA(Strategy):
    lambda_l1: float = setting(1e-3, "Weight of the L1 norm of the selector's dense parameters.", ge=0)

    def attach(self, context: TrainContext, parametrization: Parametrization) -> Attached:
        """The new adapter and a selector that starts from the last one.

        Raises:
            ConfigError: A block of a fused matrix is to be adapted.
        """
        if context.earlier is None:
            return super().attach(context, parametrization)
        if blocks := [site for site in context.sites if site.rows is not None]:
            whole, of = blocks[0].module_name.rpartition(".")[2], "block" if blocks[0].columns is None else "group"
            raise ConfigError(
                f"strategy {self.name!r} weighs adapters on whole matrices; {blocks[0].name} is a {of} of one",
                hint=f"--target-modules {whole}" if of == "block" else f"--target-modules without {whole}",
                unchanged="nothing was changed",
            )
        before = context.objects.get(SELECTOR, ())[-1:]
        layers, selector = attach_attended_adapter(
            context.model,
            parametrization.factors(),
            _on(context.earlier, context.model.device),
            dropout=context.config.lora_dropout,
            warm=load_tensors(before[0].data) if before else None,
            warm_names=before[0].adapters if before else (),
        )
        penalty = SelectorL1(selector)
        return Attached(layers, parametrization, (("l1 of the selector", self.lambda_l1, penalty),))

    def record(self, context: TrainContext, attached: Attached) -> dict[str, bytes]:
        """The selector, over the earlier adapters in order and the new one."""
        selector = getattr(context.model, SUBMODULE, None)
        return {SELECTOR: save_tensors(selector.tensors())} if isinstance(selector, Selector) else {}


def _on(stack: AdapterStack, device: torch.device) -> AdapterStack:
    """The earlier adapters where the model is: unlike those of other strategies they are not folded into it."""
    return AdapterStack(stack.names, {name: factors.to(device) for name, factors in stack.modules.items()})


AMLORA = _AMLoRA(
    "amlora",
    "attended",
    reads=(SELECTOR,),
    about="A new adapter and an attention over it and all earlier ones learn together.",
    paper="AM-LoRA, arXiv 2409.19611",
)
