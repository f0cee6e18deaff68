"""An answer while it grows: pieces that make up the text, stop texts, and where it ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from lorabank.core.config import SamplingConfig
from lorabank.models.answering.replies import Following, GenerationRequest, Reply, Written

END = 999


class Bytes:
    """One token is one byte of UTF-8; half a character is written as the replacement character."""

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        return bytes(ids).decode("utf-8", "replace")


def fed(text: str, *, hear: list[str] | None = None, end: bool = True, **settings: Any) -> tuple[Reply, list[Written]]:
    done: list[Written] = []
    sampling = SamplingConfig(**({"max_new_tokens": 500} | settings))
    generation = GenerationRequest(sampling, hear=None if hear is None else hear.append, done=done.append)
    reply = Reply(Bytes(), generation, [END], 3)
    for token in [*text.encode(), *([END] if end else [])]:
        if reply.add(token, finite=True):
            break
    return reply, done


@pytest.mark.parametrize("text", ["plain words", "  blanks around \n ", "größer 日本 😀!", "a\n\n b", "", "   ", "x"])
@pytest.mark.parametrize("stop", [(), ("END",), ("zz", "\n\n\n")])
def test_the_pieces_are_the_text(text: str, stop: tuple[str, ...]) -> None:
    hear: list[str] = []
    reply, done = fed(text, hear=hear, stop=stop)
    silent, _ = fed(text)
    assert "".join(hear) == reply.written().text == silent.written().text == text.strip()
    assert "" not in hear
    assert "\ufffd" not in "".join(hear)
    assert done == [Written(text.strip(), 3, len(text.encode()), "stop")]


@pytest.mark.parametrize(
    ("text", "stop", "expected"),
    [
        ("one. two. three", (".",), "one"),
        ("one STOP two", ("STOP",), "one"),
        ("one ST OP STO STOP", ("STOP",), "one ST OP STO"),
        ("a\nUser: b", ("\nUser:", "zzz"), "a"),
        ("xyxz", ("xz", "yx"), "x"),
        ("never", ("STOP",), "never"),
        ("aaab", ("aab",), "a"),
        (" STOP two", (" STOP",), ""),
        ("\n\nUser: b", ("\n\nUser:",), ""),
        (" one  STOP two", (" STOP",), "one"),
    ],
)
@pytest.mark.parametrize("heard", [False, True])
def test_an_answer_ends_before_its_first_stop_text(
    text: str, stop: tuple[str, ...], expected: str, heard: bool
) -> None:
    hear: list[str] = []
    reply, _ = fed(text, hear=hear if heard else None, stop=stop)
    assert reply.written().text == expected
    assert reply.finish == "stop"
    if heard:
        assert "".join(hear) == expected


def test_an_answer_has_no_more_tokens_than_were_asked_for() -> None:
    reply, done = fed("abcdef", max_new_tokens=4)
    assert (reply.written().text, reply.finish, reply.written().tokens) == ("abcd", "length", 4)
    assert done == [reply.written()]
    assert reply.add(ord("x"), finite=True)  # what the batch computes for it later is not its own
    assert reply.written().text == "abcd"


def test_an_asker_can_end_it() -> None:
    told = iter([False, False, True])
    reply = Reply(Bytes(), GenerationRequest(SamplingConfig(), over=lambda: next(told)), [END], 1)
    assert [reply.add(token, finite=True) for token in b"abc"] == [False, False, True]
    assert (reply.written().text, reply.finish) == ("abc", "ended")


def test_numbers_that_are_not_finite_end_it_unheard() -> None:
    hear: list[str] = []
    done: list[Written] = []
    reply = Reply(Bytes(), GenerationRequest(SamplingConfig(), hear=hear.append, done=done.append), [END], 1)
    reply.add(ord("a"), finite=True)
    assert reply.add(ord("b"), finite=False)
    assert (reply.finite, done) == (False, [])


def test_a_criterion_hands_each_row_its_own_token() -> None:
    replies = [Reply(Bytes(), GenerationRequest(SamplingConfig(max_new_tokens=size)), [END], 1) for size in (1, 3)]
    follow = Following(replies, lambda: torch.tensor([True, True]))
    assert follow(torch.tensor([[5, 65], [5, 66]]), None).tolist() == [True, False]
    assert follow(torch.tensor([[5, 65, 0], [5, 66, 67]]), None).tolist() == [True, False]
    assert follow(torch.tensor([[5, 65, 0, 0], [5, 66, 67, END]]), None).tolist() == [True, True]
    assert [reply.written().text for reply in replies] == ["A", "BC"]
