"""Texts with weights of their own: as routed texts with the same weights, in every way of answering."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from lorabank.algebra.stack import AdapterStack
from lorabank.algebra.states import StateStack
from lorabank.models.answering.base import AnswerForm
from lorabank.models.answering.head_answers import HeadAnswerer
from lorabank.models.answering.text_answers import TextAnswerer
from lorabank.models.bases.loading import describe_base, load_base
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.gates.texts import TextFacts, TextGate, TextWeights
from lorabank.models.mixing.runtime import Plan, Runtime
from lorabank.models.tasks.heads import build_head

TEXTS = ["a b c d e", "b c", "x y z w", "m n o", "q", "f g h i j k l"]
WEIGHTS = torch.tensor([[0.5, 0.25], [1, 0], [0, 1], [0.3, 0.3], [0, 0], [-0.5, 1.5]])
SHAPES = {
    "bert": {f"bert.encoder.layer.{i}.attention.self.value": (32, 32) for i in range(2)}
    | {"bert.pooler.dense": (32, 32)},
    "llama": {f"model.layers.{i}.self_attn.q_proj": (32, 32) for i in range(2)},
    "t5": {f"{part}.block.{i}.layer.0.SelfAttention.q": (32, 32) for i in range(2) for part in ("encoder", "decoder")},
}
STATES = (("a",), ("a", "b"))
MATRIX = torch.tensor([[1.0, 0.0], [1.0, 1.0]])


@pytest.fixture
def make_runtime(
    make_base: Callable[..., Path], save_language_model: Callable[..., Path], tmp_path: Path, make_adapter
) -> Callable[[str], Runtime]:
    def make(kind: str, form: AnswerForm) -> Runtime:
        folder = make_base("bert") if kind == "bert" else save_language_model(tmp_path / "base", kind)
        task_type = {"bert": "SEQ_CLS", "llama": "CAUSAL_LM", "t5": "SEQ_2_SEQ_LM"}[kind]
        base = load_base(describe_base(resolve_base(str(folder)), task_type), device="cpu", dtype="float32")
        shapes = {name: tuple(base.model.get_submodule(name).weight.shape) for name in SHAPES[kind]}
        adapters = {name: make_adapter(shapes, 2, 3.0, seed=i) for i, name in enumerate("ab")}
        if kind == "bert":
            heads = [build_head(base.model, base.head_modules, 2, 0)]
            answerer = HeadAnswerer(base, heads, [form], batch_size=4)
        else:
            answerer = TextAnswerer(base, task_type, [form], batch_size=4)
        return Runtime(base, AdapterStack.build(adapters), answerer, batch_size=4)

    return make


def weights_by_module(runtime: Runtime, members: StateStack, weights: torch.Tensor) -> Mapping[str, TextWeights]:
    adapters = weights @ MATRIX
    return {
        name: TextWeights(factors.row_weights(adapters), adapters) for name, factors in members.stack.modules.items()
    }


LABELS = AnswerForm(("no", "yes it is"), 40, "likelihood")
FREE = AnswerForm((), 40, "generation", settings=("max_new_tokens=5",))
HEAD = AnswerForm(("no", "yes"), 40)


@pytest.mark.parametrize(
    ("kind", "form"),
    [("bert", HEAD), ("llama", LABELS), ("llama", FREE), ("t5", LABELS), ("t5", FREE)],
    ids=["head", "labels", "generated", "decoded labels", "decoded"],
)
@pytest.mark.parametrize("apart", [True, False])
def test_each_text_answers_as_with_these_adapter_weights(
    make_runtime, kind: str, form: AnswerForm, apart: bool
) -> None:
    """Against merged weights, one text at a time; also where the model keeps no rows apart."""
    runtime = make_runtime(kind, form)
    members = runtime.states(STATES)
    runtime.mixture.mixes = apart and runtime.mixture.mixes
    plan = Plan(texts=weights_by_module(runtime, members, WEIGHTS), states=STATES)
    found = runtime.answer(TEXTS, plan, 0)
    for i, text in enumerate(TEXTS):
        expected = runtime.answer([text], Plan(weights=(WEIGHTS[i] @ MATRIX).numpy().astype(np.float32)), 0)
        assert found.said[i] == expected.said[0]
        np.testing.assert_allclose(found.probabilities[i], expected.probabilities[0], atol=1e-5)


class Fixed(TextGate):
    """Weights from a table by what a text's hidden state is."""

    reads = frozenset({"inputs", "ranks", "hidden", "embedding"})

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.zeros(2, 32))

    def weights(self, module: str, members: StateStack, texts: TextFacts) -> torch.Tensor:
        own = texts.hidden @ self.table.T
        return torch.cat([torch.zeros(len(own), 1), own], 1)


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_facts_are_of_the_texts_own_tokens(make_runtime, kind: str) -> None:
    """Against one text at a time without padding, with hooks of our own."""
    runtime = make_runtime(kind, HEAD if kind == "bert" else LABELS)
    members = runtime.states(STATES)
    found = runtime.first_pass(TEXTS, members, Fixed.reads, 40)
    body = runtime.base.model.base_model
    for i, text in enumerate(TEXTS):
        seen: dict[str, torch.Tensor] = {}
        hooks = [
            body.get_submodule(name.partition(".")[2]).register_forward_pre_hook(
                lambda module, args, name=name, seen=seen: seen.__setitem__(name, args[0].detach())
            )
            for name in members.stack.modules
        ]
        ids = torch.tensor([runtime.base.tokenizer(text)["input_ids"]])
        with torch.no_grad(), runtime.mixture.bare():
            hidden = body(input_ids=ids).last_hidden_state
        for hook in hooks:
            hook.remove()
        torch.testing.assert_close(found.hidden[i], hidden[0].mean(0), atol=1e-5, rtol=0)
        embedded = runtime.base.model.get_input_embeddings()(ids)[0].amax(0)
        torch.testing.assert_close(found.embedding[i], embedded.detach(), atol=1e-5, rtol=0)
        for name, factors in members.stack.modules.items():
            x = seen[name][0]
            mean = x.mean(0) if x.dim() == 2 else x
            torch.testing.assert_close(found.inputs[name][i], mean, atol=1e-5, rtol=0)
            torch.testing.assert_close(found.ranks[name][i], factors.A @ mean, atol=1e-5, rtol=0)


