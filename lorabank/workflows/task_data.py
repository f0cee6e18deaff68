"""A task's rows on a base model: read, encoded, looked at by the frozen base, and recorded."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

from lorabank.bank.operations import Operation
from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError, DataError, IncompatibleError
from lorabank.core.records import DatasetRecord
from lorabank.core.settings import validate
from lorabank.core.shelves import SCORINGS, TASK_TYPES
from lorabank.core.task_kinds import HEAD, TaskKind, task_kind
from lorabank.core.templates import ChatPrompt, check_template, parted
from lorabank.data.formats.cells import BadCell
from lorabank.data.formats.parquet import to_parquet
from lorabank.data.known import row_digests
from lorabank.data.loading import TaskData, example_row, load_task_data
from lorabank.data.methods import CHAT
from lorabank.data.rows import Rows, sample_indices, sample_rows
from lorabank.evaluation.text_metrics import usual_metric
from lorabank.evaluation.text_samples import FACT
from lorabank.models.bases.loading import LoadedBase
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.tasks.prompting import encode_labels
from lorabank.models.tasks.special_tokens import spellings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from lorabank.models.tasks.task_types import Examples, TaskType


_SHOWN = 300
"""Characters of an example."""


def encode_rows(base: OpenBase, data: TaskData, max_length: int) -> Examples:
    """The training rows as the base's task type encodes them."""
    task_type: TaskType = TASK_TYPES.load(base.record.task_type)()
    return task_type.encode(
        base.tokenizer,
        data.train.texts,
        data.train.labels,
        labels=data.labels,
        template=data.prompt_template,
        max_length=max_length,
    )


def load_data(config: TrainConfig, base: OpenBase) -> TaskData:
    """The rows that the settings name, as tasks of this base have them; the labels stand in the template."""
    if not config.data:
        raise ConfigError("no training data is given", hint="add --data FILE", unchanged="nothing was changed")
    chat = ChatTemplate(base)
    turn = chat.turn if base.record.chat_template_hash else None
    kind = task_kind(base.record.task_type)
    _check_kind(config, kind)
    data = load_task_data(config, labelled=kind.labelled, render_chat=chat, turn=turn)
    if isinstance(data.prompt_template, ChatPrompt):
        for rows in (data.train, data.eval, data.held):
            if rows is not None:
                chat.check_turns(rows)
    if data.labels and not kind.has_head:  # labels that this model cannot tell apart are refused before anything
        encode_labels(base.tokenizer, data.labels, glued=kind.glued and parted(data.prompt_template))
    return data


def _check_kind(config: TrainConfig, kind: TaskKind) -> None:
    """Refuse settings that mean nothing for this kind of model.

    Raises:
        ConfigError: Naming the first of them.
    """
    wrong = {
        "head": (
            config.head == "shared" and not kind.has_head,
            "--head shared is for classifiers, and a language model has no head",
        ),
        "class-weights": (
            config.class_weights != "none" and not kind.has_head,
            "--class-weights is for classifiers, and a language model learns tokens",
        ),
        "packing": (
            config.packing and not kind.glued,
            "--packing is for causal language models, whose prompt and answer are one sequence",
        ),
    }
    for name, (refused, why) in wrong.items():
        if refused:
            raise ConfigError(why, hint=f"leave --{name} out", unchanged="nothing was changed")


