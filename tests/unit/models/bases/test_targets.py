from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

from lorabank.core.errors import ConfigError, IncompatibleError
from lorabank.models.bases.loading import describe_base, load_base
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.bases.targets import find_targets

QUERY_VALUE = {
    "bert": ["bert.encoder.layer.{}.attention.self.query", "bert.encoder.layer.{}.attention.self.value"],
    "roberta": ["roberta.encoder.layer.{}.attention.self.query", "roberta.encoder.layer.{}.attention.self.value"],
    "distilbert": [
        "distilbert.transformer.layer.{}.attention.q_lin",
        "distilbert.transformer.layer.{}.attention.v_lin",
    ],
    "llama": ["model.layers.{}.self_attn.q_proj", "model.layers.{}.self_attn.v_proj"],
    "gpt_neox": ["gpt_neox.layers.{}.attention.query_key_value"],
}
# Linear layers of the two blocks, and BERT's pooler, which the saved body brings; RoBERTa's classifier has none.
LINEAR = {"bert": 13, "roberta": 12, "distilbert": 12, "llama": 14, "gpt_neox": 8}


def test_auto_and_all_linear(make_base, kind: str) -> None:
    base = load_base(describe_base(resolve_base(str(make_base(kind)))))
    expected = tuple(name.format(layer) for layer in range(2) for name in QUERY_VALUE[kind])
    assert find_targets(base.model, "auto", base.head_modules).names == expected
    every = find_targets(base.model, "all-linear", base.head_modules).names
    assert len(every) == LINEAR[kind]
    assert set(expected) <= set(every)
    assert not any(name.startswith(base.head_modules) for name in every)


def test_a_pooler_that_belongs_to_the_head_is_left_alone(make_base) -> None:
    folder = make_base("bert", auto=transformers.AutoModelForMaskedLM)
    base = load_base(describe_base(resolve_base(str(folder))))
    assert "bert.pooler.dense" not in find_targets(base.model, "all-linear", base.head_modules).names


T5_ATTENTION = [
    *(f"encoder.block.{layer}.layer.0.SelfAttention" for layer in range(2)),
    *(
        f"decoder.block.{layer}.layer.{part}"
        for layer in range(2)
        for part in ("0.SelfAttention", "1.EncDecAttention")
    ),
]
LANGUAGE_MODELS = {
    "llama": (QUERY_VALUE["llama"], 14),
    "qwen2": (QUERY_VALUE["llama"], 14),
    "gpt_neox": (QUERY_VALUE["gpt_neox"], 8),
    # Encoder, decoder and the attention between them, as O-LoRA adapts T5; all in all 2 * (4 + 2) + 2 * (4 + 4 + 2).
    "t5": ([f"{module}.{name}" for module in T5_ATTENTION for name in ("q", "v")], 32),
}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_language_models(make_language_model, kind: str, tied: bool) -> None:
    base = load_base(describe_base(resolve_base(str(make_language_model(kind, tie_word_embeddings=tied)))))
    names, count = LANGUAGE_MODELS[kind]
    expected = list(dict.fromkeys(name.format(layer) for layer in range(2) for name in names))
    assert list(find_targets(base.model, "auto", ()).names) == expected
    every = find_targets(base.model, "all-linear", ()).names
    assert len(every) == count
    assert set(expected) <= set(every)


@pytest.mark.parametrize("kind", LANGUAGE_MODELS)
def test_all_linear_are_the_layers_that_peft_adapts(make_language_model, kind: str) -> None:
    import peft

    base = load_base(describe_base(resolve_base(str(make_language_model(kind)))))
    ours = find_targets(base.model, "all-linear", ()).names
    task_type = "SEQ_2_SEQ_LM" if kind == "t5" else "CAUSAL_LM"
    theirs = peft.get_peft_model(base.model, peft.LoraConfig(task_type=task_type, target_modules="all-linear"))
    adapted = [name for name, module in theirs.get_base_model().named_modules() if hasattr(module, "lora_A")]
    assert list(ours) == adapted


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_the_layer_that_makes_the_words_is_never_adapted(make_language_model, kind: str) -> None:
    base = load_base(describe_base(resolve_base(str(make_language_model(kind)))))
    assert isinstance(base.model.lm_head, nn.Linear)
    with pytest.raises(ConfigError, match="target_modules 'lm_head': no module that can be adapted has that name"):
        find_targets(base.model, "lm_head", ())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.subquery, self.norm = nn.Linear(2, 2), nn.Linear(2, 2), nn.LayerNorm(2)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = Block(), Block()
        self.classifier, self.classifier2 = nn.Linear(2, 2), nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("query", ["first.query", "second.query"]),
        ("second.query, subquery", ["first.subquery", "second.query", "second.subquery"]),
        ("classifier2", ["classifier2"]),
    ],
)
def test_names_are_whole_words(spec: str, expected: list[str]) -> None:
    assert list(find_targets(Model(), spec, ("classifier",)).names) == expected


@pytest.mark.parametrize(("spec", "named"), [("query,keys", "keys"), ("norm", "norm"), ("classifier", "classifier")])
def test_names_that_fit_nothing(spec: str, named: str) -> None:
    with pytest.raises(ConfigError, match=rf"target_modules '{named}': .*there are classifier2, query, subquery$"):
        find_targets(Model(), spec, ("classifier",))


def test_no_names() -> None:
    with pytest.raises(ConfigError, match="there are"):
        find_targets(Model(), " , ", ())


