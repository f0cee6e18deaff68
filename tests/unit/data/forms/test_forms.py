"""What each form makes of a row, and where it says that a row is wrong."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lorabank.core.config import TrainConfig
from lorabank.core.errors import DataError, IncompatibleError
from lorabank.core.shelves import FORMS
from lorabank.data.forms.chat import MESSAGES, SHAREGPT
from lorabank.data.loading import TaskData, load_task_data


def render(messages: Sequence[Mapping[str, str]]) -> str:
    """A chat template written by hand."""
    return "".join(f"<{message['role']}>{message['content']}" for message in messages) + "<assistant>"


def load(folder: Path, *rows: Any, **changes: Any) -> TaskData:
    """The rows are the training rows; two more of the same keys are evaluated on."""
    train, test = folder / "train.jsonl", folder / "test.jsonl"
    train.write_text("".join(json.dumps(row) + "\n" for row in rows))
    test.write_text(json.dumps(EVALUATION[frozenset(rows[0]) - {"input", "id"}]) + "\n")
    config = TrainConfig(data=str(train), eval_data=str(test), **changes)
    return load_task_data(config, labelled=False, render_chat=render)


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]


EVALUATION: dict[frozenset[str], Any] = {
    frozenset({"prompt", "completion"}): {"prompt": "evaluated", "completion": "x"},
    frozenset({"instruction", "output"}): {"instruction": "evaluated", "output": "x"},
    frozenset({"messages"}): {"messages": turns("evaluated", "x")},
    frozenset({"conversations"}): {
        "conversations": [{"from": "human", "value": "evaluated"}, {"from": "gpt", "value": "x"}]
    },
    frozenset({"text"}): {"text": "evaluated"},
}

GOOD: dict[str, Any] = {
    "prompt-completion": {"prompt": "2 + 2 =", "completion": " 4"},
    "messages": {"messages": turns("Hi", "Hello", "2 + 2?", "4")},
    "alpaca": {"instruction": "Add.", "input": "2, 2", "output": "4"},
    "sharegpt": {"conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]},
    "text": {"text": "All of it."},
}

# ---------------------------------------------------------------------------------------------- prompts, completions


@pytest.mark.parametrize(
    ("form", "prompt", "completion"),
    [
        ("prompt-completion", "2 + 2 =", " 4"),
        ("messages", "<user>Hi<assistant>Hello<user>2 + 2?<assistant>", "4"),
        ("alpaca", "Add.\n\n2, 2", "4"),
        ("sharegpt", "<user>2 + 2?<assistant>", "4"),
        ("text", "", "All of it."),
    ],
)
def test_a_row_becomes_prompt_and_completion(tmp_path: Path, form: str, prompt: str, completion: str) -> None:
    data = load(tmp_path, GOOD[form])
    assert (data.form, data.train.texts, data.train.labels) == (form, (prompt,), (completion,))
    assert (data.labels, data.prompt_template, data.train.free) == ((), None, True)
    assert data.scoring == ("perplexity" if form == "text" else "generation")
    assert set(GOOD) == set(FORMS) - {"classification"}


@pytest.mark.parametrize("nothing", [{}, {"input": ""}, {"input": " \n"}, {"input": None}])
def test_an_instruction_without_input_stands_alone(tmp_path: Path, nothing: dict[str, Any]) -> None:
    rows = [{"instruction": "Say yes.", "output": "yes", **nothing}, {"instruction": "a", "input": "b", "output": "c"}]
    assert load(tmp_path, *rows).train.texts == ("Say yes.", "a\n\nb")


def test_an_input_that_was_renamed_away_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(json.dumps(GOOD["alpaca"]) + '\n{"instruction": "b", "output": "c"}\n')
    config = TrainConfig(data=str(tmp_path / "train.jsonl"), map=("input=note",))
    data = load_task_data(config, labelled=False)
    assert {*data.train.texts, *data.eval.texts} == {"Add.", "b"}


def test_an_optional_column_can_be_renamed(tmp_path: Path) -> None:
    rows = [{"instruction": "a", "context": f"b {i}", "output": "c"} for i in range(2)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = TrainConfig(data=str(tmp_path / "train.jsonl"), map=("context=input",))
    data = load_task_data(config, labelled=False)
    assert {*data.train.texts, *data.eval.texts} == {"a\n\nb 0", "a\n\nb 1"}


def test_prompts_and_completions_may_be_messages(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be short."}
    rows = [
        {"prompt": [system, *turns("Hi")], "completion": turns("", "Hello")[1:]},
        {"prompt": turns("Hi"), "completion": " Hello "},
        {"prompt": turns("a"), "completion": [*turns("", "b")[1:], *turns("c", "d")]},
    ]
    data = load(tmp_path, *rows)
    assert data.train.texts == (
        "<system>Be short.<user>Hi<assistant>",
        "<user>Hi<assistant>",
        "<user>a<assistant>b<user>c<assistant>",
    )
    assert data.train.labels == ("Hello", " Hello ", "d")


def test_conversations_come_from_parquet_too(tmp_path: Path) -> None:
    # A struct has every key in every message; those that were absent are null.
    messages = [{**message, "tool_calls": None} for message in turns("Hi", "Hello")]
    for name, rows in (("train", messages), ("test", turns("a", "b"))):
        pq.write_table(pa.table({"messages": [rows]}), tmp_path / f"{name}.parquet")
    config = TrainConfig(data=str(tmp_path / "train.parquet"), eval_data=str(tmp_path / "test.parquet"))
    data = load_task_data(config, labelled=False, render_chat=render)
    assert (data.train.texts, data.train.labels) == (("<user>Hi<assistant>",), ("Hello",))


def test_a_conversation_of_a_tokenizer_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    load(tmp_path, GOOD["messages"])
    with pytest.raises(IncompatibleError, match="no chat template"):
        load_task_data(TrainConfig(data=str(tmp_path / "train.jsonl")), labelled=False)


def test_what_the_chat_template_refuses_is_named_with_its_line(tmp_path: Path) -> None:
    load(tmp_path, GOOD["messages"], {"messages": [*turns("a"), *turns("b", "c")]})

    def refusing(messages: Sequence[Mapping[str, str]]) -> str:
        template = "{% if m[0]['content'] == 'a' %}{{ e('roles must\nalternate') }}{% endif %}x"

        def fail(reason: str) -> None:
            raise jinja2.TemplateError(reason)

        return jinja2.Template(template).render(m=messages, e=fail)

    config = TrainConfig(data=str(tmp_path / "train.jsonl"), eval_data=str(tmp_path / "test.jsonl"))
    with pytest.raises(DataError, match=r"line 2, column 'messages': .*template refuses .*: roles must alternate$"):
        load_task_data(config, labelled=False, render_chat=refusing)


@given(
    st.lists(
        st.tuples(st.sampled_from(["system", "user", "assistant"]), st.text("ab \n{}", min_size=1).filter(str.strip)),
        min_size=1,
        max_size=6,
    ),
    st.text("cd", min_size=1),
)
def test_sharegpt_is_messages_in_other_words(said: list[tuple[str, str]], answer: str) -> None:
    words = {"system": "system", "user": "human", "assistant": "gpt"}
    messages = [{"role": role, "content": content} for role, content in [*said, ("assistant", answer)]]
    other = [{"from": words[message["role"]], "value": message["content"]} for message in messages]
    prompt, completion = MESSAGES.row({"messages": messages}, render)
    assert SHAREGPT.row({"conversations": other}, render) == (prompt, completion)
    assert prompt + completion == "".join(f"<{role}>{text}" for role, text in said) + "<assistant>" + answer


# --------------------------------------------------------------------------------------------------- what is refused

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
HUMAN, GPT = {"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}


@pytest.mark.parametrize(
    ("form", "row", "problem"),
    [
        ("prompt-completion", {"prompt": "a", "completion": " \n"}, "column 'completion': the completion is empty"),
        ("prompt-completion", {"prompt": "a", "completion": None}, "'completion': expected a text, found nothing"),
        ("prompt-completion", {"prompt": "a", "completion": 4}, "'completion': expected a text, found 4"),
        ("prompt-completion", {"prompt": "", "completion": "b"}, "column 'prompt': the prompt is empty"),
        ("prompt-completion", {"prompt": {"a": 1}, "completion": "b"}, "'prompt': expected a text, found an object"),
        ("prompt-completion", {"prompt": "a\u0000", "completion": "b"}, "'prompt': a NUL character at position 2"),
        (
            "prompt-completion",
            {"prompt": "a", "completion": "b\ud800"},
            "'completion': a lone surrogate at position 2",
        ),
        ("prompt-completion", {"prompt": "a", "completion": [ANSWER]}, "'completion': expected a text, as the prompt"),
        (
            "prompt-completion",
            {"prompt": [USER], "completion": [USER]},
            "'completion': the conversation has no assist",
        ),
        ("prompt-completion", {"prompt": [USER], "completion": None}, "'completion': expected a text, found nothing"),
        ("prompt-completion", {"prompt": [USER, 3], "completion": "b"}, "'prompt', message 2: expected an object"),
        ("prompt-completion", {"prompt": "a"}, "line 2: no column 'completion'"),
        ("alpaca", {"instruction": "a", "output": ""}, "column 'output': the output is empty"),
        ("alpaca", {"instruction": "", "output": "a"}, "column 'instruction': the instruction is empty"),
        ("alpaca", {"instruction": "a", "input": 3, "output": "a"}, "column 'input': expected a text, found 3"),
        ("text", {"text": "\t"}, "column 'text': the text is empty"),
        ("messages", {"messages": "Hi"}, "column 'messages': expected a list of messages, found a text"),
        ("messages", {"messages": {"role": ["user"]}}, "expected a list of messages, found an object"),
        ("messages", {"messages": []}, "column 'messages': the conversation is empty"),
        ("messages", {"messages": [USER]}, "column 'messages': the conversation has no assistant turn"),
        ("messages", {"messages": [USER, ANSWER, USER]}, "message 3: the conversation ends with the user"),
        ("messages", {"messages": [ANSWER]}, "message 1: nothing comes before the assistant's answer"),
        ("messages", {"messages": [USER, None]}, "message 2: expected an object with 'role' and 'content'"),
        (
            "messages",
            {"messages": [{"role": "user", "contents": "a"}, ANSWER]},
            "message 1: no key 'content'; its keys",
        ),
        ("messages", {"messages": [{**USER, "role": "usr"}, ANSWER]}, "message 1, key 'role': unknown role 'usr'"),
        ("messages", {"messages": [{**USER, "role": None}, ANSWER]}, "message 1, key 'role': expected a role, found"),
        ("messages", {"messages": [{**USER, "content": None}, ANSWER]}, "message 1, key 'content': expected a text"),
        ("messages", {"messages": [USER, {**ANSWER, "content": " "}]}, "message 2, key 'content': the text is empty"),
        ("messages", {"messages": [USER, {**ANSWER, "content": [{"type": "text"}]}]}, "message 2, key 'content'"),
        ("messages", {"messages": [USER, {**ANSWER, "tool_calls": [{"id": 1}]}]}, "message 2, key 'tool_calls'"),
        ("sharegpt", {"conversations": [{**HUMAN, "from": "bot"}, GPT]}, "message 1, key 'from': unknown role 'bot'"),
        (
            "sharegpt",
            {"conversations": [HUMAN, {**GPT, "value": 7}]},
            "message 2, key 'value': expected a text, found 7",
        ),
        ("sharegpt", {"conversations": [HUMAN, GPT, HUMAN]}, "message 3: the conversation ends with the user"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, form: str, row: dict[str, Any], problem: str) -> None:
    with pytest.raises(DataError) as caught:
        load(tmp_path, GOOD[form], row)
    message = caught.value.message
    assert "train.jsonl', line 2" in message
    assert problem in message
    assert "\n" not in message


def test_a_misspelt_key_and_role_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Did you mean 'contents'\?"):
        load(tmp_path, {"messages": [{"role": "user", "contents": "a"}, ANSWER]})
    with pytest.raises(DataError, match=r"expected one of 'system', 'user', 'assistant'\. Did you mean 'assistant'\?"):
        load(tmp_path, {"messages": [USER, {**ANSWER, "role": "assistants"}]})


def test_messages_in_a_sharegpt_column_are_told_how_to_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no key 'from'") as caught:
        load(tmp_path, {"conversations": [USER, ANSWER]})
    assert caught.value.hint == "--map conversations=messages"
