"""What goes into training an adapter, and what comes out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from lorabank.algebra.factors import LoraFactors
from lorabank.algebra.stack import AdapterStack
from lorabank.bank.progress import ProgressFile
from lorabank.core.commands import Command
from lorabank.core.config import TrainConfig
from lorabank.models.answering.scorings.base import Scoring
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.facts.curves import LearningCurve
from lorabank.models.tuners.state import TunerState
from lorabank.training.context import TaskFact
from lorabank.training.strategies.base import Strategy
from lorabank.training.tracking import Tracking


@dataclass(frozen=True)
class Replayed:
    """Rows of an earlier task, asked in its own form.

    Attributes:
        texts: Texts or prompts.
        targets: For each text its label or completion.
        labels: The task's labels; empty for free text.
        template: Prompt of a text, with ``{text}``; None where the text is the prompt.
        max_length: Maximum tokens of a row, as that task had them.
        head: State of the task's head, which is not trained again; empty where the rows are judged by the new head,
            and for a model without heads.
        place: The task's place among the earlier ones, from 0.
    """

    texts: Sequence[str]
    targets: Sequence[str]
    labels: tuple[str, ...]
    template: str | None
    max_length: int
    head: Mapping[str, Tensor]
    place: int = 0


@dataclass(frozen=True)
class TrainJob:
    """Everything that decides an adapter.

    Attributes:
        base: The bank's base model; what is trained is a model of its own over its weights.
        config: The settings.
        strategy: The strategy that ``config.strategy`` names.
        texts: Training texts: what is classified, or prompts.
        targets: For each text its label or completion.
        labels: The task's labels; empty for free text.
        template: Prompt of a text, with ``{text}``; None where the text is the prompt.
        held_texts: Texts that are held out of the training, and measured between its steps.
        held_targets: For each of these its label or completion.
        scoring: How the task will be asked; None for a classifier.
        earlier: Reads all ready adapters of the bank, stacked; None for the first task. Called once: what training
            needs of them is folded into the weights or copied, the rest is let go.
        context: Names in ``earlier`` that are active while training.
        continued: Name in ``earlier`` of the adapter that continues training, or None.
        work: Folder of the run's checkpoints.
        number: How many adapters the bank was ever given, removed ones too: no two of its trainings have the same.
        replayed: Rows of earlier tasks that are trained on again, and the heads that are asked again.
        kept: Numbers of the ``texts`` that the bank keeps for later tasks, in its order.
        earlier_head: State of the shared head that the new one grows from, whose labels come first; empty for a head
            that begins anew.
        objects: Role to what each earlier task recorded under it, in sequence order.
        resume: Whether to resume from the newest whole checkpoint.
        restart: What a user types to train from the first step on, where a checkpoint cannot be used.
        tracking: The run of an experiment tracker.
        progress: The file in which other processes follow the steps.
    """

    base: OpenBase
    config: TrainConfig
    strategy: Strategy
    texts: Sequence[str]
    targets: Sequence[str]
    labels: tuple[str, ...]
    earlier: Callable[[], AdapterStack | None]
    context: tuple[str, ...]
    continued: str | None
    work: Path
    number: int
    template: str | None = None
    held_texts: Sequence[str] = ()
    held_targets: Sequence[str] = ()
    scoring: Scoring | None = None
    replayed: tuple[Replayed, ...] = ()
    earlier_head: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Sequence[int] = ()
    objects: Mapping[str, Sequence[TaskFact]] = field(default_factory=dict)
    resume: bool = False
    restart: Command | None = None
    tracking: Tracking = field(default_factory=Tracking)
    progress: ProgressFile = field(default_factory=ProgressFile)

    @property
    def answers(self) -> Literal["own", "newest"] | None:
        """What answers for the task after later ones: as the strategy says, but under a shared head the newest."""
        return "newest" if self.config.head == "shared" else self.strategy.answers


@dataclass(frozen=True)
class TrainedAdapter:
    """What training gives; tensors are float32 on the CPU.

    Attributes:
        factors: The new adapter; empty where it is none of factors.
        head: State of the head modules by full parameter name.
        head_modules: Names of the modules that are stored whole.
        penalties: The weight of each penalty that was used.
        head_digest: SHA-256 of the head as safetensors, None for a model without one.
        max_length: Tokens of a text: what was asked for, or the model's limit.
        objects: Role to the bytes of what later tasks need.
        metrics: Last losses, overlap with each earlier adapter, capacity, rows cut and dropped.
        curve: How the training went; None where its steps were not recorded.
        tuned: What is stored in the place of factors (`Variant.alone`).
    """

    factors: LoraFactors
    head: dict[str, Tensor]
    head_modules: tuple[str, ...]
    target_modules: tuple[str, ...]
    penalties: dict[str, float]
    head_digest: str | None
    max_length: int
    steps: int
    wall_seconds: float
    device: str
    metrics: dict[str, Any]
    objects: dict[str, bytes]
    curve: LearningCurve | None = None
    tuned: TunerState | None = None
