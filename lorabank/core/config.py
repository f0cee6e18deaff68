"""Settings: one frozen dataclass per use case.

The command line builds its options from these fields (name, type, default, help), so there is one source. They
are checked by ``validate`` (pydantic, imported only when a command runs): unknown keys, types, bounds, and that each
number is finite; all errors at once. Importing this module costs the standard library alone.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import Field, InitVar, dataclass, field, fields
from typing import Any, ClassVar, Generic, Literal, NamedTuple, TypeVar, get_args

from lorabank.core.errors import ConfigError, joined
from lorabank.core.limits import MAX_RANK

DEFAULT_BASE = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_LANGUAGE_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"

T = TypeVar("T")


def _option(default: Any, help: str, **bounds: Any) -> Any:
    """A field with its help text and bounds (``ge``, ``gt``, ``le``, ``lt``)."""
    return field(default=default, metadata={"help": help, **bounds})


@dataclass(frozen=True, kw_only=True)
class InitConfig:
    """A new bank."""

    base: str | None = _option(
        None,
        f"Base model: a Hugging Face id or a local folder; default: {DEFAULT_BASE}, or for text to text "
        f"{DEFAULT_LANGUAGE_MODEL}.",
    )
    revision: str | None = _option(None, "Commit or tag of a hub model.")
    gguf_file: str | None = _option(None, "GGUF file in --base (a folder or hub id), or its path alone.")
    task_type: Literal["auto", "SEQ_CLS", "CAUSAL_LM", "SEQ_2_SEQ_LM"] = _option(
        "auto", "PEFT task type of the bank; auto: what the base model was made for."
    )


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """One task: its data, its adapter and how the adapter is trained."""

    data: str = _option(
        "", "Training rows: .jsonl, .json, .csv, .tsv, .xlsx, .parquet, or hf:OWNER/NAME[/CONFIG][:SPLIT]."
    )
    eval_data: str | None = _option(None, "Evaluation rows; default: a part of --data.")
    format: Literal["auto", "classification", "prompt-completion", "messages", "alpaca", "sharegpt", "text"] = _option(
        "auto", "Form of the rows; auto: told by the columns."
    )
    map: tuple[str, ...] = _option((), "Read a column under another name: --map old=new; may be repeated.")
    eval_fraction: float = _option(0.2, "Part of --data kept for evaluation without --eval-data.", gt=0, lt=1)
    text_column: str = _option("text", "Column that holds the text.")
    label_column: str = _option("label", "Column that holds the label.")
    delimiter: str | None = _option(
        None, "Between cells: comma, semicolon, tab, bar or a character; default: detected, and shown."
    )
    encoding: str | None = _option(None, "Encoding of text files, as cp1252; default: UTF-8, or as their mark says.")
    sheet: str | None = _option(None, "Sheet of .xlsx files; default: the first.")
    skip_bad: bool = _option(False, "Leave bad rows out and list them, up to half of a file.")
    prompt_template: str | None = _option(
        None, "Text to text: the prompt of a labelled text, with {text} and, if wanted, {labels}."
    )
    chat_template: Literal["auto", "none"] = _option(
        "auto", "Text to text: prompts (alpaca, prompt-completion) in the base's chat template, where it has one."
    )
    label_words: str | None = _option(None, "Text to text: words for labels, as 0=negative,1=positive.")
    scoring: Literal["auto", "likelihood", "generation", "perplexity"] = _option(
        "auto", "Text to text: likelihood (over the labels), generation (of free text) or perplexity."
    )
    max_new_tokens: int = _option(50, "Text to text: most tokens of a generated answer.", ge=1, le=4096)
    max_length: int = _option(256, "Tokens of a text; longer ones are cut and counted.", ge=4, le=131072)
    keep_samples: int = _option(256, "Training rows kept for attention composition; 0 for none.", ge=0)
    clusters_per_task: int = _option(5, "k-means centroids of the task for prototype routing.", ge=1, le=1024)
    strategy: str = _option("olora", "What earlier adapters do while this one is trained.")
    penalty: str | None = _option(None, "Penalty on the new adapter; default: the strategy's own.")
    lambda_orth: float | None = _option(None, "Weight of the penalty; default: the penalty's own.", ge=0)
    lambda_l2: float = _option(0.0, "Weight of the norm penalty of O-LoRA (its lambda_2).", ge=0)
    lambda_l1: float = _option(1e-3, "amlora: weight of the L1 norm of the selector's dense parameters.", ge=0)
    replay_rows: int = _option(200, "replay: rows of earlier tasks that are trained on again.", ge=1)
    r: int = _option(8, "Rank of the adapter.", ge=1, le=MAX_RANK)
    lora_alpha: float = _option(32.0, "Numerator of the scaling lora_alpha / r.", gt=0)
    lora_dropout: float = _option(
        0.1, "Dropout on the input of the new adapter; 0 also turns off the base's own dropout.", ge=0, lt=1
    )
    use_rslora: bool = _option(False, "Scale by lora_alpha / sqrt(r) instead.")
    target_modules: str = _option(
        "auto", "Adapted modules: 'auto' (query and value), 'all-linear', or names separated by commas."
    )
    first_layer: int = _option(0, "Lowest transformer layer that is adapted, counted from 0.", ge=0)
    epochs: float = _option(4.0, "Passes over the training rows.", gt=0)
    batch_size: int = _option(16, "Rows of a step, of all processes together.", ge=1)
    gradient_accumulation_steps: int = _option(1, "Batches of one optimizer step.", ge=1)
    learning_rate: float = _option(1e-3, "Learning rate of AdamW.", gt=0)
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = _option(
        "constant", "What the learning rate does over the steps: stays (O-LoRA), or falls to 0."
    )
    weight_decay: float = _option(0.0, "AdamW's weight decay.", ge=0)
    max_grad_norm: float = _option(1.0, "Gradient clipping; 0 for none.", ge=0)
    seed: int = _option(0, "Seed of initialisation, order and dropout.", ge=0, lt=2**32)
    save_steps: int = _option(50, "Optimizer steps between two checkpoints.", ge=1)
    device: str = _option("auto", "auto, cpu, cuda or cuda:N.")
    report_to: str = _option("none", "Experiment tracker of transformers: tensorboard, wandb, mlflow, ...")


@dataclass(frozen=True, kw_only=True)
class ComposeConfig:
    """A composition of the bank's adapters."""

    mode: str = _option("", "How the adapters answer together.")
    name: str | None = _option(None, "Name of the composition; default: the mode.")
    tasks: str | None = _option(None, "Members, separated by commas; default: every task.")
    weights: str | None = _option(None, "manual: sentiment=0.7,spam=0.3 (any sign); default: 1 for each member.")
    max_rank: int | None = _option(None, "manual: compress to this rank by SVD; prints the error per module.", ge=1)
    router: Literal["kmeans", "gaussian"] = _option("kmeans", "prototype: nearest centroid, or shared covariance.")
    clusters_per_task: int = _option(5, "prototype: centroids of each task.", ge=1, le=1024)
    shrinkage: float = _option(0.1, "prototype: shrinkage of the gaussian router's covariance.", ge=0, le=1)
    own_covariance: float = _option(
        0.1, "prototype: share of a task's own covariance in the gaussian router; 0: one for all.", ge=0, le=1
    )
    lambda_l1: float = _option(1e-3, "attention: weight of the L1 norm of the selector's dense parameters.", ge=0)
    epochs: float = _option(2.0, "attention: passes over the calibration samples.", gt=0)
    learning_rate: float = _option(1e-2, "attention: learning rate of the selector.", gt=0, le=10)
    batch_size: int = _option(32, "attention: rows of a step.", ge=1)
    stages: Literal["all", "last"] = _option(
        "all", "attention: fit one selector per stage (needed for a whole matrix), or for the last stage only."
    )
    seed: int = _option(0, "Seed of k-means and of the selector.", ge=0, lt=2**32)
    device: str = _option("auto", "auto, cpu, cuda or cuda:N.")
    replace: bool = _option(False, "Supersede a composition of this name.")


@dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """What to score and how."""

    compositions: tuple[str, ...] = _option((), "Composition to score; may be repeated.")
    all: bool = _option(False, "Score the state as trained and every composition.")
    task: str | None = _option(None, "Score this task alone, as trained (the task id is given).")
    state: Literal["now", "learnt"] | None = _option(
        None, "--task as it answers now, or as it was when it was learnt; default: now."
    )
    forgetting_matrix: bool = _option(False, "Score every task after every stage, not only after the last.")
    forward_transfer: bool = _option(False, "Score tasks before they are learnt, and the untrained base.")
    head_from: Literal["auto", "task", "kmeans", "gaussian"] = _option(
        "auto",
        "Who picks the head: the task id, or a router; auto: the router of a routed composition, else the task id.",
    )
    metric: Literal["auto", "accuracy", "exact_match", "token_f1", "rouge_l", "inverse_perplexity"] = _option(
        "auto",
        "Score of a row; auto: accuracy for labels, of generated text exact_match for short answers, else token_f1.",
    )
    average: Literal["macro", "micro"] = _option("macro", "Mean over tasks, or over rows.")
    batch_size: int = _option(64, "Rows of a forward pass.", ge=1)
    max_resident: str | None = _option(
        None,
        "Most memory for adapters, as 512MiB: the one used longest ago makes room; default: all stay.",
    )
    device: str = _option("auto", "auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16"] = _option("auto", "auto: bfloat16 on a GPU, float32 on a CPU.")


