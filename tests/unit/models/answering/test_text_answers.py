"""Labels, likelihoods, generated text and losses of a language model: against plain transformers, a row at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.core.errors import DataError, LorabankError
from lorabank.models.answering.base import AnswerForm
from lorabank.models.answering.text_answers import TextAnswerer
from lorabank.models.bases.loading import describe_base, load_base
from lorabank.models.bases.resolving import resolve_base
from lorabank.models.mixing.runtime import Plan, Runtime

MODULES = {
    "llama": [f"model.layers.{i}.self_attn.{part}_proj" for i in range(2) for part in "qv"],
    "t5": [
        *(f"encoder.block.{i}.layer.0.SelfAttention.{part}" for i in range(2) for part in "qv"),
        *(f"decoder.block.{i}.layer.1.EncDecAttention.{part}" for i in range(2) for part in "qv"),
    ],
}
TEMPLATE = 'Judge {"it"}: {text}\nAnswer:'
FORMS = (
    AnswerForm(("good", "bad", "very bad"), 256, "likelihood", TEMPLATE),
    AnswerForm((" north", " south"), 256, "likelihood", None),
    AnswerForm((), 256, "generation", None, ("max_new_tokens=7",)),
    AnswerForm((), 256, "perplexity", None),
    AnswerForm(("yes", "no"), 256, "likelihood", "Is it so? {text}"),
)
LABELLED, WHOLE, FREE, PLAIN, OTHER = range(len(FORMS))
TEXTS = ["a b c", "It rains.", "x", "Where is the sea, seen from here?", "short one", "q w e r t y"]


@dataclass
class Bench:
    """A runtime with two adapters, and plain transformers beside it."""

    kind: str
    folder: Any
    adapters: dict[str, LoraFactors]
    runtime: Runtime
    tokenizer: Any
    models: dict[tuple[float, ...], Any] = field(default_factory=dict)

    @property
    def causal(self) -> bool:
        return self.kind == "llama"

    def model(self, weights: Sequence[float] = (0.0, 0.0)) -> Any:
        """A model of its own with ``W + sum_k w_k s_k B_k A_k``."""
        import transformers

        key = tuple(map(float, weights))
        if key not in self.models:
            auto = transformers.AutoModelForCausalLM if self.causal else transformers.AutoModelForSeq2SeqLM
            model = auto.from_pretrained(self.folder).eval()
            with torch.no_grad():
                for w, factors in zip(key, self.adapters.values(), strict=True):
                    for name, a in factors.A.items():
                        model.get_submodule(name).weight += w * factors.scaling[name] * (factors.B[name] @ a)
            self.models[key] = model
        return self.models[key]

    def prompt(self, form: AnswerForm, text: str) -> list[int]:
        """Byte b is a token; <s> is 0 and stands before a causal prompt, </s> is 2 and ends an encoder's."""
        words = text if form.template is None else form.template.replace("{text}", text)
        ids = self.tokenizer(words, add_special_tokens=False)["input_ids"]
        return [0, *ids] if self.causal else [*ids, 2]

    def completion(self, form: AnswerForm, words: str) -> list[int]:
        blank = " " if self.causal and form.template is not None else ""
        return [*self.tokenizer(blank + words, add_special_tokens=False)["input_ids"], 2]

    def log_p(self, model: Any, prompt: list[int], answer: list[int]) -> torch.Tensor:
        """Log-probability of each of the answer's tokens."""
        with torch.no_grad():
            if self.causal:
                logits = model(input_ids=torch.tensor([[*prompt, *answer]])).logits[0, len(prompt) - 1 : -1]
            else:
                logits = model(input_ids=torch.tensor([prompt]), labels=torch.tensor([answer])).logits[0]
        return logits.log_softmax(-1)[range(len(answer)), answer].double()

    def label_scores(self, model: Any, form: AnswerForm, text: str) -> np.ndarray:
        prompt = self.prompt(form, text)
        return np.array(
            [float(self.log_p(model, prompt, self.completion(form, label)).sum()) for label in form.labels]
        )

    def said(self, model: Any, form: AnswerForm, text: str) -> str:
        """What ``model.generate`` says to one prompt alone."""
        prompt = torch.tensor([self.prompt(form, text)])
        tokens = 7 if form.settings else 50
        ids = model.generate(prompt, do_sample=False, max_new_tokens=tokens, eos_token_id=2, pad_token_id=1)
        new = ids[0, prompt.shape[1] :] if self.causal else ids[0, 1:]
        return self.tokenizer.decode(new, skip_special_tokens=True).strip()

    def expect(self, form: AnswerForm, text: str, weights: Sequence[float] = (0.0, 0.0)) -> tuple[str, float]:
        """Answer and probability; NaN for generated text."""
        model = self.model(weights)
        if form.scoring != "likelihood":
            return self.said(model, form, text), float("nan")
        scores = self.label_scores(model, form, text)
        share = np.exp(scores - scores.max())
        return form.labels[int(scores.argmax())], float(share.max() / share.sum())


