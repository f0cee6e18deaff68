"""A base that cannot do what a task asks of it is refused in one line, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lorabank.core.errors import IncompatibleError
from lorabank.models.bases.loading import LoadedBase
from lorabank.models.mixing.trial import try_base
from lorabank.models.tasks.classification import Classification

WORDS = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijkl"]
SMALL = {
    "vocab_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
REFORMER = {
    "vocab_size": 16, "hidden_size": 16, "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [8, 8],
    "attn_layers": ["local"], "attention_head_size": 8, "num_attention_heads": 2, "local_attn_chunk_length": 4,
    "feed_forward_size": 16, "max_position_embeddings": 64,
}  # fmt: skip
FUNNEL = {"vocab_size": 16, "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 16, "block_sizes": [1, 1, 1]}


def base(config: Any) -> LoadedBase:
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    config.pad_token_id = 0
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    return LoadedBase(model, tokenizer, ("classifier",), 64)


def attempt(loaded: LoadedBase, *, training: bool = True) -> None:
    encode = Classification().encode
    texts = ["a b c d e f g", "a b c d e", "a b c d e f"]
    examples = encode(loaded.tokenizer, texts, ["x", "y", "x"], labels=("x", "y"), template=None, max_length=64)
    try_base(loaded, Classification(), examples, "tiny", training=training)


UNABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "lengths in training": (
        lambda: transformers.ReformerConfig(**REFORMER),
        r"'tiny' fails where it learns from texts of 3 to 9 tokens: If training, sequence length 9 has to be",
    ),
    "short texts": (lambda: transformers.FunnelConfig(**FUNNEL), r"'tiny' fails where it reads texts of 3 tokens: "),
    "a language": (
        lambda: transformers.XmodConfig(**SMALL, languages=["en", "de"]),
        r"'tiny' fails where it reads texts of 3 tokens: Input language unknown",
    ),
}


@pytest.mark.parametrize("what", UNABLE)
def test_what_a_base_cannot_do_is_said_in_one_line(what: str) -> None:
    config, message = UNABLE[what]
    with pytest.raises(IncompatibleError, match=message) as error:
        attempt(base(config()))
    assert "\n" not in str(error.value)
    assert error.value.hint == "choose another model: --base"


def test_a_base_that_is_not_trained_need_not_be_able_to(caplog: pytest.LogCaptureFixture) -> None:
    attempt(base(transformers.ReformerConfig(**REFORMER)), training=False)


def test_a_damaged_weight_is_found_before_training() -> None:
    loaded = base(transformers.BertConfig(**SMALL))
    with torch.no_grad():
        loaded.model.bert.encoder.layer[0].output.dense.weight[0, 0] = torch.nan
    with pytest.raises(IncompatibleError, match="its answers are not finite"):
        attempt(loaded)


@pytest.mark.parametrize("kind", [transformers.BertConfig, transformers.BigBirdConfig])
def test_an_able_base_stays_as_it_was(kind: Any) -> None:
    loaded = base(kind(**SMALL))
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    attention = getattr(loaded.model.base_model, "attention_type", None)
    state = torch.get_rng_state()
    attempt(loaded)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in loaded.model.modules())
    assert getattr(loaded.model.base_model, "attention_type", None) == attention
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())


def test_what_the_machine_lacks_is_not_the_base_s_fault() -> None:
    loaded = base(transformers.BertConfig(**SMALL))

    def full(*args: object, **kwargs: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: not enough memory")

    loaded.model.bert.forward = full
    with pytest.raises(RuntimeError, match="not enough memory"):
        attempt(loaded)
