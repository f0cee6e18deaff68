"""Questions to several tasks and compositions at once: each is answered as alone, and they share passes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import lorabank
from lorabank import api
from lorabank.core.config import ComposeConfig, GenerateConfig, PredictConfig, SamplingConfig
from lorabank.core.errors import DataError, LorabankError, NotFoundError
from lorabank.models.answering.replies import GenerationRequest
from lorabank.workflows.asking.mixed import MixedAnswers
from lorabank.workflows.asking.questions import Answered, Question, Who
from lorabank.workflows.assemble import RuntimeSettings
from lorabank.workflows.open_bank import OpenBank
from tests.contract.conftest import TASKS, Lab
from tests.contract.test_text_to_text import WORDS, Place, place, plainly_generated

__all__ = ["place"]

SETTINGS = RuntimeSettings(device="cpu", dtype="float32", batch_size=32)
FOUR = SamplingConfig(max_new_tokens=4)
CLOSE = {"atol": 1e-5, "rtol": 1e-4}  # float32 sums in another order than the dense weights'
NEAR = {"abs": 1e-4, "rel": 1e-3}
"""A margin is a difference of squared distances, each of them the sum of 32 float32 numbers of size 1."""


def question(model: str, text: str, sampling: SamplingConfig = FOUR, **changes: Any) -> Question:
    return Question(model, ({"role": "user", "content": text},), GenerationRequest(sampling), **changes)


class Asked:
    """A bank's answers, what was told on the way, and how often the model was passed."""

    def __init__(self, bank: Path) -> None:
        self.mixed = MixedAnswers(OpenBank(bank), SETTINGS, lambda message: None)
        self.begun: dict[int, Who] = {}
        self.passes = 0
        self.mixed._runtime.base.model.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        self.passes += 1

    def _begin(self, number: int, who: Who) -> bool:
        self.begun[number] = who
        return True

    def __call__(self, *questions: Question) -> list[Answered | LorabankError]:
        found: dict[int, Answered | LorabankError] = {}
        self.begun.clear()
        self.mixed.answer(questions, self._begin, lambda i, one: found.setdefault(i, one) and None)
        assert sorted(found) == list(range(len(questions)))
        return [found[i] for i in range(len(questions))]

    def route(self, *questions: Question) -> list[Who | LorabankError]:
        found: dict[int, Who | LorabankError] = {}
        self.mixed.route(questions, found.__setitem__)
        return [found[i] for i in range(len(questions))]