@pytest.fixture(scope="module", params=sorted(MODULES))
def kind(request) -> str:
    return request.param


def random_adapter(modules: Sequence[str], r: int, seed: int) -> LoraFactors:
    chance = torch.Generator().manual_seed(seed)
    A = {name: torch.randn(r, 32, generator=chance) for name in modules}
    B = {name: torch.randn(32, r, generator=chance) for name in modules}
    return LoraFactors(A, B, dict.fromkeys(modules, 0.3))


@pytest.fixture(scope="module")
def bench(kind, save_language_model, tmp_path_factory) -> Bench:
    from transformers import AutoTokenizer

    folder = save_language_model(tmp_path_factory.mktemp(kind) / "base", kind)
    adapters = {"a": random_adapter(MODULES[kind], 2, seed=1), "b": random_adapter(MODULES[kind][:2], 3, seed=2)}
    record = describe_base(resolve_base(str(folder)))
    base = load_base(record, device="cpu", dtype="float32")
    answerer = TextAnswerer(base, record.task_type, FORMS, batch_size=4)
    runtime = Runtime(base, AdapterStack.build(adapters), answerer, batch_size=4)
    return Bench(kind, folder, adapters, runtime, AutoTokenizer.from_pretrained(folder))


def state(*weights: float) -> Plan:
    return Plan(weights=np.array(weights, np.float32))


def check(found: Any, expected: list[tuple[str, float]]) -> None:
    assert found.said == tuple(said for said, _ in expected)
    np.testing.assert_allclose(found.probabilities, [share for _, share in expected], atol=1e-5)


@pytest.mark.parametrize("form", [LABELLED, WHOLE])
@pytest.mark.parametrize("weights", [(0.0, 0.0), (1.0, -0.5)])
def test_the_likeliest_label_in_a_plain_pass_each(bench: Bench, form: int, weights: tuple[float, float]) -> None:
    found = bench.runtime.answer(TEXTS, state(*weights), form)
    check(found, [bench.expect(FORMS[form], text, weights) for text in TEXTS])


def test_generated_text_is_that_of_plain_generate(bench: Bench) -> None:
    found = bench.runtime.answer(TEXTS, state(1.0, 1.0), FREE)
    check(found, [bench.expect(FORMS[FREE], text, (1.0, 1.0)) for text in TEXTS])
    assert any(found.said)


def test_rows_of_different_forms_in_one_call(bench: Bench) -> None:
    heads = np.array([OTHER, FREE, LABELLED, WHOLE, LABELLED, FREE])
    found = bench.runtime.answer(TEXTS, state(0.5, 1.0), heads)
    check(found, [bench.expect(FORMS[h], text, (0.5, 1.0)) for h, text in zip(heads, TEXTS, strict=True)])
    assert np.isnan(found.probabilities).tolist() == [False, True, False, False, False, True]


def test_each_row_in_its_own_mixture_and_form(bench: Bench) -> None:
    weights = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [0.5, -1], [-1, 2]], np.float32)
    heads = np.array([LABELLED, WHOLE, FREE, LABELLED, OTHER, FREE])
    found = bench.runtime.answer(TEXTS, Plan(weights=weights), heads)
    rows = zip(weights.tolist(), heads, TEXTS, strict=True)
    check(found, [bench.expect(FORMS[head], text, own) for own, head, text in rows])


def test_states_of_one_call_do_not_stay_for_the_next(bench: Bench) -> None:
    bench.runtime.answer(TEXTS[:2], Plan(weights=np.array([[1, 0], [0, 1]], np.float32)), LABELLED)
    check(bench.runtime.answer(TEXTS, state(0.0, 0.0), LABELLED), [bench.expect(FORMS[LABELLED], t) for t in TEXTS])


def test_likelihoods_of_whole_texts_and_of_answers(bench: Bench) -> None:
    targets = ["The sea.", "To be or not", "z", "Over there, to the north", " south", "good"]
    heads = np.array([FREE, PLAIN, PLAIN, FREE, WHOLE, LABELLED])
    texts = ["" if head == PLAIN else text for head, text in zip(heads, TEXTS, strict=True)]
    weights = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [0.5, -1], [-1, 2]], np.float32)
    values, tokens = bench.runtime.log_likelihoods(texts, targets, Plan(weights=weights), heads)
    for i, head in enumerate(heads):
        form = FORMS[head]
        answer = bench.completion(form, targets[i])
        own = bench.log_p(bench.model(weights[i]), bench.prompt(form, texts[i]), answer)
        assert tokens[i] == len(answer)
        assert values[i] == pytest.approx(float(own.sum()), abs=1e-3)


def test_a_target_that_does_not_fit_counts_for_nothing(bench: Bench) -> None:
    values, tokens = bench.runtime.log_likelihoods(TEXTS[:2], ["a" * 300, "b"], state(0.0, 0.0), FREE)
    assert (values[0], tokens[0]) == (0, 0)
    assert tokens[1] == 2
    assert values[1] < 0


