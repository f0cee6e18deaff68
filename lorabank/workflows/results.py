"""What the use cases return: frozen, plain values that turn into JSON."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lorabank.core.commands import Command
from lorabank.core.records import AdapterRecord, CompositionRecord, DatasetRecord, TaskRecord
from lorabank.core.showing import data_frame, shown, table
from lorabank.data.bad_rows import LeftOut
from lorabank.evaluation.confusion import LabelScores
from lorabank.evaluation.routing.audit import RoutingAudit
from lorabank.evaluation.text_samples import TextScores

if TYPE_CHECKING:
    from lorabank.algebra.comparison import Comparison
    from lorabank.evaluation.matrix import ScoreMatrix
    from lorabank.evaluation.paired import Paired, PairedReport
    from lorabank.evaluation.plots.heatmap import Plot


@shown("name", "train_rows", "eval_rows", "labels", "steps", "trainable_parameters", "penalty")
@dataclass(frozen=True)
class TaskPlan:
    """What ``add_task`` would do.

    Attributes:
        settings: Every setting by name, as the work would use it: penalty and weight filled in, names of modules in
            place of ``auto``, ``max_length`` within the model's limit.
        tokens: ``mean``, ``p95`` and ``max`` tokens of a training text, before cutting; ``characters_per_token`` of
            its first rows.
        example: A training row as the model sees it: text or prompt, and label or completion.
        rows_cut: Training rows longer than ``max_length``.
        rows_dropped: Training rows whose completion does not fit into ``max_length``.
        context: Tasks whose adapters stay active, frozen.
        penalty: Weight of each penalty.
        bank_exists: False when the bank would be made first.
        modules_left_out: What is said about modules that ``target_modules`` means and that cannot be adapted; None
            where there are none.
        not_adapted: The modules that no adapter changes and why, a line for each kind.
        look_alike_labels: For each group of labels that a reader would take for one: what they are, with their rows.
        label_counts: Rows of each label in ``train`` and ``eval``, the most frequent first.
        warnings: What is likely a mistake in the rows: labels without evaluation rows or with few, texts with several
            labels, repeated rows, labels of very different frequency.
        read_as: How files were read, where that is not plain.
        bad_rows: Of each file the bad rows that were left out: ``source``, ``rows`` and the ``first`` of them.
        known_rows: Task to the number of evaluation rows that stand in its training rows.
        replaces: Number of the task that it would take the place of, None for none.
        superseded: Compositions that would go with that task.
        prompts: How prompts are built of texts: by the base's chat template, or the prompt template as a JSON string;
            else None.
        few_steps: What to type for more steps where they are few; else None.
        poor_fit: What is told where the base's tokenizer hardly knows the rows' script; else None.
        held_rows: Training rows that are held out for early stopping and not among ``train_rows``; None for none.
        packs: Sequences of an epoch, where rows are packed; earlier tasks' rows are not counted. Else None.
    """

    name: str
    settings: dict[str, Any]
    train_rows: int
    eval_rows: int
    labels: tuple[str, ...]
    example: tuple[str, str]
    tokens: dict[str, float]
    rows_cut: int
    rows_dropped: int
    steps: int
    trainable_parameters: int
    adapter_bytes: int
    context: tuple[str, ...]
    penalty: dict[str, float]
    bank_exists: bool
    modules_left_out: str | None
    not_adapted: tuple[str, ...] = ()
    look_alike_labels: list[str] = field(default_factory=list)
    label_counts: dict[str, dict[str, int]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    read_as: tuple[str, ...] = ()
    bad_rows: tuple[LeftOut, ...] = ()
    known_rows: dict[str, int] = field(default_factory=dict)
    replaces: int | None = None
    superseded: tuple[str, ...] = ()
    prompts: str | None = None
    few_steps: str | None = None
    poor_fit: str | None = None
    held_rows: int | None = None
    packs: int | None = None


@shown("task", "score", "bank", "warnings")
@dataclass(frozen=True)
class AddTaskResult:
    """A task that is in the bank.

    Attributes:
        score: ``metric``, ``value``, ``n``, ``low`` and ``high`` on its evaluation rows, and as ``labels`` the
            `LabelScores` of a task with labels, as ``texts`` the `TextScores` of one with free answers, else None.
        look_alike_labels: As of `TaskPlan`.
        label_counts: As of `TaskPlan`.
        warnings: As of `TaskPlan`.
        read_as: As of `TaskPlan`.
        bad_rows: As of `TaskPlan`.
        superseded: Compositions that held the version that this one took the place of, and went with it: name to the
            command that makes each again.
    """

    task: TaskRecord
    adapter: AdapterRecord
    datasets: tuple[DatasetRecord, ...]
    score: dict[str, Any]
    bank: str
    bank_created: bool
    look_alike_labels: list[str] = field(default_factory=list)
    label_counts: dict[str, dict[str, int]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    read_as: tuple[str, ...] = ()
    bad_rows: tuple[LeftOut, ...] = ()
    superseded: dict[str, Command] = field(default_factory=dict)


@shown("composition", "report")
@dataclass(frozen=True)
class ComposeResult:
    """A composition that is in the bank, and what its mode reports."""

    composition: CompositionRecord
    report: dict[str, Any]


@shown("composition", "rank", "scores")
@dataclass(frozen=True)
class HarnessScore:
    """A metric of a task of the lm-evaluation-harness.

    Attributes:
        task: The task.
        metric: Its metric, with what is taken of an answer where that is not all of it.
        before: Of the untouched base.
        after: With the adapters that answer after the last task.
        before_error: Standard error of ``before``, as the harness computes it; None where it has none.
        after_error: That of ``after``.
        higher_is_better: Whether a larger value is; None where the harness does not say.
        rows: Rows that were asked; None of a group of tasks.
        change: The paired test of the rows; None where a row has no score of its own.
    """

    task: str
    metric: str
    before: float
    after: float
    before_error: float | None
    after_error: float | None
    higher_is_better: bool | None
    rows: int | None
    change: Paired | None


@dataclass(frozen=True)
class GeneralSkills:
    """The perplexity of held-out text, lower is better.

    Attributes:
        before: Of the untouched base.
        after: With the adapters that answer after the last task.
        change: The paired test of the log-likelihood of a token, in nats, over the pieces of the text; negative where
            skills were lost.
        tokens: Tokens that were predicted.
        left_out: Pieces that do not fit into the model.
    """

    before: float
    after: float
    change: Paired
    tokens: int
    left_out: int


@shown("subject", "mode", "tasks", "scalars", "computed", "cached")
@dataclass(frozen=True)
class MatrixReport:
    """The matrix of one subject.

    Attributes:
        subject: ``"as-trained"`` or a composition's name.
        mode: How it answers.
        task_id: Whether the task id was given.
        values: ``[T + 1][T]``, row 0 the untrained base; None where nothing was measured.
        low: Lower ends of the 95 % intervals, same shape.
        high: Upper ends.
        scalars: Metric name to value; None where a score is missing.
        computed: Cells that were computed now.
        cached: Cells that were there.
        routing: For a routed subject at the last stage: ``routed`` and ``oracle`` average accuracy, ``accuracy`` of
            the routing, ``confusion[true][routed]`` counts, its ``tasks`` and the share of the rows of each that was
            routed to it, ``right``. Where the router gives probabilities, their mean ``confidence`` and the
            ``calibration_error`` (its distance from ``accuracy``), else None. ``abstention`` where it was asked for:
            ``threshold``, the share of rows that are answered as ``coverage`` (and of each task, ``covered``), and of
            those the share that was ``routed`` right and the mean ``score``.
        metric: What the values are; several names where tasks are scored by different ones.
        environments: Each environment that cells were computed in: their number ``cells``, versions of packages and
            ``threads``, None where a cell does not say.
        state: Of a report about one task, the state that it was scored in; otherwise None.
        labels: Task to how the rows of each label were answered after the last stage; none of a task without labels,
            or whose cell was stored before that was kept. Mistakes have their texts in a report about one task.
        texts: Task to how its rows were answered in free text after the last stage, with samples; none of other
            tasks, or whose cell was stored before that was kept.
        general: What learning did to the perplexity of the text that was asked for.
        harness: What it did to the tasks of the lm-evaluation-harness that were asked for.
        against: The test against the baseline that was asked for, of any other subject.
        audit: Of a routed subject, which tasks are confused and what the router goes by, where that was asked for.
    """

    subject: str
    mode: str
    task_id: Literal["given", "routed"]
    tasks: tuple[str, ...]
    values: list[list[float | None]]
    low: list[list[float | None]]
    high: list[list[float | None]]
    counts: list[int]
    scalars: dict[str, float | None]
    computed: int
    cached: int
    routing: dict[str, Any] | None
    settings: dict[str, Any]
    metric: str = "accuracy"
    environments: tuple[dict[str, Any], ...] = ()
    state: Literal["now", "learnt"] | None = None
    labels: dict[str, LabelScores] = field(default_factory=dict)
    texts: dict[str, TextScores] = field(default_factory=dict)
    against: PairedReport | None = None
    general: GeneralSkills | None = None
    harness: tuple[HarnessScore, ...] = ()
    audit: RoutingAudit | None = None

    def _repr_html_(self) -> str:
        """The matrix: a row for each stage with a score, a column for each task."""
        stages = ("untrained", *(f"after {task}" for task in self.tasks))
        cells = [["" if value is None else f"{value:.3f}" for value in row] for row in self.values]
        rows = [(stage, *row) for stage, row in zip(stages, cells, strict=True) if any(row)]
        return table(f"{self.subject} ({self.mode}): {self.metric}", ("", *self.tasks), rows)

    def matrix(self) -> ScoreMatrix:
        """The scores with their intervals as arrays; what was not measured is NaN."""
        import numpy as np

        from lorabank.evaluation.matrix import ScoreMatrix

        values, low, high = (np.array(cells, np.float64) for cells in (self.values, self.low, self.high))
        return ScoreMatrix(self.tasks, values, np.array(self.counts), low, high, self.metric)

    def plot(self) -> Plot:
        """The matrix as a heat-map; of a report about one task with labels, its confusion matrix.

        A notebook shows it; ``plot().save("matrix.png")`` writes it, and ``plot().figure`` is matplotlib's.
        """
        from lorabank.evaluation.plots.confusion import confusion_plot
        from lorabank.evaluation.plots.heatmap import heatmap

        if self.state is not None and self.labels:
            ((task, scores),) = self.labels.items()
            (accuracy,), (rows,) = self.values[-1], self.counts
            figures = f"accuracy {accuracy:.4f}, macro-F1 {scores.macro_f1:.4f}, {rows} rows"
            return confusion_plot(scores, f"{task}, in its state {self.state}", figures)
        return heatmap(self.matrix(), self.subject if self.mode == self.subject else f"{self.subject} ({self.mode})")

    def curves(self) -> Plot:
        """The score of each task over the stages, from the one after which it was learnt; many tasks: the worst."""
        from lorabank.evaluation.plots.tasks import task_plot

        return task_plot(self.matrix(), self.subject if self.mode == self.subject else f"{self.subject} ({self.mode})")

    def to_pandas(self) -> Any:
        """The matrix as a ``pandas.DataFrame``: a row for each stage, from ``base`` on, and a column for each task.

        Raises:
            MissingExtraError: pandas is not installed.
        """
        values = [[math.nan if value is None else value for value in row] for row in self.values]
        columns = {task: [row[j] for row in values] for j, task in enumerate(self.tasks)}
        return data_frame(columns, ("base", *self.tasks), "after")


@dataclass(frozen=True)
class Prediction:
    """The label of one text (or the text that was generated) and whose head gave it.

    Attributes:
        label: None where no task was likely enough.
        task: Whose head or form answered; ``"none"`` for the bare base; None where no task was likely enough.
        probability: The label's among its task's labels; None for a generated text.
        adapters: Weight of each task's adapter that answered.
        state: Of a task as trained ``"now"`` or ``"learnt"``, of the bare base ``"base"``, else ``"composition"``.
        composition: Name of the composition that answered, or None.
    """

    text: str
    label: str | None
    probability: float | None
    task: str | None
    task_id: Literal["given", "routed"]
    adapters: dict[str, float]
    state: Literal["now", "learnt", "base", "composition"]
    composition: str | None


@dataclass(frozen=True)
class RoutedPrediction(Prediction):
    """An answer whose task was found by a router.

    Attributes:
        margin: How far the second best task scored below this one, in squared distances (kmeans), cosines
            (similarity) or log-odds (gaussian; of layered, times its temperature); None where there is no other task.
        posterior: Probability of each task that is not very unlikely, the likeliest first; empty where the router
            gives none.
    """

    margin: float | None
    posterior: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class AnswersFile:
    """A file of rows with their answers.

    Attributes:
        rows: How many there are.
        answered: How many of them have an answer.
        read_as: How the file that was asked was read, where that is not plain.
        bad_rows: The bad rows, which have no answer.
    """

    path: str
    format: str
    rows: int
    answered: int
    read_as: tuple[str, ...] = ()
    bad_rows: LeftOut | None = None


@shown("one", "other", "relation", "interference", "input_overlap", "output_overlap")
@dataclass(frozen=True)
class CompareResult:
    """The adapters of two tasks side by side.

    Attributes:
        relation: ``"same factors"``; ``"same delta weights"`` of other factors, as a rotation ``B R`` and ``R^-1 A``
            leaves them; or ``"different"``.
        interference: Cosine of the delta weights over all modules: 0 where neither disturbs the other, 1 where they
            are the same up to a factor, negative where they cancel.
        input_overlap: Mean over the common modules of the overlap of what both read; None without such a module.
        output_overlap: The same of what both write.
        random_input_overlap: What is to be expected of random spaces.
        random_output_overlap: The same of what is written.
        only: Task to the modules that its adapter alone changes.
        details: Every figure, by module.
    """

    one: str
    other: str
    relation: Literal["same factors", "same delta weights", "different"]
    interference: float
    input_overlap: float | None
    output_overlap: float | None
    random_input_overlap: float | None
    random_output_overlap: float | None
    only: dict[str, tuple[str, ...]]
    details: Comparison


@dataclass(frozen=True)
class ExportResult:
    """A folder that was written.

    Attributes:
        kind: ``"adapter"``, ``"joined"`` or ``"composition"`` of a PEFT folder, ``"model"`` of a whole base.
        state: Which state of the task it is, ``"now"`` or ``"learnt"``; None of a composition or of ``own``.
        serve: The shell command that serves it; None unless a server was checked for.
    """

    path: str
    files: tuple[str, ...]
    kind: str
    note: str
    state: Literal["now", "learnt"] | None = None
    serve: str | None = None


@dataclass(frozen=True)
class DemoResult:
    """The demo's table and the files it wrote."""

    rows: tuple[dict[str, Any], ...]
    paths: tuple[str, ...]
    seconds: float