def test_projections_of_an_unknown_name() -> None:
    with pytest.raises(IncompatibleError, match="query and value") as caught:
        find_targets(Model(), "auto", ())
    assert "query, subquery" in str(caught.value.hint)


def test_a_model_without_linear_layers() -> None:
    with pytest.raises(IncompatibleError, match="Sequential has no linear layers to adapt"):
        find_targets(nn.Sequential(nn.LayerNorm(2)), "auto", ())


@pytest.mark.parametrize("spec", ["auto", "all-linear"])
@pytest.mark.parametrize("kind", QUERY_VALUE)
def test_the_lower_layers_stay_as_they_are(make_base, kind: str, spec: str) -> None:
    """What is left is what names the second of the two layers; a pooler is in none."""
    base = load_base(describe_base(resolve_base(str(make_base(kind)))))
    every = find_targets(base.model, spec, base.head_modules).names
    found = find_targets(base.model, spec, base.head_modules, first_layer=1).names
    assert found == tuple(name for name in every if ".1." in name)
    assert found
    assert find_targets(base.model, spec, base.head_modules, first_layer=0).names == every


def test_encoder_and_decoder_are_counted_each_by_itself(make_language_model) -> None:
    model = load_base(describe_base(resolve_base(str(make_language_model("t5"))))).model
    found = find_targets(model, "auto", (), first_layer=1).names
    expected = [f"{module}.{name}" for module in T5_ATTENTION if ".block.1." in module for name in ("q", "v")]
    assert list(found) == expected


@pytest.mark.parametrize(
    ("spec", "first_layer", "problem"),
    [
        ("auto", 2, "first_layer 2 .*'auto'.*the model has 2 layers, counted from 0"),
        ("bert.encoder.layer.0.attention.self.key", 1, "first_layer 1 .*layer.0.attention.self.key.*none in those"),
    ],
)
def test_no_layer_is_left(make_base, spec: str, first_layer: int, problem: str) -> None:
    base = load_base(describe_base(resolve_base(str(make_base("bert")))))
    with pytest.raises(ConfigError, match=problem) as caught:
        find_targets(base.model, spec, base.head_modules, first_layer)
    assert caught.value.hint == "--first-layer 1"


# --------------------------------------------------------------------------------- layers that get no adapter


class Router(nn.Linear):
    """Llama 4's and PhiMoE's routers return two tensors."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:  # type: ignore[override]
        scores = super().forward(x)
        return scores, scores.sigmoid()


class Grouped(nn.Linear):
    """One tensor of the right shape, and another function of the input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flip(-1))


class Spelled(nn.Linear):
    """Falcon writes the product out."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = x @ self.weight.T
        return out if self.bias is None else out + self.bias


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.plain, self.spelled = nn.Linear(4, 4), Spelled(4, 4, bias=False)
        self.router, self.grouped = Router(4, 4), Grouped(4, 4)
        self.replaced = nn.Linear(4, 4)
        self.replaced.forward = lambda x: x  # type: ignore[method-assign]
        self.fused, self.unused = nn.Linear(4, 4), nn.Linear(4, 4)
        self.config = SimpleNamespace(is_encoder_decoder=False)

    @property
    def base_model(self) -> Body:
        return self

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.plain(self.spelled(input_ids[..., None].expand(-1, -1, 4).to(self.plain.weight.dtype)))
        return x @ self.fused.weight.T


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_layers_that_an_adapter_cannot_stand_on_are_left_out_and_named(device: str) -> None:
    model = Body().to(device)
    before, state = dict(model.named_modules()), torch.get_rng_state()
    found = find_targets(model, "all-linear", ())
    assert found.names == ("plain", "spelled", "unused")
    assert set(found.left_out) == {"router", "grouped", "replaced", "fused"}
    assert found.notice.startswith("4 modules get no adapter: router (Router is not a plain torch.nn.Linear); ")
    assert "fused (the model's code reads its weight and never calls it)" in found.notice
    assert dict(model.named_modules()) == before
    assert torch.equal(torch.get_rng_state(), state)
    assert find_targets(model, "plain,unused", ()).notice is None


@pytest.mark.parametrize("name", ["router", "grouped", "fused"])
def test_a_name_that_means_only_such_layers_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(IncompatibleError, match=rf"target_modules {name} cannot be adapted: {name} \(") as error:
        find_targets(Body(), f"plain,{name}", ())
    assert error.value.hint == "--target-modules with some of: plain, spelled, unused"


def test_a_model_without_linear_layers_says_what_it_has() -> None:
    with pytest.raises(IncompatibleError, match=r"outside its head: 0 and others \(Router is not a plain"):
        find_targets(nn.Sequential(Router(4, 4), Router(4, 4)), "auto", ())


def test_falcon_spells_its_product_out_and_is_adapted() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 8}
    model = transformers.AutoModelForCausalLM.from_config(transformers.FalconConfig(**sizes))
    found = find_targets(model, "auto", ())
    assert found.names == ("transformer.h.0.self_attention.query_key_value",)


def test_mambas_step_sizes_are_computed_past_their_layer() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "state_size": 4, "vocab_size": 8}
    with torch.device("meta"):
        planned = transformers.AutoModelForCausalLM.from_config(transformers.MambaConfig(**sizes))
    model = transformers.AutoModelForCausalLM.from_config(transformers.MambaConfig(**sizes))
    found, expected = find_targets(planned, "all-linear", ()), find_targets(model, "all-linear", ())
    assert (found.names, found.not_adapted) == (expected.names, expected.not_adapted)
    assert set(found.left_out) == {"backbone.layers.0.mixer.dt_proj"}
