"""Frozen lower layers computed once: the same bits as full passes, and full passes where anything is unusual."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from lorabank.algebra.stack import AdapterStack
from lorabank.models.answering.base import AnswerForm
from lorabank.models.answering.head_answers import HeadAnswerer
from lorabank.models.bases.loading import describe_base, load_base
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.mixing import prefix
from lorabank.models.mixing.prefix import FrozenPrefix, frozen_layers
from lorabank.models.mixing.runtime import Plan, Runtime
from lorabank.models.tasks.heads import build_head
from lorabank.models.tasks.padding import padding_of

UPPER = {f"bert.encoder.layer.1.attention.self.{part}": (32, 32) for part in ("query", "value")}
TEXTS = ["a b c", "z", "q w e r t y", "n o", "m m m m m m m m m m", "h i j"]


def load(folder) -> nn.Module:
    return load_base(describe_base(resolve_base(str(folder))), device="cpu", dtype="float32").model.eval()


def count(layer: nn.Module) -> Counter:
    """How often the layer is really computed: its first projection is watched."""
    seen: Counter = Counter()
    first = next(module for module in layer.modules() if isinstance(module, nn.Linear))
    first.register_forward_hook(lambda *_: seen.update(["passes"]))
    return seen


@pytest.fixture
def runtime_of(make_base, make_adapter):
    folder = make_base("bert")

    def make(*, reuse: bool) -> Runtime:
        base = load_base(describe_base(resolve_base(str(folder))), device="cpu", dtype="float32")
        heads = [build_head(base.model, base.head_modules, labels, seed) for labels, seed in ((2, 1), (4, 2))]
        forms = [AnswerForm(("0", "1"), 66), AnswerForm(("0", "1", "2", "3"), 66)]
        stack = AdapterStack.build(
            {name: make_adapter(UPPER, 2, 2.0, seed=seed) for name, seed in (("a", 1), ("b", 2))}
        )
        return Runtime(base, stack, HeadAnswerer(base, heads, forms, 4), batch_size=4, reuse_prefix=reuse)

    return make


def states() -> list[tuple[Plan, int | np.ndarray]]:
    rows = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [0.5, -1], [0, 1]], np.float32)
    fixed = [Plan(weights=np.array(weights, np.float32)) for weights in ((0, 0), (1, 0), (1, 1), (-0.5, 2))]
    return [*((plan, 1) for plan in fixed), (Plan(weights=rows), np.array([0, 1, 1, 0, 1, 0])), (fixed[1], 0)]


def test_every_state_answers_as_without_it(runtime_of) -> None:
    """Merged, per text, and other heads; the lower layer runs once a batch, and once more for the check."""
    whole, reused = runtime_of(reuse=False), runtime_of(reuse=True)
    assert padding_of(reused.base.model).right  # by passes of its own, once for a model
    assert reused.mixture.mixes  # likewise
    passes = count(reused.base.model.bert.encoder.layer[0])
    upper = count(reused.base.model.bert.encoder.layer[1].intermediate)
    seen = set()
    for plan, heads in states():
        expected, found = whole.answer(TEXTS, plan, heads), reused.answer(TEXTS, plan, heads)
        assert found.said == expected.said
        np.testing.assert_array_equal(found.probabilities, expected.probabilities)
        seen.add(found.probabilities.tobytes())
    assert len(seen) == 6  # the states differ, so that an answer of another state would be seen
    assert passes["passes"] == 2 + 1
    assert upper["passes"] == 2 * 6 + 1


def test_features_and_losses_are_computed_in_full(runtime_of) -> None:
    whole, reused = runtime_of(reuse=False), runtime_of(reuse=True)
    for plan, heads in states()[:2]:
        reused.answer(TEXTS, plan, heads)
    np.testing.assert_array_equal(reused.features(TEXTS, 66), whole.features(TEXTS, 66))
    passes = count(reused.base.model.bert.encoder.layer[0])
    reused.loss(TEXTS[:4], ["0"] * 4, 0)
    reused.loss(TEXTS[:4], ["0"] * 4, 0)
    assert passes["passes"] == 2


IDS = torch.arange(4, 16).reshape(2, 6)
PLAIN = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS), "use_cache": False}


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt_neox"])
def test_logits_of_a_language_model(make_language_model, kind: str) -> None:
    model, plain = load(make_language_model(kind)), load(make_language_model(kind))
    name = next(name for name, module in model.named_modules() if ".1." in name and isinstance(module, nn.Linear))
    layer = frozen_layers(model, [name])
    assert len(layer) == 1
    FrozenPrefix(model, [name])
    passes = count(layer[0])
    with torch.inference_mode():
        for step in range(4):
            for one in (model, plain):
                one.get_submodule(name).weight.mul_(1 + step)
            assert torch.equal(model(**PLAIN).logits, plain(**PLAIN).logits)
        assert passes["passes"] == 2
        for other in ({"attention_mask": torch.tril(torch.ones(2, 6).long())}, {"input_ids": IDS + 1}):
            assert torch.equal(model(**(PLAIN | other)).logits, plain(**(PLAIN | other)).logits)
        assert passes["passes"] == 4


@pytest.mark.parametrize("how", ["gradient", "training", "cache", "outputs", "positional"])
def test_the_unusual_runs_in_full(make_language_model, how: str) -> None:
    model, plain = (load(make_language_model("llama")) for _ in range(2))
    FrozenPrefix(model, ["model.layers.1.mlp.up_proj"])
    passes = count(model.model.layers[0])
    more = {"cache": {"use_cache": True}, "outputs": {"output_hidden_states": True}}.get(how, {})
    model.train(how == "training")
    with torch.set_grad_enabled(how == "gradient"):
        for _ in range(3):
            if how == "positional":
                found, expected = (one(IDS, use_cache=False) for one in (model, plain))
            else:
                found, expected = (one(**(PLAIN | more)) for one in (model, plain))
            assert torch.equal(found.logits, expected.logits)
            if how == "cache":
                assert found.past_key_values.get_seq_length() == 6
                again, rest = (one(input_ids=IDS[:, :1], past_key_values=out.past_key_values) for one, out in
                               ((model, found), (plain, expected)))  # fmt: skip
                assert torch.equal(again.logits, rest.logits)
            if how == "outputs":
                pairs = zip(found.hidden_states, expected.hidden_states, strict=True)
                assert all(torch.equal(one, two) for one, two in pairs)
    assert passes["passes"] == 3 * (2 if how == "cache" else 1)


def test_an_error_within_a_pass_leaves_nothing_behind(make_language_model) -> None:
    model, plain = (load(make_language_model("llama")) for _ in range(2))
    FrozenPrefix(model, ["model.layers.1.mlp.up_proj"])
    with torch.inference_mode():
        hook = model.lm_head.register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**PLAIN)
        hook.remove()
        for _ in range(3):
            assert torch.equal(model(**PLAIN).logits, plain(**PLAIN).logits)


def test_no_more_is_kept_than_the_budget(make_language_model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for the hidden states of one batch: the first stays, the others are computed anew."""
    model = load(make_language_model("llama"))
    monkeypatch.setattr(prefix, "PREFIX_BYTES", IDS.numel() * model.config.hidden_size * 4)
    FrozenPrefix(model, ["model.layers.1.mlp.up_proj"])
    passes = count(model.model.layers[0])
    with torch.inference_mode():
        for _ in range(3):
            for shift in range(3):
                model(**(PLAIN | {"input_ids": IDS + shift}))
    assert passes["passes"] == 1 + 1 + 2 * 3  # kept, checked, and two batches in each of three rounds


