"""A form of rows: questions with their answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lorabank.core.settings import setting
from lorabank.data.formats.cells import check_text, in_column
from lorabank.data.forms.base import Form, RenderChat


@dataclass(frozen=True)
class Question(Form):
    """A question and its answer."""

    mark: str = setting("Q: ", "What stands before a question.")

    def row(self, cells: Mapping[str, object], render_chat: RenderChat) -> tuple[str, str]:
        """The question behind its mark, and the answer."""
        question = check_text(cells["question"], "question")
        with in_column("answer"):
            return self.mark + question, check_text(cells["answer"], "answer")


QUESTION = Question(("question", "answer"))
