"""Models whose attentions shifted sparse attention would leave as they are."""

from __future__ import annotations

import pytest
import transformers

from lorabank.core.errors import IncompatibleError
from tests.unit.training.savings.test_savings import attached_to


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("modernbert", "not a causal decoder"), ("gemma2", "bounds the logits of its attention")],
)
def test_attentions_in_which_it_would_change_nothing_are_refused(kind: str, reason: str) -> None:
    sizes = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16}
    sizes |= {"intermediate_size": 48, "num_key_value_heads": 1, "pad_token_id": 0}
    config = transformers.AutoConfig.for_model(kind, **sizes)
    auto = transformers.AutoModelForCausalLM if kind == "gemma2" else transformers.AutoModelForSequenceClassification
    model = auto.from_config(config)
    with pytest.raises(IncompatibleError, match=reason):
        attached_to(model, "s2-attention")