class Lower(nn.Linear):
    """A layer that leaves something beside its output."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.beside = [x.sum()]
        return super().forward(x)


class Detour(nn.Module):
    """A model whose upper part reads it."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(is_encoder_decoder=False)
        self.layers = nn.ModuleList([Lower(3, 3), nn.Linear(3, 3)])

    def forward(self, x: torch.Tensor) -> SequenceClassifierOutput:
        lower = self.layers[0](x)
        beside = self.layers[0].beside.pop() if self.layers[0].beside else 0
        return SequenceClassifierOutput(logits=self.layers[1](lower) + beside)


def test_a_model_with_a_way_around_its_layers_runs_in_full() -> None:
    torch.manual_seed(0)
    model, x = Detour().eval(), torch.randn(2, 3)
    with torch.inference_mode():
        expected = model(x=x).logits
        FrozenPrefix(model, ["layers.1"])
        assert all(torch.equal(model(x=x).logits, expected) for _ in range(4))


@pytest.mark.parametrize(
    ("kind", "adapted"),
    [
        ("llama", ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj"]),  # from the first layer on
        ("llama", ["model.layers.1.mlp.up_proj", "lm_head"]),  # a module in no layer
        ("t5", ["encoder.block.1.layer.0.SelfAttention.q"]),  # an encoder and a decoder
    ],
)
def test_nothing_is_frozen(make_language_model, kind: str, adapted: list[str]) -> None:
    assert frozen_layers(load(make_language_model(kind)), adapted) == []