def test_what_the_text_alone_does_not_reach_is_zero(make_runtime) -> None:
    runtime = make_runtime("t5", LABELS)
    found = runtime.first_pass(TEXTS, runtime.states(STATES), Fixed.reads, 40)
    assert bool(found.hidden.any())
    assert bool(found.embedding.any())
    assert {name.split(".")[0]: bool(means.any()) for name, means in found.inputs.items()} == {
        "encoder": True,
        "decoder": False,
    }


def test_gradients_reach_the_gate_through_a_pass(make_runtime) -> None:
    """The gradient of the loss equals a difference quotient of the loss."""
    runtime = make_runtime("bert", HEAD)
    members, gate = runtime.states(STATES), Fixed()
    facts = runtime.first_pass(TEXTS, members, Fixed.reads, 40)
    runtime.base.model.eval()

    def loss() -> torch.Tensor:
        return runtime.loss(TEXTS, ["no", "yes"] * 3, 0, runtime.weighing(gate, members, facts))

    loss().backward(inputs=[gate.table])
    found, step = float(gate.table.grad[1, 4]), 1e-3
    values = []
    for sign in (1, -1):
        with torch.no_grad():
            gate.table[1, 4] += sign * step
            values.append(float(loss()))
            gate.table[1, 4] -= sign * step
    assert found == pytest.approx((values[0] - values[1]) / (2 * step), rel=2e-2)
