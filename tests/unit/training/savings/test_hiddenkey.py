"""HiddenKey against plain torch: keys and hidden values that are dropped, and two passes that are held together."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lorabank.core.config import TrainConfig
from lorabank.core.errors import IncompatibleError
from lorabank.training.variants.base import Step
from tests.unit.training.savings.test_savings import IDS, Asking, attached_to, dense, load, loss, mean, tensors


@pytest.mark.parametrize("padded", [False, True])
def test_dropped_keys_are_columns_that_no_query_sees(bases, padded: bool) -> None:
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    dropping = attached_to(load(bases, "llama"), "hiddenkey").parametrization
    query, key, value = tensors(4, 2, 10)
    seen = torch.ones(10, 10, dtype=torch.bool).tril().expand(2, 1, 10, 10).clone()
    if padded:
        seen[1, :, :, :3] = False
        seen[1, 0, range(3), range(3)] = True
    dropping.on = True
    torch.manual_seed(6)
    out, _ = dropping.attend(0.3, sdpa_attention_forward, Asking(2), query, key, value, seen if padded else None)
    torch.manual_seed(6)
    dropped = torch.rand(2, 4, 1, 10) < 0.3
    left = seen & ~dropped
    left = torch.where(left.any(-1, keepdim=True), left, seen)  # all drawn: as if none were
    torch.testing.assert_close(out, dense(query, key, value, left), atol=1e-6, rtol=1e-5)
    assert 0 < int(dropped.sum()) < 80
    with torch.no_grad():
        out, _ = dropping.attend(0.3, sdpa_attention_forward, Asking(2), query, key, value, seen)
    torch.testing.assert_close(out, dense(query, key, value, seen.expand(2, 4, 10, 10)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_two_passes_are_held_together(bases, kind: str) -> None:
    model = load(bases, kind)
    saved = attached_to(model, "hiddenkey", set=("alpha=0.7", "key_dropout=0.3"))
    assert saved.loss is not None
    inputs = {"input_ids": IDS}
    torch.manual_seed(8)
    value = saved.loss(model, inputs)
    torch.manual_seed(8)
    passes: list[Tensor] = []
    for _ in range(2):
        mean(lambda logits, labels, rows: passes.append(logits.double()) or logits.sum(-1), model, inputs)
    one, two = (logits.log_softmax(-1) for logits in passes)
    assert not torch.allclose(one, two)
    kl = lambda p, q: (p.exp() * (p - q)).sum(-1).mean()  # noqa: E731
    expected = -(one[:, 1].mean() + two[:, 1].mean()) / 2 + 0.7 * (kl(one, two) + kl(two, one)) / 2
    torch.testing.assert_close(value.double(), expected, atol=1e-6, rtol=1e-5)
    saved.parametrization.after_loss(Step(1, 2))
    first, again = (model(**inputs, **more(model)).logits for _ in range(2))
    assert torch.equal(first, again)  # a step that is over drops nothing


def more(model: Any) -> dict[str, Tensor]:
    return {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}


def test_hidden_values_are_dropped_by_elements_and_the_rest_scaled(bases) -> None:
    model = load(bases, "llama")
    saved = attached_to(model, "hiddenkey", set=("hidden_dropout=0.25", "key_dropout=0"))
    seen: list[Tensor] = []
    module = model.model.layers[0].mlp.down_proj
    plain = module.register_forward_hook(lambda _, args, out: seen.append(out), prepend=True)
    after = module.register_forward_hook(lambda _, args, out: seen.append(out))
    saved.parametrization.on = True
    model(input_ids=IDS)
    whole, dropped = seen
    kept = dropped != 0
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.75)
    assert 0.6 < float(kept.float().mean()) < 0.9
    plain.remove()
    after.remove()


def test_a_strategy_with_a_loss_of_its_own_is_refused(bases) -> None:
    from dataclasses import replace

    from lorabank.training.savings.hiddenkey import HiddenKey

    model = load(bases, "bert")
    attached = replace(attached_to(model), loss=loss)
    with pytest.raises(IncompatibleError, match="has a loss of its own"):
        HiddenKey().attach(SimpleNamespace(model=model, config=TrainConfig()), attached)