@dataclass(frozen=True, kw_only=True)
class _WithTexts:
    """Takes ``texts``, which stood among the settings before they were an argument of their own."""

    texts: InitVar[Sequence[str] | None] = None
    given_texts: ClassVar[tuple[str, ...] | None] = None

    def __post_init__(self, texts: Sequence[str] | None) -> None:
        if texts is not None:
            object.__setattr__(self, "given_texts", tuple(texts))


@dataclass(frozen=True, kw_only=True)
class PredictConfig(_WithTexts):
    """Who labels texts: a composition or one task."""

    data: str | None = _option(None, "File whose text column is labelled: .jsonl, .csv, .xlsx, .parquet, ...")
    text_column: str = _option("text", "Column that holds the text.")
    delimiter: str | None = _option(
        None, "Between cells: comma, semicolon, tab, bar or a character; default: detected, and shown."
    )
    encoding: str | None = _option(None, "Encoding of text files, as cp1252; default: UTF-8, or as their mark says.")
    sheet: str | None = _option(None, "Sheet of .xlsx files; default: the first.")
    skip_bad: bool = _option(False, "Leave bad rows out and list them, up to half of a file.")
    composition: str | None = _option(None, "Composition that answers; default: the only one, or the last routed one.")
    task: str | None = _option(None, "Task whose head answers (the task id is given).")
    state: Literal["now", "learnt"] | None = _option(
        None, "The task as it answers now, or as it was when it was learnt; default: now."
    )
    batch_size: int = _option(64, "Rows of a forward pass.", ge=1)
    max_resident: str | None = _option(
        None,
        "Most memory for adapters, as 512MiB: the one used longest ago makes room; default: all stay.",
    )
    device: str = _option("auto", "auto, cpu, cuda or cuda:N.")


@dataclass(frozen=True, kw_only=True)
class GenerateConfig(_WithTexts):
    """How a language model answers prompts, in the state of a composition or of one task."""

    data: str | None = _option(None, "File whose text column holds prompts: .jsonl, .csv, .xlsx, .parquet, ...")
    text_column: str = _option("text", "Column that holds the prompt.")
    delimiter: str | None = _option(
        None, "Between cells: comma, semicolon, tab, bar or a character; default: detected, and shown."
    )
    encoding: str | None = _option(None, "Encoding of text files, as cp1252; default: UTF-8, or as their mark says.")
    sheet: str | None = _option(None, "Sheet of .xlsx files; default: the first.")
    skip_bad: bool = _option(False, "Leave bad rows out and list them, up to half of a file.")
    composition: str | None = _option(None, "Composition that answers; default: the only one, or the last routed one.")
    task: str | None = _option(
        None, "Task whose adapter and prompt template answer (the task id is given); none: the bare base."
    )
    state: Literal["now", "learnt"] | None = _option(
        None, "The task as it answers now, or as it was when it was learnt; default: now."
    )
    max_new_tokens: int = _option(50, "Most tokens of an answer.", ge=1, le=32768)
    raw: bool = _option(False, "Take the text as the whole prompt: no template of the task, no chat template.")
    batch_size: int = _option(16, "Prompts of a forward pass.", ge=1)
    max_resident: str | None = _option(
        None,
        "Most memory for adapters, as 512MiB: the one used longest ago makes room; default: all stay.",
    )
    device: str = _option("auto", "auto, cpu, cuda or cuda:N.")


