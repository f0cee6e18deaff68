"""The model card of an exported folder: what it is, what it was measured to be, and how plain PEFT loads it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from lorabank import __version__
from lorabank.core.config import GenerateConfig
from lorabank.core.escaping import safe
from lorabank.core.records import BaseModelRecord
from lorabank.core.task_kinds import task_kind
from lorabank.models.bases.quantised.recipe import is_ours, read_recipe
from lorabank.workflows.results import MatrixReport
from lorabank.workflows.show import listed

CARD_FILE = "README.md"
LABELS_FILE = "labels.json"

_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*", re.ASCII)
_OTHERWISE = "# The adapter belongs to quantised weights that transformers does not make; this loads the float ones:"
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|&~#$])")


@dataclass(frozen=True)
class Facts:
    """What a card says.

    Attributes:
        name: Of the task or composition.
        note: What the folder holds, in one line.
        base: The base model.
        loads_as: What plain transformers loads it by.
        folder: Name of the exported folder; of a ``repository``, that on the hub.
        labels: In the order of a head's outputs; the answers of a language model's task.
        headless: Whether it is a classifier's adapter without a head.
        template: Prompt of a text, None where the text is the prompt.
        chat: Whether a text is a user's turn in the base's chat template.
        max_length: Maximum tokens of a text.
        max_new_tokens: Of an answer.
        strategy: How it was trained; of a sum None.
        scores: Task to what the exported state was measured to score.
        tokenizer: Whether the tokenizer lies in the folder.
        kind: What the adapter is called.
        not_quantised: Linear layers that a quantised base keeps as they are, as `as_skipped` names them.
        repository: Whether the folder is one on the hub.
        whole: The option by which the folder holds the base with the adapter in it; None of an adapter.
    """

    name: str
    note: str
    base: BaseModelRecord
    loads_as: str
    folder: str
    labels: Sequence[str] = ()
    headless: bool = False
    template: str | None = None
    chat: bool = False
    max_length: int = 128
    max_new_tokens: int = GenerateConfig.max_new_tokens
    strategy: str | None = None
    scores: dict[str, str] = field(default_factory=dict)
    tokenizer: bool = False
    kind: str = "LoRA"
    not_quantised: Sequence[str] = ()
    repository: bool = False
    whole: Literal["--merged", "--gguf"] | None = None


def card(facts: Facts) -> bytes:
    """``README.md``: the hub's front matter, a table of facts, and a snippet."""
    base = facts.base
    rows = [
        ("base model", facts.loads_as if base.revision is None else f"{facts.loads_as} at {base.revision}"),
        ("its weights", f"SHA-256 {base.fingerprint} over names and values, as lorabank computes it"),
        ("quantised by", base.quantisation),
        ("task type", base.task_type),
        (
            "labels, in the order of the outputs" if task_kind(base.task_type).has_head else "answers",
            listed(facts.labels),
        ),
        ("prompt", _prompt(facts)),
        ("trained by", facts.strategy),
        *((f"score on {task}", score) for task, score in facts.scores.items()),
    ]
    table = [f"| {as_markdown(name)} | {as_markdown(value)} |" for name, value in rows if value]
    code = _snippet(facts)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", code)), default=0))
    parts = [
        _front_matter(facts),
        f"# {as_markdown(facts.name)}",
        f"{_what(facts)}, written by lorabank {__version__}: {as_markdown(facts.note)}.",
        "\n".join(["| | |", "| --- | --- |", *table]),
        "## How to load it",
        f"{fence}{'shell' if facts.whole == '--gguf' else 'python'}\n{code}\n{fence}",
    ]
    return ("\n\n".join(parts) + "\n").encode("utf-8", "backslashreplace")


def labels_file(labels: Sequence[str]) -> bytes:
    """``labels.json``: the names of a head's outputs, in their order."""
    return (json.dumps(list(labels), indent=1) + "\n").encode()


def scores_of(report: MatrixReport, row: int, tasks: Sequence[str]) -> dict[str, str]:
    """What one row of a matrix says of some tasks; those that were not measured are left out."""
    found = {}
    for column, task in enumerate(report.tasks):
        value, low, high = (cells[row][column] for cells in (report.values, report.low, report.high))
        if task in tasks and value is not None:
            between = "" if low is None or high is None else f"95 % interval {low:.3f} to {high:.3f}, "
            found[task] = f"{report.metric.replace('_', ' ')} {value:.3f} ({between}{report.counts[column]} rows)"
    return found


def name_on_hub(base: BaseModelRecord) -> str | None:
    """The hub's name of a base model; None of one that is not known to be there."""
    name = "/".join(base.name.split("/")[:2]) if base.source == "gguf" else base.name
    return name if base.source != "local" and _HUB_ID.fullmatch(name) else None


def _what(facts: Facts) -> str:
    adapter = f"a {facts.kind} adapter"
    return f"A model with {adapter} merged into its weights" if facts.whole else f"A{adapter[1:]}"


