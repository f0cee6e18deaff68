from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from lorabank.algebra.stack import AdapterStack
from lorabank.core.errors import IncompatibleError
from lorabank.models.bases.loading import describe_base
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.tasks.heads import build_head, put_head
from lorabank.training.layers.layer import fold
from tests.unit.training.plain import plain_layers

QUERY, VALUE = "bert.encoder.layer.0.attention.self.query", "bert.encoder.layer.1.attention.self.value"
MODULES = {QUERY: (32, 32), VALUE: (32, 32)}


@pytest.fixture
def base(make_base) -> OpenBase:
    return OpenBase(describe_base(resolve_base(str(make_base("bert")))))


def test_what_a_training_does_to_its_model_is_not_in_the_next(base: OpenBase, make_adapter) -> None:
    """Weights, modules, head, mode and config are those of the files; the weights lie in memory once."""
    trained = base.load()
    fold(trained.model, AdapterStack.build({"old": make_adapter(MODULES, 2, 8.0, seed=1)}))
    plain_layers(trained.model, list(MODULES), r=2, lora_alpha=4.0)
    put_head(trained.model, build_head(trained.model, trained.head_modules, 7, seed=0))
    trained.model.train()
    trained.model.register_forward_hook(lambda *_: None)
    fresh = base.load()
    plain = AutoModelForSequenceClassification.from_pretrained(base.record.name)
    assert [(n, type(m)) for n, m in fresh.model.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    files = load_file(f"{base.record.name}/model.safetensors")
    body = {name: value for name, value in fresh.model.bert.state_dict().items() if "pooler" not in name}
    assert body.keys() <= files.keys() | {name.removeprefix("bert.") for name in files}
    for name, value in body.items():
        assert torch.equal(value, files[name if name in files else f"bert.{name}"])
    assert not fresh.model.training
    assert not any(parameter.requires_grad for parameter in fresh.model.parameters())
    assert fresh.model.config.num_labels == 2
    assert not fresh.model._forward_hooks
    own = trained.model.bert.embeddings.word_embeddings.weight
    assert fresh.model.bert.embeddings.word_embeddings.weight.data_ptr() == own.data_ptr()
    query = trained.model.get_submodule(QUERY).base.weight
    assert not torch.equal(fresh.model.get_parameter(f"{QUERY}.weight"), query)


def test_weights_that_were_let_go_are_loaded_again(base: OpenBase) -> None:
    kept = base.load().model.get_input_embeddings().weight
    assert base.load().model.get_input_embeddings().weight is kept
    base.let_go()
    again = base.load().model.get_input_embeddings().weight
    assert again is not kept
    assert torch.equal(again, kept)


def test_another_dtype_is_loaded_in_the_place_of_the_first(base: OpenBase) -> None:
    whole = base.load().model.get_input_embeddings().weight
    half = base.load(dtype="bfloat16").model.get_input_embeddings().weight
    assert half.dtype == torch.bfloat16
    assert torch.equal(half, whole.bfloat16())
    assert base.load().model.get_input_embeddings().weight.dtype == torch.float32


def test_all_models_share_one_tokenizer(base: OpenBase) -> None:
    tokenizer = base.tokenizer
    assert base.load().tokenizer is tokenizer
    assert base.load(dtype="bfloat16").tokenizer is tokenizer


def test_files_that_changed_are_refused_when_they_are_read(base: OpenBase, make_base) -> None:
    other = OpenBase(base.record._replace(fingerprint="0" * 64))
    with pytest.raises(IncompatibleError, match="other weights"):
        other.load()
    assert isinstance(base.load().model, nn.Module)
