"""Facts of a model are read from the model: widths, limits, bodies, and how a decoder is fed."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional

from lorabank.core.errors import IncompatibleError
from lorabank.models.bases.body import body_of, encoder_of
from lorabank.models.bases.loading import _share_padding, find_head_modules, input_limit
from lorabank.models.mixing.features import extract_features
from lorabank.models.tasks.decoder_inputs import decoder_inputs
from lorabank.models.tasks.seq2seq_lm import Seq2SeqLM

LETTERS = ["<pad>", "<s>", "</s>", "<unk>", *"abcdefghijklmnop"]
SIZES = {
    "vocab_size": 24, "hidden_size": 32, "d_model": 32, "num_hidden_layers": 2, "n_layer": 2, "num_attention_heads": 4,
    "n_head": 4, "intermediate_size": 48, "d_inner": 48, "ffn_dim": 48, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
CLASSIFIER, CAUSAL = transformers.AutoModelForSequenceClassification, transformers.AutoModelForCausalLM
SEQ2SEQ = transformers.AutoModelForSeq2SeqLM


@pytest.fixture(scope="module")
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({token: i for i, token in enumerate(LETTERS)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def tiny(name: str, auto: Any, **special: Any) -> Any:
    kind = getattr(transformers, f"{name}Config")
    known = {field for c in kind.__mro__ for field in inspect.get_annotations(c)}
    sizes = {field: value for field, value in SIZES.items() if field in known and field not in special}
    renamed = [field for field in sizes if kind.attribute_map.get(field) in sizes]
    for field in renamed:
        del sizes[field]
    torch.manual_seed(0)
    return auto.from_config(kind(**{**sizes, **special})).eval()


REFORMER = {
    "axial_pos_shape": [8, 8], "axial_pos_embds_dim": [8, 24], "attn_layers": ["local", "lsh"], "num_buckets": 2,
    "attention_head_size": 8, "local_attn_chunk_length": 4, "lsh_attn_chunk_length": 4, "feed_forward_size": 48,
    "hash_seed": 0, "is_decoder": False,
}  # fmt: skip
BODIES: dict[str, tuple[Any, int, str]] = {
    "BERT": (lambda: tiny("Bert", CLASSIFIER), 32, "bert"),
    "OPT-350m projects its words": (
        lambda: tiny("OPT", CLASSIFIER, word_embed_proj_dim=16, do_layer_norm_before=False), 16, "model"
    ),
    "Reformer holds two states": (lambda: tiny("Reformer", CLASSIFIER, **REFORMER), 64, "reformer"),
    "Llama 4 names another body": (
        lambda: tiny("Llama4Text", CAUSAL, num_key_value_heads=2, head_dim=8, num_local_experts=2), 32, "model"
    ),
    "T5 reads with its encoder": (lambda: tiny("T5", SEQ2SEQ, d_kv=8, d_ff=48, num_layers=1), 32, "encoder"),
}  # fmt: skip
TEXTS = ["a b c", "d", "e f g h i j k", "", "l m n o p a b c d e f", "a c b"]


@pytest.mark.parametrize("which", BODIES)
def test_features_are_the_body_s_own(tokenizer, which: str) -> None:
    build, width, name = BODIES[which]
    model = build()
    # Reformer fills rows up to whole chunks, which its neighbours then see.
    found = extract_features(model, tokenizer, TEXTS, max_length=64, batch_size=1 if "Reformer" in which else 8)
    assert found.shape == (len(TEXTS), width)
    assert encoder_of(model) is model.get_submodule(name)
    for text, feature in zip(TEXTS, found, strict=True):
        if not text:
            assert not feature.any()
            continue
        with torch.no_grad():
            hidden = model.get_submodule(name)(input_ids=torch.tensor([tokenizer(text)["input_ids"]]))
        mean = hidden.last_hidden_state[0].double().mean(0)
        np.testing.assert_allclose(feature, functional.normalize(mean, dim=0).numpy(), atol=2e-5)
    for nothing in ([], [""]):
        assert extract_features(model, tokenizer, nothing, max_length=64).shape == (len(nothing), width)


def test_a_body_without_a_hidden_state_for_each_token_is_refused(tokenizer) -> None:
    model = tiny("Bert", CLASSIFIER)
    model.bert.forward = lambda **_: SimpleNamespace()
    pooling = tiny("Funnel", CLASSIFIER, block_sizes=[1, 1])
    for one in (model, pooling):
        with pytest.raises(IncompatibleError, match=f"{type(one).__name__} gives no last hidden state of every token"):
            extract_features(one, tokenizer, ["a b c d e f g"], max_length=8)


def test_the_head_is_what_stands_beside_the_body() -> None:
    """Also where the class names another attribute than the one that holds its body."""
    model = tiny("Bert", CLASSIFIER)
    type_of = type("Renamed", (type(model),), {"base_model_prefix": "elsewhere"})
    model.__class__ = type_of
    assert body_of(model) is model.bert
    assert find_head_modules(model, set(), "x") == ("classifier",)
    fresh = {"bert.pooler.dense.weight", "classifier.weight"}
    assert find_head_modules(model, fresh, "x") == ("bert.pooler", "classifier")


@pytest.mark.parametrize(
    ("name", "special", "own", "expected"),
    [
        ("XLNet", {"d_inner": 48}, 10**30, None),  # its config says -1
        ("XLNet", {"d_inner": 48}, 512, 512),
        ("Bert", {}, 10**30, 64),
        ("Bert", {}, 32, 32),
        ("Bert", {}, 0, 64),
        ("Bert", {}, -1, 64),
        ("Canine", {}, 10**30, 64),
    ],
)
def test_a_limit_below_one_is_none(name: str, special: dict[str, Any], own: int, expected: int | None) -> None:
    model = tiny(name, CLASSIFIER, **special)
    assert input_limit(model, SimpleNamespace(model_max_length=own)) == expected  # type: ignore[arg-type]


def test_a_model_without_a_table_of_embeddings_is_refused(tokenizer) -> None:
    with pytest.raises(IncompatibleError, match=r"'x' \(CanineForSequenceClassification\) has no table of embeddings"):
        _share_padding(tiny("Canine", CLASSIFIER), tokenizer, "x")


# ----------------------------------------------------------------------------------------------------- decoders

LAYERS = {
    "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 2,
}  # fmt: skip
DECODERS = {
    "M2M100": LAYERS,
    "Blenderbot": LAYERS,
    "BlenderbotSmall": LAYERS,
    "NllbMoe": {**LAYERS, "num_experts": 2, "encoder_sparse_step": 1, "decoder_sparse_step": 1},
    "Marian": LAYERS,
    "T5": {"d_kv": 8, "d_ff": 48, "num_layers": 1, "decoder_start_token_id": 0},
}


@pytest.mark.parametrize("name", DECODERS)
def test_a_decoder_reads_what_it_predicts_one_place_later(tokenizer, name: str) -> None:
    """Some classes bring a method for it, others none; training and scoring feed all of them alike."""
    model = tiny(name, SEQ2SEQ, **DECODERS[name])
    start = model.config.decoder_start_token_id
    rows = [{"prompt": [5, 6, 2], "completion": [7, 8, 9, 2]}, {"prompt": [5, 2], "completion": [7, 2]}]
    batch = Seq2SeqLM().collate(tokenizer, rows)
    assert decoder_inputs(model, batch["labels"]).tolist() == [[start, 7, 8, 9], [start, 7, 2, 0]]
    with torch.no_grad():
        found = Seq2SeqLM().loss(model, batch)
        losses = []
        for row in rows:
            decoder = torch.tensor([[start, *row["completion"][:-1]]])
            logits = model(input_ids=torch.tensor([row["prompt"]]), decoder_input_ids=decoder).logits[0]
            losses.append(functional.cross_entropy(logits, torch.tensor(row["completion"]), reduction="none"))
    torch.testing.assert_close(found, torch.cat(losses).mean())


@pytest.mark.parametrize("place", ["config", "generation_config", None])
def test_where_the_start_token_stands(place: str | None) -> None:
    model = tiny("M2M100", SEQ2SEQ, **LAYERS)
    for holder in ("config", "generation_config"):
        getattr(model, holder).decoder_start_token_id = 5 if holder == place else None
    targets = torch.tensor([[7, 2, -100]])
    if place is None:
        with pytest.raises(IncompatibleError, match="which token its decoder starts from"):
            decoder_inputs(model, targets)
    else:
        assert decoder_inputs(model, targets).tolist() == [[5, 7, 2]]
