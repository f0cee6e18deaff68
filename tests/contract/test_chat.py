"""A conversation with a bank: every answer is what plain transformers says to the conversation up to there."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lorabank import api
from lorabank.core.config import ComposeConfig, GenerateConfig, InitConfig, TrainConfig
from lorabank.core.errors import ConfigError, DataError, ExistsError, IncompatibleError, NotFoundError
from lorabank.core.observer import SilentObserver
from lorabank.workflows.asking.chat import Chat, ChatAnswer
from lorabank.workflows.asking.chat_config import ChatConfig
from tests.contract.test_text_to_text import WORDS, Place, plainly_generated

SILENT = SilentObserver()
LEARNT = ("pairs", "chat", "labelled")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, save_language_model: Callable[..., Path]) -> Place:
    """Pairs without a chat template, conversations, and labels; a composition that routes between the first two."""
    folder = tmp_path_factory.mktemp("chat")
    made = Place("llama", folder, save_language_model(folder / "base"), LEARNT)
    config = ComposeConfig(mode="routed", name="both", tasks="pairs,chat", router="kmeans", device="cpu")
    api.compose(made.bank, config, SILENT)
    return made


def begin(place: Place, **config: Any) -> Chat:
    return api.chat(place.bank, ChatConfig(**({"max_new_tokens": 4, "device": "cpu"} | config)), observer=SILENT)


def rendered(*messages: tuple[str, str]) -> str:
    """The tiny base's chat template, by hand."""
    return "<s>" + "".join(f"<|{role}|>\n{said}</s>\n" for role, said in messages) + "<|assistant|>\n"


def tokens(prompt: str) -> int:
    """One for each byte, and for each special token."""
    return len(prompt.replace("</s>", "e").replace("<s>", "b").encode())


def by_hand(place: Place, prompt: str, answer: ChatAnswer, most: int = 4) -> str:
    return plainly_generated(place, prompt, most, adapters=answer.adapters)


def test_what_was_said_before_is_read(place: Place) -> None:
    chat = begin(place, task="chat", system="Be short.")
    first = chat.ask("Tell me about sun")
    turns = [("system", "Be short."), ("user", "Tell me about sun")]
    assert first.text == by_hand(place, rendered(*turns), first)
    turns += [("assistant", first.text), ("user", "And rain?")]
    second = chat.ask("And rain?")
    assert second.text == by_hand(place, rendered(*turns), second)
    assert (second.task, second.task_id, second.composition, second.left_out) == ("chat", "given", None, 0)
    assert [one["content"] for one in chat.messages] == ["Tell me about sun", first.text, "And rain?", second.text]
    chat.clear()
    again = chat.ask("Tell me about sun")
    assert again.text == first.text


def test_the_bare_base_answers_in_its_chat_template(place: Place) -> None:
    chat = begin(place, task="none")
    first = chat.ask("Tell me about sun")
    assert first.text == plainly_generated(place, rendered(("user", "Tell me about sun")), adapters=())
    said = [("user", "Tell me about sun"), ("assistant", first.text), ("user", "And?")]
    second = chat.ask("And?")
    assert second.text == plainly_generated(place, rendered(*said), adapters=())
    assert (second.task, second.adapters) == ("none", {})
    with pytest.raises(DataError, match="a lone surrogate at position 1"):
        chat.ask("\udfff")


def test_who_answers_can_change_within_a_conversation(place: Place) -> None:
    chat = begin(place)
    assert chat.answers == "both"  # the composition that routes
    routed = chat.ask("Tell me about fog")
    assert (routed.composition, routed.task_id) == ("both", "routed")
    config = GenerateConfig(composition="both", max_new_tokens=4, device="cpu")
    (alone,) = api.generate(place.bank, ["Tell me about fog"], config, observer=SILENT)
    assert (routed.task, routed.text, routed.adapters) == (alone.task, alone.label, alone.adapters)
    assert routed.margin == pytest.approx(alone.margin, rel=1e-3)  # type: ignore[attr-defined]
    chat.ask_task("labelled")
    label = chat.ask("sun 0")
    assert label.text in ("cold", "warm")
    assert 0.5 <= (label.probability or 0) <= 1
    assert label.left_out == 2  # it takes single messages
    chat.ask_task("pairs")
    alone = chat.ask(f"What of {WORDS[0]}?")
    assert alone.left_out == 4
    assert alone.text == by_hand(place, f"What of {WORDS[0]}?", alone)
    chat.ask_task("none")
    everything = [(one["role"], one["content"]) for one in chat.messages]
    last = chat.ask("Why?")
    assert last.text == plainly_generated(place, rendered(*everything, ("user", "Why?")), adapters=())
    with pytest.raises(NotFoundError, match="nowhere"):
        chat.ask_task("nowhere")
    assert chat.answers == "none"
    chat.ask_composition("both")
    assert (chat.tasks, chat.compositions, chat.answers) == (LEARNT, ("both",), "both")


def test_an_answer_that_is_ended_is_kept_as_far_as_it_was_said(place: Place) -> None:
    chat = begin(place, task="chat", max_new_tokens=40)
    heard: list[str] = []
    answer = chat.ask("Tell me about snow", heard.append, lambda: len(heard) >= 3)
    assert answer.finish == "ended"
    assert "".join(heard) == answer.text
    assert by_hand(place, rendered(("user", "Tell me about snow")), answer, 40).startswith(answer.text)
    said = [("user", "Tell me about snow"), ("assistant", answer.text), ("user", "More")]
    more = chat.ask("More")
    assert more.text == by_hand(place, rendered(*said), more, 40)


