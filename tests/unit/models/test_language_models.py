"""Bases that were made to write text: what they are described as, and how they are loaded."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import torch
import transformers
from transformers import AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification

from lorabank.core.errors import ConfigError, IncompatibleError
from lorabank.core.task_kinds import DEFAULT_BASE, DEFAULT_LANGUAGE_MODEL
from lorabank.models.bases.architecture import infer_task_type
from lorabank.models.bases.fingerprint import read_json
from lorabank.models.bases.loading import LoadedBase, describe_base, load_base, load_tokenizer
from lorabank.models.bases.resolving import default_base, resolve_base
from lorabank.models.tasks.heads import build_head, put_head

CAUSAL = ("llama", "qwen2", "gpt_neox")
CLASSES = {
    "llama": transformers.LlamaForCausalLM,
    "qwen2": transformers.Qwen2ForCausalLM,
    "gpt_neox": transformers.GPTNeoXForCausalLM,
    "t5": transformers.T5ForConditionalGeneration,
}


@pytest.fixture(params=CLASSES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def load(folder: Path, task_type: str = "auto", **options: object) -> LoadedBase:
    return load_base(describe_base(resolve_base(str(folder)), task_type), **options)  # type: ignore[arg-type]


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(read_json(path) | changes))


def test_a_language_model_is_described_as_one(make_language_model, kind: str) -> None:
    folder = make_language_model(kind)
    record = describe_base(resolve_base(str(folder)))
    assert record.task_type == ("SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM")
    assert record.parameters == sum(p.numel() for p in CLASSES[kind].from_pretrained(folder).parameters())
    assert (record.hidden_size, record.dtype, record.quantisation) == (32, "float32", None)
    template = (folder / "chat_template.jinja").read_bytes()
    assert record.chat_template_hash == hashlib.sha256(template).hexdigest()


def test_a_language_model_is_loaded_whole(make_language_model, kind: str) -> None:
    folder = make_language_model(kind)
    base = load(folder)
    theirs = CLASSES[kind].from_pretrained(folder).eval()
    assert type(base.model) is CLASSES[kind]
    assert base.head_modules == ()
    assert not base.model.training
    assert not any(p.requires_grad for p in base.model.parameters())
    ids = torch.tensor([[5, 9, 200, 31]])
    inputs = {"input_ids": ids, "decoder_input_ids": ids[:, :2]} if kind == "t5" else {"input_ids": ids}
    with torch.inference_mode():
        assert torch.equal(base.model(**inputs).logits, theirs(**inputs).logits)


def test_a_language_model_has_a_token_to_pad_with(make_language_model, kind: str) -> None:
    base = load(make_language_model(kind))
    pad = base.tokenizer.pad_token_id
    # Qwen's class of tokenizers brings a pad token of its own; a Llama's end token stands in.
    assert base.tokenizer.pad_token == {"t5": "<pad>", "qwen2": "<|endoftext|>"}.get(kind, "</s>")
    assert base.model.config.pad_token_id == base.model.generation_config.pad_token_id == pad
    assert base.tokenizer.padding_side == "right"


def test_the_tiny_tokenizers_bring_every_text_back(make_language_model, kind: str) -> None:
    tokenizer = load_tokenizer(resolve_base(str(make_language_model(kind))))
    ids = tokenizer("Hé: a\n b").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "Hé: a\n b"
    assert (ids[0] == 0, ids[-1] == 2) == ((False, True) if kind == "t5" else (True, False))
    chat = [{"role": "user", "content": "hi"}]
    assert tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True) == (
        "<s><|user|>\nhi</s>\n<|assistant|>\n"
    )


@pytest.mark.parametrize(
    ("kind", "auto", "expected"),
    [
        ("bert", AutoModel, "SEQ_CLS"),
        ("bert", AutoModelForMaskedLM, "SEQ_CLS"),
        ("llama", AutoModel, "SEQ_CLS"),
        ("llama", AutoModelForSequenceClassification, "SEQ_CLS"),
        ("llama", transformers.AutoModelForCausalLM, "CAUSAL_LM"),
        ("t5", transformers.AutoModelForSeq2SeqLM, "SEQ_2_SEQ_LM"),
        ("t5", AutoModelForSequenceClassification, "SEQ_CLS"),
    ],
)
def test_the_task_type_is_what_the_model_was_made_for(make_base, kind: str, auto: type, expected: str) -> None:
    resolved = resolve_base(str(make_base(kind, auto)))
    assert infer_task_type(resolved) == describe_base(resolved).task_type == expected


def test_an_older_name_of_a_causal_class_is_known(make_base) -> None:
    folder = make_base("llama", transformers.AutoModelForCausalLM)
    config = transformers.GPT2Config(n_embd=32, n_layer=1, n_head=2, architectures=["GPT2LMHeadModel"])
    config.save_pretrained(folder)
    assert infer_task_type(resolve_base(str(folder))) == "CAUSAL_LM"


def test_an_encoder_that_was_made_a_decoder_is_one(make_base) -> None:
    folder = make_base("bert", transformers.AutoModelForCausalLM, is_decoder=True)
    assert describe_base(resolve_base(str(folder))).task_type == "CAUSAL_LM"


@pytest.mark.parametrize(
    ("kind", "wanted", "able"),
    [
        ("bert", "CAUSAL_LM", "SEQ_CLS"),
        ("bert", "SEQ_2_SEQ_LM", "SEQ_CLS"),
        ("llama", "SEQ_2_SEQ_LM", "SEQ_CLS and CAUSAL_LM"),
        ("t5", "CAUSAL_LM", "SEQ_CLS and SEQ_2_SEQ_LM"),
    ],
)
def test_a_model_is_not_used_for_what_it_cannot_do(make_base, kind: str, wanted: str, able: str) -> None:
    resolved = resolve_base(str(make_base(kind)))
    with pytest.raises(IncompatibleError, match=f"can be used for {able}, not for {wanted}$") as caught:
        describe_base(resolved, wanted)
    assert caught.value.hint == "use --task-type SEQ_CLS"


def test_a_language_model_without_all_its_weights_is_refused(make_base, make_language_model) -> None:
    body = make_base("llama", name="body")
    with pytest.raises(IncompatibleError, match=r"no weights of the right shape for lm_head\.weight"):
        load(body, "CAUSAL_LM")
    whole = make_language_model("t5")
    edit_json(whole / "config.json", d_ff=64)
    with pytest.raises(IncompatibleError, match=r"no weights of the right shape for decoder\.block\.0\.layer\.2\."):
        load(whole)


def test_tied_weights_are_not_missing(make_language_model) -> None:
    base = load(make_language_model("llama", tie_word_embeddings=True))
    assert base.model.lm_head.weight is base.model.model.embed_tokens.weight


def test_a_language_model_can_classify(make_language_model, kind: str) -> None:
    base = load(make_language_model(kind), "SEQ_CLS")
    assert base.head_modules == (("classification_head",) if kind == "t5" else ("score",))
    put_head(base.model, build_head(base.model, base.head_modules, 4, seed=1))
    texts = ["a text of one length", "another"]
    with torch.inference_mode():
        padded = base.model(**base.tokenizer(texts, padding=True, return_tensors="pt")).logits
        alone = torch.cat([base.model(**base.tokenizer(text, return_tensors="pt")).logits for text in texts])
    assert padded.shape == (2, 4)
    torch.testing.assert_close(padded, alone, atol=1e-5, rtol=1e-5)


def test_the_longest_text(make_language_model) -> None:
    folder = make_language_model("llama", name="llama", max_position_embeddings=96)
    assert load(folder).max_length == 96
    relative = make_language_model("t5", name="t5")
    assert load(relative).max_length is None
    edit_json(relative / "tokenizer_config.json", model_max_length=512)
    assert load(relative).max_length == 512


def test_the_default_model_of_each_task_type() -> None:
    assert (default_base("auto"), default_base("SEQ_CLS")) == (DEFAULT_BASE, DEFAULT_BASE)
    assert default_base("CAUSAL_LM") == DEFAULT_LANGUAGE_MODEL
    with pytest.raises(ConfigError, match="no default base model for SEQ_2_SEQ_LM") as caught:
        default_base("SEQ_2_SEQ_LM")
    assert "--base" in str(caught.value.hint)


def test_remote_code_is_refused_before_the_task_type_is_told(make_language_model) -> None:
    folder = make_language_model("llama")
    edit_json(folder / "config.json", auto_map={"AutoConfig": "mine.Config"})
    with pytest.raises(IncompatibleError, match="code from elsewhere"):
        infer_task_type(resolve_base(str(folder)))
    assert "auto_map" in read_json(folder / "config.json")