def config_fields(config: type[Any]) -> tuple[Field[Any], ...]:
    """The fields of a config class, in order."""
    return fields(config)


def nearest(word: str, known: list[str]) -> str:
    """``" Did you mean 'x'?"`` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def validate(config: type[T], values: Mapping[str, Any], *, where: str = "settings") -> T:
    """Build a config from loose values.

    Args:
        config: One of the classes above.
        values: Field name to value; strings are converted to the field's type.
        where: Named in the error message, for example the config file.

    Returns:
        The checked config.

    Raises:
        ConfigError: Naming every unknown key (with the nearest known one) and every value that is out of bounds,
            infinite or not a number.
    """
    examined = examine(config, values)
    if examined.problems:
        raise ConfigError(f"{where}: {joined(examined.problems)}", unchanged="nothing was changed")
    return examined.config


class Examined(NamedTuple, Generic[T]):
    """Loose values as a config, and what is wrong with them.

    Attributes:
        config: The values that fit, and defaults in the place of those that do not.
        wrong: The fields whose value does not fit.
        problems: One for each unknown key and each value that does not fit.
    """

    config: T
    wrong: frozenset[str]
    problems: tuple[str, ...]


def examine(config: type[T], values: Mapping[str, Any]) -> Examined[T]:
    """Build a config from loose values, as `validate` does, and tell all that is wrong in the place of an error."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model
    from pydantic.fields import FieldInfo

    known = {f.name: f for f in fields(config)}  # type: ignore[arg-type]
    problems = [f"unknown key {key!r}.{nearest(key, list(known))}" for key in values if key not in known]
    hints = _type_hints(config)
    definitions: dict[str, Any] = {
        name: (hints[name], FieldInfo(default=f.default, **_bounds(f, hints[name]))) for name, f in known.items()
    }
    model = create_model(config.__name__, __config__=ConfigDict(extra="ignore", allow_inf_nan=False), **definitions)
    wrong = {name for name, hint in hints.items() if _truth_for_number(values.get(name), hint)}
    problems += [f"{name} = {_shown(values[name])}: true and false are not numbers" for name in known if name in wrong]
    adapter = TypeAdapter(model)
    try:
        checked = adapter.validate_python({key: value for key, value in values.items() if key not in wrong})
    except ValidationError as error:
        found = error.errors()
        problems += [f"{'.'.join(map(str, e['loc']))} = {_shown(e['input'])}: {e['msg'].lower()}" for e in found]
        wrong |= {str(e["loc"][0]) for e in found}
        checked = adapter.validate_python({key: value for key, value in values.items() if key not in wrong})
    built = config(**{name: getattr(checked, name) for name in known})
    return Examined(built, frozenset(wrong), tuple(problems))


def _truth_for_number(value: Any, hint: Any) -> bool:
    """Whether ``True`` or ``False`` stands where a number is wanted: Python takes them for 1 and 0."""
    kinds = set(_kinds(hint))
    held = value if isinstance(value, list | tuple) else (value,)
    return bool(kinds & {int, float}) and bool not in kinds and any(isinstance(one, bool) for one in held)


def _kinds(hint: Any) -> Iterator[Any]:
    """The types that a hint is made of."""
    yield hint
    for inner in get_args(hint):
        yield from _kinds(inner)


def _bounds(field: Field[Any], hint: Any) -> dict[str, Any]:
    """Bounds of a field; a count without an upper one has that of the libraries below, which count in 32 bits."""
    bounds = {name: bound for name, bound in field.metadata.items() if name != "help"}
    count = hint in (int, int | None) and not bounds.keys() & {"le", "lt"}
    return bounds | ({"lt": 2**31} if count else {})


def _shown(value: Any) -> str:
    try:
        return repr(value)[:80]
    except ValueError:  # Python writes no number of more than 4,300 digits
        return "a number of too many digits"


def _type_hints(config: type[Any]) -> dict[str, Any]:
    from typing import get_type_hints

    return get_type_hints(config)