def _front_matter(facts: Facts) -> str:
    """What the hub reads; values in quotes, which YAML reads as JSON does."""
    name = name_on_hub(facts.base)
    lines = [f"base_model: {json.dumps(name)}"] if name else []
    lines.append(f"library_name: {'gguf' if facts.whole == '--gguf' else 'transformers' if facts.whole else 'peft'}")
    if (pipeline := task_kind(facts.base.task_type).pipeline) is not None:
        lines.append(f"pipeline_tag: {pipeline}")
    lora = facts.kind in ("LoRA", "DoRA") and not facts.whole
    lines += ["tags:", *(["- lora"] if lora else []), "- lorabank"]
    if name:
        relation = "finetune" if facts.whole else "adapter"
        lines.append(f"- {json.dumps(f'base_model:{relation}:{name}')}")
    return "\n".join(["---", *lines, "---"])


def _prompt(facts: Facts) -> str | None:
    """How a prompt is made of a text, None where the text is the prompt."""
    written = facts.template and json.dumps(facts.template, ensure_ascii=False)
    if not facts.chat:
        return written
    return f"the text as a user's turn in the base's chat template{f': {written}' if written else ''}"


def _snippet(facts: Facts) -> str:
    """Code that needs PEFT and transformers alone; what came from outside stands in it as literals."""
    if facts.whole == "--gguf":
        return f"ollama create {facts.name} -f Modelfile\nollama run {facts.name}"
    task_type = task_kind(facts.base.task_type)
    classifies, kind = task_type.has_head, task_type.auto_class
    heads = classifies and not facts.headless
    revision = f", revision={facts.base.revision!r}" if facts.base.source == "hub" and facts.base.revision else ""
    named = ", id2label=dict(enumerate(labels))" if heads else ""
    if facts.whole:
        lines = [
            f"from transformers import {kind}, AutoTokenizer",
            "",
            f"folder = {facts.folder!r}  # this folder",
            f"model = {kind}.from_pretrained(folder).eval()",
            "tokenizer = AutoTokenizer.from_pretrained(folder)",
            *(["labels = model.config.id2label"] if classifies else []),
        ]
        return "\n".join(lines + (_classify(facts) if classifies else _answer(facts)))
    ours = is_ours(facts.base.quantisation)
    quantised = _quantised(facts) if ours else None
    packed = f", quantization_config={quantised}" if quantised else ""
    lines = [
        *(["import json", "from pathlib import Path", ""] if heads else []),
        *(["from huggingface_hub import snapshot_download"] if facts.repository else []),
        "from peft import PeftModel",
        f"from transformers import {kind}, AutoTokenizer{', BitsAndBytesConfig' * bool(quantised)}",
        "",
        f"adapter = snapshot_download({facts.folder!r})"
        if facts.repository
        else f"adapter = {facts.folder!r}  # this folder",
        f"base = {facts.loads_as!r}",
        *([_OTHERWISE, f"# {safe(facts.base.quantisation)}"] if ours and not quantised else []),
        *(['labels = json.loads(Path(adapter, "labels.json").read_text(encoding="utf-8"))'] if heads else []),
        f"model = {kind}.from_pretrained(base{named}{revision}{packed})",
        "model = PeftModel.from_pretrained(model, adapter).eval()",
        f"tokenizer = AutoTokenizer.from_pretrained({'adapter' if facts.tokenizer else f'base{revision}'})",
    ]
    return "\n".join(lines + (_classify(facts) if classifies else _answer(facts)))


def _quantised(facts: Facts) -> str | None:
    """How transformers quantises the base as the bank does; None if it cannot."""
    return read_recipe(str(facts.base.quantisation)).quantiser.elsewhere(facts.not_quantised)


def _classify(facts: Facts) -> list[str]:
    if facts.headless:
        return ["# It has no head: put one from an exported task on the model."]
    return [
        f"options = dict(truncation=True, max_length={facts.max_length}, return_token_type_ids=False)",
        'inputs = tokenizer("a text", return_tensors="pt", **options)',
        "print(labels[model(**inputs).logits.argmax().item()])",
    ]


def _answer(facts: Facts) -> list[str]:
    if facts.chat:
        turn = '[{"role": "user", "content": "a text"}]'
        prompt = [f"prompt = tokenizer.apply_chat_template({turn}, add_generation_prompt=True, tokenize=False)"]
    elif facts.template is None:
        prompt = ['prompt = "a text"']
    else:
        prompt = [f'prompt = {facts.template!r}.replace("{{text}}", "a text")']
    bare = ", add_special_tokens=False" if facts.chat else ""
    answer = 'output[0, inputs["input_ids"].shape[1] :]' if task_kind(facts.base.task_type).glued else "output[0]"
    return [
        *prompt,
        f'inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False{bare})',
        f"output = model.generate(**inputs, max_new_tokens={facts.max_new_tokens})",
        f"print(tokenizer.decode({answer}, skip_special_tokens=True))",
    ]


def as_markdown(text: object) -> str:
    """Text from outside as plain text of a cell: no mark-up, no HTML, no line end."""
    return _MARKDOWN.sub(r"\\\1", safe(text))
