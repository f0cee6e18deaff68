"""What callers send: OpenAI's fields, with the bounds of lorabank's settings, and a few of lorabank's own.

The server refuses a field that it does not follow and that would change the answer, unless its value asks for nothing.
It ignores any other unknown field, since clients send many.
"""

from __future__ import annotations

import secrets
from dataclasses import fields
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

from lorabank.core.config import SamplingConfig
from lorabank.models.answering.replies import GenerationRequest
from lorabank.workflows.asking.questions import Message, Question

_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "audio": (),
    "best_of": (1,),
    "echo": (False,),
    "frequency_penalty": (0,),
    "function_call": ("none", "auto"),
    "functions": ([],),
    "logit_bias": ({},),
    "min_p": (0,),
    "modalities": (["text"],),
    "n": (1,),
    "prediction": (),
    "presence_penalty": (0,),
    "response_format": ({"type": "text"},),
    "suffix": ("",),
    "tool_choice": ("none", "auto"),
    "tools": ([],),
    "top_k": (0, -1),
    "web_search_options": (),
}
"""Fields that the server does not follow, and the values with which they ask for nothing."""

MOST_STOPS, LONGEST_STOP = 16, 200


def _setting(name: str) -> Any:
    """A field with the default and the bounds of a setting of `SamplingConfig`."""
    (one,) = (field for field in fields(SamplingConfig) if field.name == name)
    return FieldInfo(default=one.default, description=one.metadata["help"], **one.metadata["bounds"])


def _listed(value: Any) -> Any:
    """One text as a list of it."""
    return [value] if isinstance(value, str) else value


Stop = Annotated[str, Field(min_length=1, max_length=LONGEST_STOP)]
Tokens = Annotated[int, Field(ge=1, le=2**31)]
Texts = Annotated[list[str], Field(min_length=1), BeforeValidator(_listed)]


class Body(BaseModel):
    """What every call names."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    model: str = Field(min_length=1, max_length=200, description="A task or a composition.")

    @model_validator(mode="after")
    def _follows_what_is_asked(self) -> Self:
        for name, value in (self.model_extra or {}).items():
            if name in _NEUTRAL and value is not None and value not in _NEUTRAL[name]:
                raise ValueError(f"the server does not follow {name!r}: leave it out")
        return self


class StreamOptions(BaseModel):
    """What a stream ends with."""

    model_config = ConfigDict(strict=True)

    include_usage: bool | None = False


class Generating(Body):
    """How free text is generated."""

    max_tokens: Tokens | None = Field(None, description="Maximum number of new tokens.")
    max_completion_tokens: Tokens | None = Field(None, description="The same under its newer name.")
    temperature: float | None = _setting("temperature")
    top_p: float | None = _setting("top_p")
    repetition_penalty: float | None = _setting("repetition_penalty")
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = Field(None, description="Default: a new one.")
    stop: Annotated[Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None, BeforeValidator(_listed)] = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    def generation(self, most: int, number: int = 0) -> GenerationRequest:
        """How an answer is generated.

        Args:
            most: Maximum number of new tokens, whatever is asked for.
            number: Of the text among those of the call, which draws with the seed plus this.
        """
        asked = self.max_completion_tokens or self.max_tokens or most
        seed = secrets.randbits(32) if self.seed is None else self.seed % 2**32
        names = ("temperature", "top_p", "repetition_penalty")
        given: dict[str, Any] = {name: value for name in names if (value := getattr(self, name)) is not None}
        stop = tuple(self.stop or ())
        sampling = SamplingConfig(max_new_tokens=min(asked, most), seed=seed + number, stop=stop, **given)
        return GenerationRequest(sampling)

    @property
    def usage_in_stream(self) -> bool:
        """Whether the last chunk of a stream holds the tokens."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class TextPart(BaseModel):
    """A part of a message; there are no others than text."""

    model_config = ConfigDict(strict=True)

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn."""

    model_config = ConfigDict(strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=256)]

    def plain(self) -> Message:
        """The message as chat templates take it."""
        content = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatBody(Generating):
    """A conversation, whose last turn is the user's."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=256)
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None

    @model_validator(mode="after")
    def _ends_with_the_user(self) -> Self:
        if self.messages[-1].role != "user":
            raise ValueError("the last message is not the user's")
        return self

    def questions(self, most: int) -> list[Question]:
        """The one question."""
        return [Question(self.model, tuple(message.plain() for message in self.messages), self.generation(most))]


class CompletionBody(Generating):
    """Texts, each for the task's prompt template."""

    prompt: Texts
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    raw: bool | None = Field(False, description="Use the text as the whole prompt.")

    def questions(self, most: int) -> list[Question]:
        """One question for each text."""
        return [
            Question(self.model, _said(text), self.generation(most, i), raw=bool(self.raw))
            for i, text in enumerate(self.prompt)
        ]


class ClassifyBody(Body):
    """Texts to label."""

    input: Texts
    all_labels: bool | None = Field(False, description="Give the probability of every label.")

    def questions(self) -> list[Question]:
        """One question for each text."""
        return [Question(self.model, _said(text), GenerationRequest(SamplingConfig())) for text in self.input]


def _said(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)