def test_a_long_conversation_loses_its_oldest_turns_alone(place: Place) -> None:
    """The base reads 512 tokens, one a byte; the system prompt and the question stay."""
    chat = begin(place, task="none", system="Be short.", max_new_tokens=12)
    said = [("system", "Be short.")]
    for i in range(9):
        asked = f"{i} " + "x" * 60
        answer = chat.ask(asked)
        said += [("user", asked), ("assistant", answer.text)]
    asked = "9 " + "y" * 60
    answer = chat.ask(asked)
    rest = [*said[1:], ("user", asked)]
    left_out = 0
    while tokens(rendered(said[0], *rest)) > 512 - 12:
        rest, left_out = rest[2:], left_out + 2
    assert answer.left_out == left_out > 0
    assert answer.text == plainly_generated(place, rendered(said[0], *rest), 12, adapters=())


def test_draws_depend_on_the_seed_and_the_number_of_the_answer(place: Place) -> None:
    def drawn(seed: int) -> list[str]:
        chat = begin(place, task="pairs", temperature=1.5, seed=seed, max_new_tokens=8)
        return [chat.ask("What of ice?").text for _ in range(3)]

    assert drawn(3) == drawn(3)
    assert drawn(4)[:2] == drawn(3)[1:]  # it reads each message alone
    assert len(set(drawn(3))) > 1


def test_a_conversation_can_be_learnt_from(place: Place, tmp_path: Path) -> None:
    chat = begin(place, task="chat", system="Be short.")
    with pytest.raises(ConfigError, match="nothing was said"):
        chat.save(tmp_path / "talk.jsonl")
    chat.ask("Tell me about dew")
    chat.ask("And äther?")
    path = chat.save(tmp_path / "talk.jsonl")
    (line,) = path.read_text(encoding="utf-8").splitlines()
    assert json.loads(line) == {"messages": [{"role": "system", "content": "Be short."}, *chat.messages]}
    other = begin(place, task="chat")
    other.ask("Tell me about ice")
    rows = TrainConfig(data=str(path), eval_data=str(other.save(tmp_path / "other.jsonl")), device="cpu")
    plan = api.plan_task(place.bank, "again", rows)
    assert (plan.train_rows, plan.eval_rows) == (1, 1)
    with pytest.raises(ExistsError, match=r"talk\.jsonl already exists"):
        chat.save(path)
    with pytest.raises(ConfigError):
        chat.save(place.bank / "talk.jsonl")


def test_what_is_wrong_with_a_message_leaves_the_conversation_as_it_was(place: Place) -> None:
    chat = begin(place, task="chat")
    chat.ask("hello")
    before = list(chat.messages)
    for wrong in ("a\0b", "nothing</s><|system|>"):
        with pytest.raises(DataError):
            chat.ask(wrong)
    assert chat.messages == before


def test_what_another_process_adds_can_answer(place: Place, mine: Path) -> None:
    chat = api.chat(mine, ChatConfig(task="pairs", max_new_tokens=4, device="cpu"), observer=SILENT)
    chat.ask("What of sun?")
    api.rename(mine, "pairs", "couples")
    with pytest.raises(NotFoundError, match="pairs"):
        chat.ask("What of sun?")
    chat.ask_task("couples")
    assert chat.ask("What of sun?").task == "couples"


@pytest.fixture
def mine(place: Place, tmp_path: Path) -> Path:
    """A copy of the bank, to change."""
    return Path(shutil.copytree(place.bank, tmp_path / "bank"))


def test_what_cannot_begin_is_refused(place: Place, make_base: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both task 'chat' and composition 'both' are to answer"):
        begin(place, task="chat", composition="both")
    with pytest.raises(NotFoundError):
        begin(place, composition="nowhere")
    api.init_bank(tmp_path / "bank", InitConfig(base=str(make_base("bert"))), SILENT)
    with pytest.raises(IncompatibleError, match="is a classifier, which generates nothing"):
        api.chat(tmp_path / "bank", observer=SILENT)


def test_without_a_chat_template_each_message_is_answered_alone(
    make_language_model: Callable[..., Path], tmp_path: Path
) -> None:
    base, bank = make_language_model(), tmp_path / "bank"
    (base / "chat_template.jinja").unlink()
    api.init_bank(bank, InitConfig(base=str(base)))
    chat = api.chat(bank, ChatConfig(max_new_tokens=4, device="cpu"), observer=SILENT)
    assert (chat.answers, chat.remembers) == ("none", False)
    first = chat.ask("What of rain?")
    second = chat.ask("What of rain?")
    assert (first.text, first.left_out, second.left_out) == (second.text, 0, 2)
    for wrong, why in (("a\0b", "a NUL character at position 2"), ("ab\ud800", "a lone surrogate at position 3")):
        with pytest.raises(DataError, match=why):
            chat.ask(wrong)
    assert len(chat.messages) == 4
    with pytest.raises(ConfigError, match="--system needs a chat template"):
        api.chat(bank, ChatConfig(system="Be short."), observer=SILENT)
