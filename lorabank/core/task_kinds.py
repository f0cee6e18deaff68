"""What kind of model each task type needs: facts that storage, reports and the command line ask without torch."""

from typing import NamedTuple

from lorabank.core.shelves import TASK_TYPES

DEFAULT_BASE = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_LANGUAGE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"

HEAD = "classification"
"""How a task is scored whose answers a classification head gives; the shelf of scorings is for language models."""


class TaskKind(NamedTuple):
    """One of PEFT's task types, without its mathematics (`lorabank.models.tasks.task_types.TaskType`).

    Attributes:
        name: PEFT's name.
        auto_class: The transformers class that loads its models.
        has_head: Whether each task has a classification head of its own.
        labelled: Whether it learns labelled texts alone, and answers with one of the task's labels.
        generates: Whether it can answer with free text.
        glued: Whether prompt and answer are one sequence. Then the answer to a filled template begins with a blank;
            otherwise the prompt ends as the tokenizer ends a text.
        pipeline: The hub's name of the task, for a model card; None where the hub has none.
        default_base: The base model of a bank that names none; None where one must be named.
    """

    name: str
    auto_class: str
    has_head: bool
    labelled: bool
    generates: bool
    glued: bool
    pipeline: str | None = None
    default_base: str | None = None


CLASSIFICATION = TaskKind(
    "SEQ_CLS",
    "AutoModelForSequenceClassification",
    has_head=True,
    labelled=True,
    generates=False,
    glued=False,
    pipeline="text-classification",
    default_base=DEFAULT_BASE,
)
CAUSAL_LM = TaskKind(
    "CAUSAL_LM",
    "AutoModelForCausalLM",
    has_head=False,
    labelled=False,
    generates=True,
    glued=True,
    pipeline="text-generation",
    default_base=DEFAULT_LANGUAGE_MODEL,
)
SEQ_2_SEQ_LM = TaskKind(
    "SEQ_2_SEQ_LM", "AutoModelForSeq2SeqLM", has_head=False, labelled=False, generates=True, glued=False
)

_KINDS = {kind.name: kind for kind in (CLASSIFICATION, CAUSAL_LM, SEQ_2_SEQ_LM)}


def task_kind(name: str) -> TaskKind:
    """The facts of a task type.

    Raises:
        ConfigError: There is no such task type.
    """
    if name in _KINDS:
        return _KINDS[name]
    kind: TaskKind = TASK_TYPES.load(name).kind
    return kind


def generating() -> TaskKind:
    """The first task type on the shelf whose models generate text: what messages propose for free answers."""
    return next(kind for kind in map(task_kind, TASK_TYPES) if kind.generates)