def test_the_loss_is_the_mean_over_all_answers_tokens(bench: Bench) -> None:
    targets = ["bad", "To the sea", " south", "very bad", "no", "x y"]
    heads = np.array([LABELLED, FREE, WHOLE, LABELLED, OTHER, FREE])
    bench.runtime.enter(state(1.0, 0.5))
    loss = bench.runtime.loss(TEXTS, targets, heads).detach()
    model = bench.model((1.0, 0.5))
    every = torch.cat([
        bench.log_p(model, bench.prompt(FORMS[h], text), bench.completion(FORMS[h], target))
        for h, text, target in zip(heads, TEXTS, targets, strict=True)
    ])  # fmt: skip
    assert float(loss) == pytest.approx(-float(every.mean()), abs=1e-5)


def test_the_loss_of_one_row_is_transformers_own(bench: Bench) -> None:
    bench.runtime.enter(state(0.0, 0.0))
    prompt, answer = bench.prompt(FORMS[FREE], TEXTS[3]), bench.completion(FORMS[FREE], "To the sea")
    if bench.causal:
        inputs, labels = [*prompt, *answer], [-100] * len(prompt) + answer
    else:
        inputs, labels = prompt, answer
    own = bench.model()(input_ids=torch.tensor([inputs]), labels=torch.tensor([labels])).loss
    found = bench.runtime.loss([TEXTS[3]], ["To the sea"], FREE).detach()
    assert float(found) == pytest.approx(float(own.detach()), abs=1e-5)


def test_rows_that_do_not_fit_leave_the_loss_to_the_others(bench: Bench) -> None:
    bench.runtime.enter(state(0.0, 0.0))
    alone = bench.runtime.loss([TEXTS[0]], ["good"], LABELLED).detach()
    both = bench.runtime.loss(TEXTS[:2], ["good", "a" * 300], np.array([LABELLED, FREE])).detach()
    assert float(both) == pytest.approx(float(alone), abs=1e-6)
    assert float(bench.runtime.loss(TEXTS[:1], ["a" * 300], FREE)) == 0


def test_a_long_text_loses_its_end_and_keeps_its_question(bench: Bench) -> None:
    text = "long " * 60
    found = bench.runtime.answer([text], state(0.0, 0.0), LABELLED)
    form = FORMS[LABELLED]
    room = 256 - max(len(bench.completion(form, label)) for label in form.labels)
    fixed = len(bench.prompt(form, ""))
    check(found, [bench.expect(form, text[: room - fixed].rstrip())])


@pytest.mark.parametrize(("settings", "tokens"), [((), 50), (("max_new_tokens=7",), 7)])
def test_the_length_of_an_answer_stands_in_a_cells_key_where_it_always_did(settings: Any, tokens: int) -> None:
    """Cells that were scored when it was a field of its own are found again."""
    then = {"labels": ["a"], "max_length": 8, "scoring": "generation", "template": None, "max_new_tokens": tokens}
    assert AnswerForm(("a",), 8, "generation", None, settings).identity() == then
    more = AnswerForm(("a",), 8, "generation", None, (*settings, "power=2.0")).identity()
    assert more == then | {"settings": ["power=2.0"]}


def test_a_long_prompt_keeps_its_end_and_leaves_room_for_the_answer(bench: Bench) -> None:
    text = "once upon a time " * 40
    found = bench.runtime.answer([text], state(0.0, 0.0), FREE)
    size = 256 - len(bench.prompt(FORMS[FREE], ""))
    check(found, [bench.expect(FORMS[FREE], text[-size:])])


def test_an_answer_as_long_as_the_window_is_refused_by_its_own_name(bench: Bench) -> None:
    if bench.runtime.base.max_length is None:
        pytest.skip("this model has no window")
    base = bench.runtime.base
    form = AnswerForm((), 256, "generation", None, ("max_new_tokens=600",))
    answerer = TextAnswerer(base, "CAUSAL_LM", [form], batch_size=4)
    runtime = Runtime(base, AdapterStack.build(bench.adapters), answerer, batch_size=4)
    with pytest.raises(LorabankError, match="600") as caught:
        runtime.answer(["a"], state(0.0, 0.0), 0)
    assert "--max-new-tokens" in (caught.value.hint or "")


def test_labels_that_are_the_same_tokens_are_refused(bench: Bench) -> None:
    form = AnswerForm(("good", " good"), 256, "likelihood", TEMPLATE)
    answerer = TextAnswerer(bench.runtime.base, "CAUSAL_LM", [form], batch_size=4)
    if not bench.causal:
        pytest.skip("a blank is a token of its own to this model")
    with pytest.raises(DataError, match="same tokens"):
        answerer.answer(["a"], np.array([0]), lambda rows: None, shared=True)
