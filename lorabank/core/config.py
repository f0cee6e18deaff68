"""Settings: one frozen dataclass per use case.

The command line builds its options from these fields (name, type, default, help), so there is one source.
`lorabank.core.settings.validate` checks them. Importing this module loads only the standard library.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from typing import ClassVar, Literal

from lorabank.core.limits import MAX_RANK
from lorabank.core.settings import renamed, setting
from lorabank.core.shelves import (
    COMPOSERS,
    EVERY_VARIANT,
    FORMS,
    GATES,
    MERGERS,
    OPTIMIZERS,
    PENALTIES,
    QUANTISERS,
    ROUTERS,
    SAVINGS,
    SCORINGS,
    STARTS,
    STRATEGIES,
    TASK_TYPES,
    TEXT_METRICS,
)
from lorabank.core.task_kinds import DEFAULT_BASE, DEFAULT_LANGUAGE_MODEL

LEARNING_RATE = 1e-3
"""The learning rate of every variant that has none of its own."""

MAX_RESIDENT = (
    "Maximum memory for adapters, for example 512MiB; the least recently used one is evicted; default: no limit."
)
_STATE = "The task as it answers now, or as it was when it was learnt; default: now."
_OF_FORMATS = {"delimiter": "*.delimiter", "encoding": "*.encoding", "sheet": "*.sheet"}
"""Settings that moved to the file formats."""


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """A new bank."""

    base: str | None = setting(
        None,
        f"Base model: a Hugging Face id or a local folder; default: {DEFAULT_BASE}, or for text to text "
        f"{DEFAULT_LANGUAGE_MODEL}.",
    )
    revision: str | None = setting(None, "Commit or tag of a hub model.")
    gguf_file: str | None = setting(None, "GGUF file in --base (a folder or hub id), or its path without --base.")
    quantise: str | None = setting(
        None,
        "Keep the base's linear layers in few bits: "
        f"{' or '.join(QUANTISERS.table)}, with settings behind a colon, such as nf4:block_size=128.",
    )
    task_type: str = setting(
        "auto",
        "PEFT task type of the bank; auto: what the base model was made for.",
        among=TASK_TYPES,
        besides=("auto",),
    )


@dataclass(frozen=True, kw_only=True)
class LoralibConfig:
    """What a checkpoint of loralib does not hold."""

    alpha: float | None = setting(None, "Numerator of the scaling alpha / r of the checkpoint's layers.", gt=0)
    enable_lora: str | None = setting(
        None, "Which parts of fused matrices are adapted; true,false,true is query and value."
    )


@renamed(
    {"lambda_l1": 1e-3, "lambda_l2": 0.0, "replay_rows": 200, "chat_template": "auto", "max_new_tokens": 50},
    lambda_orth="penalty_weight",
    lambda_l1="amlora.lambda_l1",
    lambda_l2="set.lambda_l2",
    replay_rows="replay.replay_rows",
    prompt_template="set.prompt_template",
    label_words="set.label_words",
    chat_template="*.chat_template",
    max_new_tokens="*.max_new_tokens",
    **_OF_FORMATS,
)
@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One task: its data, its adapter and how the adapter is trained."""

    data: str = setting(
        "", "Training rows: .jsonl, .json, .csv, .tsv, .xlsx, .parquet, or hf:OWNER/NAME[/CONFIG][:SPLIT]."
    )
    eval_data: str | None = setting(None, "Evaluation rows; default: a part of --data.")
    format: str = setting("auto", "Form of the rows; auto: inferred from the columns.", among=FORMS, besides=("auto",))
    map: tuple[str, ...] = setting((), "Read a column under another name: --map old=new; may be repeated.")
    eval_fraction: float = setting(0.2, "Part of --data kept for evaluation without --eval-data.", gt=0, lt=1)
    held_fraction: float = setting(
        0.1, "Part of the training rows held out for --eval-every and --early-stopping.", gt=0, lt=1
    )
    text_column: str = setting("text", "Column that holds the text.")
    label_column: str = setting("label", "Column that holds the label.")
    skip_bad: bool = setting(False, "Skip bad rows and list them; at most half of a file may be bad.")
    scoring: str = setting(
        "auto",
        "Text to text: likelihood (over the labels), generation (of free text) or perplexity.",
        among=SCORINGS,
        besides=("auto",),
    )
    max_length: int = setting(
        256, "Maximum number of tokens of a text; longer texts are truncated and counted.", ge=4, le=131072
    )
    keep_samples: int = setting(
        256, "Training rows that are kept for compositions that learn from rows; 0 for none.", ge=0
    )
    clusters_per_task: int = setting(
        5, "Number of k-means centroids of the task, for prototype routing.", ge=1, le=1024
    )
    head: Literal["own", "shared"] = setting(
        "own", "Classifier: a head for each task, or one shared head that each task's labels make grow."
    )
    strategy: str = setting(
        "olora", "What happens to the earlier adapters while this one is trained.", among=STRATEGIES
    )
    variant: str = setting(
        "lora", "How the adapter's factors are computed from the trained parameters.", among=EVERY_VARIANT
    )
    start: str = setting("kaiming", "Initialisation of its factors.", among=STARTS)
    savings: tuple[str, ...] = setting(
        (), "What a training step leaves out to save time or memory; may be repeated.", among=SAVINGS
    )
    penalty: str | None = setting(
        None, "Penalty on the new adapter; default: the strategy's own.", among=PENALTIES, besides=("none",)
    )
    penalty_weight: float | None = setting(None, "Weight of the penalty; default: the penalty's own.", ge=0)
    set: tuple[str, ...] = setting(
        (),
        "Setting of a chosen method or a file's format, as KEY=VALUE (the command methods lists them); "
        "may be repeated.",
    )
    r: int = setting(8, "Rank of the adapter.", ge=1, le=MAX_RANK)
    lora_alpha: float = setting(32.0, "Numerator of the scaling lora_alpha / r.", gt=0)
    lora_dropout: float = setting(
        0.1, "Dropout on the input of the new adapter; 0 also turns off the base's own dropout.", ge=0, lt=1
    )
    use_rslora: bool = setting(False, "Scale by lora_alpha / sqrt(r) instead.")
    target_modules: str = setting(
        "auto",
        "Adapted modules: 'auto' (query and value), 'all-linear', or names separated by commas, of embeddings and "
        "convolutions too; c_attn.q is the query of a fused matrix.",
    )
    first_layer: int = setting(0, "Lowest transformer layer that is adapted, counted from 0.", ge=0)
    epochs: float = setting(4.0, "Passes over the training rows.", gt=0)
    max_steps: int | None = setting(None, "Optimizer steps, in the place of --epochs.", ge=1)
    eval_every: int | None = setting(
        None,
        "Optimizer steps between two measurements of held-out training rows, the best of which decides which step's "
        "adapter is kept; with --early-stopping an epoch's by default.",
        ge=1,
    )
    early_stopping: int | None = setting(None, "Stop after so many of these measurements without a lower loss.", ge=1)
    packing: bool = setting(
        False,
        "Put several rows of a causal language model into one sequence of at most --max-length tokens, which do not "
        "see each other; a batch then has so many sequences.",
    )
    class_weights: Literal["none", "balanced"] = setting(
        "none", "Weights of a classifier's labels in the loss; balanced: each label counts the same."
    )
    batch_size: int = setting(16, "Batch size of a step, over all processes.", ge=1)
    gradient_accumulation_steps: int = setting(1, "Number of batches that one optimizer step accumulates.", ge=1)
    optimizer: str = setting("adamw", "How a step is made of gradients.", among=OPTIMIZERS)
    learning_rate: float | None = setting(
        None, f"Learning rate of the optimizer; default: the variant's own, {LEARNING_RATE:g} for most.", gt=0
    )
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = setting(
        "constant", "Learning-rate schedule: constant (O-LoRA), or linear or cosine decay to 0."
    )
    warmup: float = setting(
        0.0, "Linear warm-up of the learning rate from 0: a number of steps, or below 1 a share of them.", ge=0
    )
    weight_decay: float = setting(0.0, "Weight decay of the optimizer.", ge=0)
    max_grad_norm: float = setting(1.0, "Gradient clipping; 0 for none.", ge=0)
    seed: int = setting(0, "Seed of initialisation, order and dropout.", ge=0, lt=2**32)
    save_steps: int = setting(50, "Optimizer steps between two checkpoints.", ge=1)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N.")
    base_dtype: Literal["auto", "bfloat16", "float32"] = setting(
        "auto", "Precision of the frozen base while it is trained on; auto: bfloat16 on a GPU, float32 on a CPU."
    )
    report_to: str = setting("none", "Experiment tracker of transformers: tensorboard, wandb, mlflow, ...")
    section_at: ClassVar[dict[str, str]] = {"data": "Rows", "head": "Method", "r": "Adapter", "epochs": "Training"}