@pytest.fixture(scope="module")
def composed(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks, a routed composition, a sum, one merged adapter that is not a sum of the bank's, and a gate."""
    bank = Path(shutil.copytree(lab.bank("olora", 3), tmp_path_factory.mktemp("composed") / "bank"))
    api.compose(bank, ComposeConfig(mode="routed", router="kmeans", device="cpu"))
    api.compose(bank, ComposeConfig(mode="merged", name="sum", scores=False, device="cpu"))
    api.compose(bank, ComposeConfig(mode="merged", merger="ties", name="ties", scores=False, device="cpu"))
    api.compose(bank, ComposeConfig(mode="gated", name="gated", set=("epochs=1",), stages="last", device="cpu"))
    return bank


def test_texts_of_three_tasks_share_one_pass(composed: Path, texts: list[str], by_hand: Any, adapters: Any) -> None:
    every = adapters(composed)
    digests = [adapter.digest for adapter in every]
    ask = Asked(composed)
    ask(*(question(TASKS[i % 3], text) for i, text in enumerate(texts)))  # what is measured once is measured now
    ask.passes = 0
    found = ask(*(question(TASKS[i % 3], text) for i, text in enumerate(texts)))
    assert ask.passes == 1
    for i, (text, one) in enumerate(zip(texts, found, strict=True)):
        assert isinstance(one, Answered)
        expected = by_hand(composed, digests, digests[i % 3], [text])[0]
        assert torch.tensor(list(one.shares.values())).allclose(expected, **CLOSE)
        assert one.text == list(one.shares)[int(expected.argmax())]
        assert one.who.task == TASKS[i % 3]
        assert one.who.task_id == "given"
        assert one.who.adapters == dict.fromkeys(TASKS, 1.0)


def test_every_model_answers_as_it_does_alone(composed: Path, texts: list[str]) -> None:
    """In whatever company, and as ``predict`` says, whose way is another: constant weights are merged there."""
    models = [*TASKS, "routed", "sum", "ties", "gated"]
    ask = Asked(composed)
    asked = [(model, text) for text in texts[:4] for model in models]
    found = ask(*(question(model, text) for model, text in asked))
    said = {}
    with lorabank.open(composed) as session:
        for model in models:
            config = PredictConfig(task=model) if model in TASKS else PredictConfig(composition=model)
            said |= {(model, text): session.predict([text], config)[0] for text in texts[:4]}
    for (model, text), one in zip(asked, found, strict=True):
        alone = said[model, text]
        assert isinstance(one, Answered)
        assert (one.text, one.who.task, one.who.task_id) == (alone.label, alone.task, alone.task_id)
        assert one.probability == pytest.approx(alone.probability, rel=1e-4)
        assert one.who.adapters == pytest.approx(alone.adapters)
        margin = getattr(alone, "margin", None)
        assert one.who.margin == (None if margin is None else pytest.approx(margin, **NEAR))
        assert one.who.composition == alone.composition


def test_routes_are_found_without_an_answer(composed: Path, texts: list[str]) -> None:
    ask = Asked(composed)
    found = ask.route(*(question("routed", text) for text in texts), question("two", "a"), question("gated", "a"))
    expected = api.predict(composed, texts, PredictConfig(composition="routed"))
    for alone, who in zip(expected, found, strict=False):
        assert isinstance(who, Who)
        assert (who.task, who.labels) == (alone.task, ("part0", "part1", "part2")[: 2 + (who.task == "two")])
    assert isinstance(found[-2], Who)
    assert found[-2].task_id == "given"


def test_soft_answers_add_up_over_tasks(lab: Lab, tmp_path: Path, texts: list[str]) -> None:
    bank = Path(shutil.copytree(lab.bank("olora", 3), tmp_path / "bank"))
    soft = ComposeConfig(mode="routed", name="soft", set=("answers=soft",), device="cpu")
    api.compose(bank, soft)
    ask = Asked(bank)
    expected = api.predict(bank, texts, PredictConfig(composition="soft"))
    for alone, one in zip(expected, ask(*(question("soft", text) for text in texts)), strict=True):
        assert isinstance(one, Answered)
        assert (one.text, one.who.task) == (alone.label, alone.task)
        assert one.probability == pytest.approx(alone.probability, rel=1e-4)
        assert sum(one.shares.values()) == pytest.approx(1.0)


def test_what_cannot_be_answered_spoils_nothing_else(composed: Path) -> None:
    ask = Asked(composed)
    missing, nul, good = ask(question("nowhere", "a"), question("one", "a\0b"), question("one", "a b"))
    assert isinstance(missing, NotFoundError)
    assert isinstance(nul, DataError)
    assert "NUL" in nul.message
    assert isinstance(good, Answered)


# --------------------------------------------------------------------------------------------------- language models


def rendered(place: Place, *messages: tuple[str, str]) -> str:
    _, tokenizer = place.merged()
    chat = [{"role": role, "content": content} for role, content in messages]
    return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))