class ChatTemplate:
    """Renders conversations with the chat template of a base's own tokenizer, which is loaded when one comes.

    Args:
        base: The bank's base model.
    """

    def __init__(self, base: OpenBase) -> None:
        self._base = base

    def __call__(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A conversation up to where the assistant answers.

        Raises:
            BadCell: A message spells a control token, which would end its turn or begin another.
            IncompatibleError: The tokenizer has no chat template.
            TemplateError: The template refuses the conversation, or fails on it in whatever way.
        """
        from jinja2 import TemplateError, TemplateRuntimeError

        for number, message in enumerate(messages, start=1):
            if found := self._control.search(message["content"]):
                raise BadCell(
                    f"{found.group()!r} is a control token of the base's tokenizer and would be read as one",
                    place=f"message {number}",
                    hint="write it with a space inside, or leave the row out",
                )
        chat = [dict(message) for message in messages]
        tokenizer = self._tokenizer
        try:
            return str(tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True))
        except (TemplateError, MemoryError):
            raise
        except Exception as error:  # a template's expressions raise what Python's do
            raise TemplateRuntimeError(f"{type(error).__name__}: {error}") from error

    def turn(self, hint: str = "--set chat_template=none takes the prompts as they are") -> ChatPrompt:
        """The prompt template that puts a text into a user's turn, up to where the assistant answers.

        Args:
            hint: What to do where it takes none.

        Raises:
            IncompatibleError: The chat template takes no single turn of a user, or does not write it is.
        """
        from jinja2 import TemplateError

        try:
            prompt = ChatPrompt(self([{"role": "user", "content": "{text}"}]))
            check_template(prompt)
        except (TemplateError, ConfigError) as error:
            reason = " ".join(str(error).split())
            raise IncompatibleError(
                f"the chat template of {self._base.record.name!r} cannot be put around a text: {reason}",
                hint=hint,
                unchanged="nothing was changed",
            ) from error
        return prompt

    def check_turns(self, rows: Rows) -> None:
        """Refuse prompts that bring turns of their own, which within a user's turn would be words.

        Raises:
            DataError: A prompt spells a control token.
        """
        for index, text in enumerate(rows.texts):
            if found := self._control.search(text):
                raise DataError(
                    f"{rows.where(index)}: the prompt spells {found.group()!r}, a control token of the base's "
                    "tokenizer, so it cannot be put into the base's chat template",
                    hint="--set chat_template=none takes the prompts as they are",
                    unchanged="nothing was changed",
                )

    @cached_property
    def _control(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, spellings(self._tokenizer))) or "(?!)")

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        if self._base.tokenizer.chat_template:
            return self._base.tokenizer
        raise IncompatibleError(
            f"the tokenizer of {self._base.record.name!r} has no chat template, which conversations need",
            hint="bring prompt and completion columns, or use an instruct model: --base",
            unchanged="nothing was changed",
        )


def settled(config: TrainConfig, data: TaskData, max_length: int) -> TrainConfig:
    """The settings as the adapter's record keeps them: what the data and the model decided is filled in."""
    decided = {"format": data.form, "scoring": scoring_setting(data), "max_length": max_length}
    return validate(TrainConfig, asdict(config) | decided)


def recorded_settings(config: TrainConfig, data: TaskData) -> dict[str, Any]:
    """Settled settings as the adapter's record keeps them, and how prompts were made."""
    return asdict(config) | {CHAT: "auto" if data.chat else "none"}


def scoring_setting(data: TaskData) -> str:
    """The setting ``scoring`` of these rows: a classifier's is not chosen, it stays at ``auto``."""
    return "auto" if data.scoring == HEAD else data.scoring


def found_in_data(data: TaskData) -> dict[str, Any]:
    """The fields of a result about a task that say what was found in its files."""
    alike = [str(group) for group in data.look_alikes]
    return {
        "label_counts": data.label_counts,
        "look_alike_labels": alike,
        "warnings": data.warnings,
        "read_as": data.notes,
        "bad_rows": data.left_out,
    }


def recorded_bad_rows(data: TaskData) -> dict[str, Any]:
    """What the record says of bad rows; nothing where none were left out."""
    return {"bad_rows": [asdict(left) for left in data.left_out]} if data.left_out else {}


def text_facts(data: TaskData) -> dict[str, str]:
    """What an adapter's record says of how its task's answers are judged; nothing where they are not free text."""
    free = data.scoring != HEAD and SCORINGS.load(data.scoring).generates
    return {FACT: usual_metric(data.eval.labels)} if free else {}


def as_asked(data: TaskData) -> str:
    """The rows in one line: their form, how their prompts are built, their scoring, and the first of them."""
    prompt, answer = (json.dumps(text[:_SHOWN], ensure_ascii=False) for text in example_row(data))
    chat = ", put into the base's chat template" if data.chat else ""
    return f"rows of the form {data.form}{chat}, scored by {data.scoring}; the first: {prompt} -> {answer}"


def task_statistics(base: LoadedBase, rows: Rows, config: TrainConfig) -> tuple[bytes, dict[str, bytes]]:
    """Statistics of training rows under the frozen base, all from one pass (CoLoR fits them before training).

    Returns:
        Those of the last hidden state, which the task keeps, and others by role, which its adapter keeps.
    """
    from lorabank.compose.routers.evidence import Evidence
    from lorabank.compose.routers.query import Query
    from lorabank.compose.routers.ridge import RandomFeatures
    from lorabank.compose.routers.statistics import MOST_ROWS, fit_statistics
    from lorabank.models.mixing.features import LAST, extract_layers, routing_layers

    texts = rows.take(_looked_at(rows, MOST_ROWS, config)).keys
    layers = routing_layers(base.model, base.tokenizer)
    wanted = tuple(dict.fromkeys((LAST, *layers)))
    found = extract_layers(base.model, base.tokenizer, texts, wanted, max_length=config.max_length)
    features = dict(zip(wanted, found, strict=True))
    query = Query(texts, lambda layers: [features[layer] for layer in layers])
    clusters, seed = config.clusters_per_task, config.seed
    others = Evidence.fit(query, layers, clusters, seed), RandomFeatures.fit(query, layers[-1])
    last = fit_statistics(features[LAST], clusters, seed)
    return last.to_bytes(), {one.role: one.to_bytes() for one in others}


def _looked_at(rows: Rows, most: int, config: TrainConfig) -> list[int]:
    """A sample in which the rows that are kept are: they can be taken out of its statistics."""
    kept = dict.fromkeys(sample_indices(rows, config.keep_samples, config.seed))
    others = [index for index in sample_indices(rows, most, config.seed) if index not in kept]
    return sorted([*kept, *others[: max(0, most - len(kept))]])


def dataset_records(
    operation: Operation,
    data: TaskData,
    config: TrainConfig,
    rows_cut: int,
    rows_dropped: int = 0,
    *,
    replayable: int = 0,
    trained: bool = True,
) -> tuple[DatasetRecord, ...]:
    """The splits; of the training rows only the calibration sample is kept, and ``replayable`` rows.

    Of all training rows digests are kept, unless the adapter was ``trained`` elsewhere on rows that are not known.
    """

    def record(split: Any, rows: Rows, blob: str | None, *, dropped: int = 0, cut: int = 0) -> DatasetRecord:
        return DatasetRecord(
            task=operation.name,
            split=split,
            rows=len(rows),
            columns=rows.columns,
            sha256=rows.sha256,
            source=rows.source,
            rows_dropped=dropped,
            rows_cut=cut,
            blob=blob,
        )

    splits = [
        record("train", data.train, None, cut=rows_cut, dropped=rows_dropped)._replace(
            row_digests=operation.stage_blob(row_digests(data.train)) if trained else None
        ),
        record("eval", data.eval, operation.stage_blob(to_parquet(data.eval)), dropped=data.dropped),
    ]
    if config.keep_samples:
        sample = sample_rows(data.train, config.keep_samples, config.seed)
        splits.append(record("calibration", sample, operation.stage_blob(to_parquet(sample))))
    if replayable:
        from lorabank.training.reservoir import keep_rows

        kept = keep_rows(data.train, replayable, task=operation.name, seed=config.seed).rows
        splits.append(record("replay", kept, operation.stage_blob(to_parquet(kept))))
    return tuple(splits)