@renamed(
    max_rank="*.max_rank",
    clusters_per_task="*.clusters_per_task",
    shrinkage="*.shrinkage",
    own_covariance="*.own_covariance",
    lambda_l1="*.lambda_l1",
    epochs="*.epochs",
    learning_rate="*.learning_rate",
)
@dataclass(frozen=True, kw_only=True)
class ComposeConfig:
    """A composition of the bank's adapters."""

    mode: str = setting("", "How the adapters are composed.", among=COMPOSERS)
    name: str | None = setting(None, "Name of the composition; default: the mode.")
    tasks: str | None = setting(None, "Members, separated by commas; default: every task.")
    merger: str = setting("weighted", "merged: how the adapters are merged into one.", among=MERGERS)
    weights: str | None = setting(
        None,
        "merged: weight of each member, for example sentiment=0.7,spam=0.3 (any sign); default: the merger's own.",
    )
    over: Literal["adapters", "states"] | None = setting(
        None,
        "merged, gated: weigh the members' adapters, or the states in which tasks were learnt; default: the merger's "
        "own; states for a gate.",
    )
    tolerance: float | None = setting(
        None, "merged: refuse a result whose distance from the weighted sum exceeds this on any module.", ge=0
    )
    scores: bool = setting(True, "merged: score each member by itself and in the composition before it is stored.")
    router: str = setting(
        "auto",
        "routed: how the task of a text is found; auto: layered, in mode prototype kmeans.",
        among=ROUTERS,
        besides=("auto",),
    )
    gate: str = setting("attention", "gated: what weighs the states of the tasks.", among=GATES)
    set: tuple[str, ...] = setting(
        (), "Setting of the merger, router or gate, as KEY=VALUE (the command methods lists them); may be repeated."
    )
    stages: Literal["all", "last"] = setting(
        "all",
        "Fit learned parts for every stage now, or only for the last; the others are fitted when a matrix needs them.",
    )
    batch_size: int = setting(32, "Rows of a step and of a forward pass.", ge=1)
    seed: int = setting(0, "Seed of everything that is fitted.", ge=0, lt=2**32)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N.")
    replace: bool = setting(False, "Replace a composition of this name.")