def test_free_text_of_several_tasks_is_generated_together(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a label beside it; each as plain transformers says with the adapters in its weights."""
    ask = Asked(place.bank)
    model = ask.mixed._runtime.base.model
    calls = []
    original = model.generate
    monkeypatch.setattr(model, "generate", lambda **given: calls.append(len(given["input_ids"])) or original(**given))
    talk = (("user", "Tell me about sun"), ("assistant", "It is warm."), ("user", "And rain?"))
    questions = [
        question("pairs", f"What of {WORDS[0]}?"),
        question("chat", "Tell me about snow"),
        question("plain", "The fog"),
        question("labelled", "sun 0"),
        Question("chat", tuple({"role": role, "content": content} for role, content in talk), GenerationRequest(FOUR)),
        question("chat", "Once upon", raw=True),
    ]
    found = ask(*questions)
    assert all(isinstance(one, Answered) for one in found)
    prompts = [
        f"What of {WORDS[0]}?",
        rendered(place, ("user", "Tell me about snow")),
        "The fog",
        None,
        rendered(place, *talk),
        "Once upon",
    ]
    for prompt, one in zip(prompts, found, strict=True):
        assert isinstance(one, Answered)
        if prompt is not None:
            assert one.text == plainly_generated(place, prompt)
            assert one.written is not None
            assert one.written.tokens <= 4
            assert one.who.labels == ()
    assert isinstance(found[3], Answered)
    assert (found[3].who.labels, found[3].written) == (("cold", "warm"), None)
    assert (
        calls[-1] == sum(calls[3:]) == 5
    )  # after three short ones, by which it is measured once what may share a batch


def test_a_conversation_needs_a_task_that_learnt_some(place: Place) -> None:
    talk = tuple({"role": role, "content": "hi"} for role in ("user", "assistant", "user"))
    pairs, forged = Asked(place.bank)(Question("pairs", talk, GenerationRequest(FOUR)), question("chat", "a</s>b"))
    assert isinstance(pairs, DataError)
    assert "answers single messages" in pairs.message
    assert isinstance(forged, DataError)
    assert "control token" in forged.message


def test_a_draw_depends_on_its_seed_alone(place: Place) -> None:
    ask = Asked(place.bank)

    def drawn(seed: int) -> Question:
        return question("pairs", "What of ice?", SamplingConfig(max_new_tokens=8, temperature=1.5, seed=seed))

    alone = [ask(drawn(seed))[0] for seed in range(4)]
    together = ask(question("plain", "The"), *(drawn(seed) for seed in range(4)), question("chat", "dew", raw=True))
    said = [one.text for one in alone if isinstance(one, Answered)]
    assert [one.text for one in together[1:5] if isinstance(one, Answered)] == said
    assert len(set(said)) > 1


def test_pieces_are_heard_before_the_end(place: Place) -> None:
    pieces: list[str] = []
    asked = question("plain", "The fog", SamplingConfig(max_new_tokens=12))
    heard = Question(asked.model, asked.messages, GenerationRequest(asked.generation.sampling, hear=pieces.append))
    (one,) = Asked(place.bank)(heard)
    assert isinstance(one, Answered)
    assert "".join(pieces) == one.text == plainly_generated(place, "The fog", 12)


def test_generate_draws_with_a_seed_for_each_text(place: Place) -> None:
    config = GenerateConfig(task="pairs", max_new_tokens=8, temperature=1.5, seed=3, device="cpu")
    texts = ["What of ice?"] * 3
    first = [one.label for one in api.generate(place.bank, texts, config)]
    assert first == [one.label for one in api.generate(place.bank, texts, config)]
    later = GenerateConfig(task="pairs", max_new_tokens=8, temperature=1.5, seed=4, device="cpu")
    assert [one.label for one in api.generate(place.bank, texts, later)][:2] == first[1:]
    assert len(set(first)) > 1


def test_generate_ends_before_a_stop_text(place: Place) -> None:
    plain = GenerateConfig(task="plain", max_new_tokens=12, device="cpu")
    (whole,) = api.generate(place.bank, ["The fog"], plain)
    assert whole.label
    stop = whole.label[len(whole.label) // 2]
    ended = GenerateConfig(task="plain", max_new_tokens=12, stop=(stop,), device="cpu")
    (cut,) = api.generate(place.bank, ["The fog"], ended)
    assert cut.label == whole.label[: whole.label.index(stop)].strip()


def test_each_task_of_a_composition_reads_what_it_learnt_to_read(place: Place, tmp_path: Path) -> None:
    """A text that is sent to conversations stands in the chat template, one that is sent to pairs does not."""
    bank = Path(shutil.copytree(place.bank, tmp_path / "bank"))
    api.compose(bank, ComposeConfig(mode="routed", name="both", tasks="pairs,chat", router="kmeans", device="cpu"))
    texts = ["What of sun?", "What of hail?", "Be short.\n\nTell me about rain", "user\nTell me about dew\nassistant"]
    config = GenerateConfig(composition="both", max_new_tokens=4, device="cpu")
    found = api.generate(bank, texts, config)
    assert {one.task for one in found} == {"pairs", "chat"}
    for text, one in zip(texts, found, strict=True):
        prompt = rendered(place, ("user", text)) if one.task == "chat" else text
        assert one.label == plainly_generated(place, prompt, adapters=one.adapters)