@dataclass(frozen=True, kw_only=True)
class FoldConfig:
    """Several tasks' adapters replaced by one of bounded rank."""

    max_rank: int | None = setting(None, "Rank of the folded adapter; default: the largest among the old ones.", ge=1)
    merger: str = setting(ComposeConfig.merger, "How the adapters are merged before truncation.", among=MERGERS)
    over: Literal["adapters", "states"] | None = setting(
        None, "Merge the adapters, or the states in which the tasks were learnt; default: the merger's own."
    )
    set: tuple[str, ...] = setting(
        (), "Setting of the merger, as KEY=VALUE (the command methods lists them); may be repeated."
    )
    tolerance: float = setting(0.02, "Refuse if the score of any task falls by more than this.", ge=0)
    batch_size: int = setting(32, "Rows of a step and of a forward pass.", ge=1)
    seed: int = setting(0, "Seed of everything that is fitted.", ge=0, lt=2**32)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N.")


@dataclass(frozen=True, kw_only=True)
class AdviseConfig:
    """Which variants and starts are tried on a task's rows, and for how long."""

    variants: tuple[str, ...] = setting((), "Variant to try; may be repeated; default: all that the strategy takes.")
    starts: tuple[str, ...] = setting((), "Start to try; may be repeated; default: all that the strategy takes.")
    minutes: float = setting(10.0, "Time for all trainings, in minutes; epochs are shortened to fit.", gt=0)
    reduction: int = setting(3, "Of this many candidates one is trained longer, for this many times as long.", ge=2)


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What to score and how."""

    compositions: tuple[str, ...] = setting((), "Composition to score; may be repeated.")
    all: bool = setting(False, "Score the state as trained and every composition.")
    task: str | None = setting(None, "Score only this task, as trained (the task id is given).")
    state: Literal["now", "learnt"] | None = setting(
        None, "--task as it answers now, or as it was when it was learnt; default: now."
    )
    against: str | None = setting(
        None, "Test each of them, row by row, against this composition (or as-trained), after the last task."
    )
    against_bank: str | None = setting(None, "Bank of the baseline, with the same evaluation rows; default: this one.")
    text: str | None = setting(
        None, "Held-out text (UTF-8): its perplexity before any task and after the last; language models only."
    )
    lm_eval: tuple[str, ...] = setting(
        (), "Task of the lm-evaluation-harness, before any adapter and after the last task; may be repeated."
    )
    include_path: str | None = setting(None, "Folder with tasks of your own (YAML) for --lm-eval.")
    lm_eval_limit: int | None = setting(None, "Maximum number of rows of each task of --lm-eval; default: all.", ge=1)
    forgetting_matrix: bool = setting(False, "Score every task after every stage, not only after the last.")
    forward_transfer: bool = setting(False, "Score tasks before they are learnt, and the untrained base.")
    head_from: str = setting(
        "auto",
        "What picks the head: the task id, or a router; auto: the router of a routed composition, else the task id.",
        among=ROUTERS,
        besides=("auto", "task"),
    )
    metric: str = setting(
        "auto",
        "Score of a row; auto: accuracy for labels, of generated text exact_match for short answers, else token_f1.",
        among=TEXT_METRICS,
        besides=("auto", "accuracy", "inverse_perplexity"),
    )
    average: Literal["macro", "micro"] = setting("macro", "Mean over tasks, or over rows.")
    abstain: float | None = setting(
        None,
        "Report what is left when texts are set aside whose task is less likely than this, for example 0.8.",
        gt=0,
        lt=1,
    )
    audit: bool = setting(False, "Also show which texts a router confuses, and whether names give tasks away.")
    batch_size: int = setting(64, "Rows of a forward pass.", ge=1)
    max_resident: str | None = setting(None, MAX_RESIDENT)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16"] = setting("auto", "auto: bfloat16 on a GPU, float32 on a CPU.")


@dataclass(frozen=True, kw_only=True)
class _WithTexts:
    """Accepts ``texts``, which was a setting before it became an argument of its own."""

    texts: InitVar[Sequence[str] | None] = None
    given_texts: ClassVar[tuple[str, ...] | None] = None

    def __post_init__(self, texts: Sequence[str] | None) -> None:
        if texts is not None:
            object.__setattr__(self, "given_texts", tuple(texts))


@renamed(**_OF_FORMATS)
@dataclass(frozen=True, kw_only=True)
class PredictConfig(_WithTexts):
    """What labels texts: a composition or one task."""

    data: str | None = setting(None, "File whose text column is labelled: .jsonl, .csv, .xlsx, .parquet, ...")
    text_column: str = setting("text", "Column that holds the text.")
    skip_bad: bool = setting(False, "Skip bad rows and list them; at most half of a file may be bad.")
    set: tuple[str, ...] = setting(
        (), "Setting of the file's format, as KEY=VALUE (the command methods lists them); may be repeated."
    )
    composition: str | None = setting(None, "Composition that answers; default: the only one, or the last routed one.")
    task: str | None = setting(None, "Task whose head answers (the task id is given).")
    state: Literal["now", "learnt"] | None = setting(None, _STATE)
    abstain: float | None = setting(
        None,
        "Answer 'none of these tasks' where no task is at least so likely, for example 0.8.",
        gt=0,
        lt=1,
    )
    batch_size: int = setting(64, "Rows of a forward pass.", ge=1)
    max_resident: str | None = setting(None, MAX_RESIDENT)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N.")


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How the tokens of a generated answer are chosen, and where it ends."""

    max_new_tokens: int = setting(50, "Maximum number of new tokens.", ge=1, le=32768)
    temperature: float = setting(0.0, "Draw from softmax(logits / temperature); 0: the likeliest token.", ge=0, le=2)
    top_p: float = setting(1.0, "Draw among the likeliest tokens whose probabilities come to this sum.", gt=0, le=1)
    repetition_penalty: float = setting(
        1.0, "Make tokens of the answer, and of a causal prompt, less likely (above 1) or likelier.", ge=0.1, le=10
    )
    seed: int = setting(
        0, "Seed of the draws; text i of a call or row i of a file, from 0, draws with seed + i.", ge=0, lt=2**32
    )
    stop: tuple[str, ...] = setting((), "End the answer before this text; may be repeated.", filled=True)


@renamed(**_OF_FORMATS)
@dataclass(frozen=True, kw_only=True)
class GenerateConfig(_WithTexts, SamplingConfig):
    """How a language model answers prompts, in the state of a composition or of one task."""

    data: str | None = setting(None, "File whose text column holds prompts: .jsonl, .csv, .xlsx, .parquet, ...")
    text_column: str = setting("text", "Column that holds the prompt.")
    skip_bad: bool = setting(False, "Skip bad rows and list them; at most half of a file may be bad.")
    set: tuple[str, ...] = setting(
        (), "Setting of the file's format, as KEY=VALUE (the command methods lists them); may be repeated."
    )
    composition: str | None = setting(None, "Composition that answers; default: the only one, or the last routed one.")
    task: str | None = setting(
        None, "Task whose adapter and prompt template answer (the task id is given); none: the bare base."
    )
    state: Literal["now", "learnt"] | None = setting(None, _STATE)
    raw: bool = setting(False, "Use the text as the whole prompt, without the task's template or a chat template.")
    batch_size: int = setting(16, "Prompts of a forward pass.", ge=1)
    max_resident: str | None = setting(None, MAX_RESIDENT)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N.")
