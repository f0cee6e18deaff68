"""``export``: a task or a manual composition as one PEFT folder."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NoReturn

import torch

from lorabank.algebra.factors import LoraFactors
from lorabank.bank.bank import Bank
from lorabank.bank.snapshot import Snapshot
from lorabank.compose.base import Member
from lorabank.core.commands import Command
from lorabank.core.errors import ConfigError
from lorabank.core.records import AdapterRecord, BaseModelRecord, CompositionRecord, TaskRecord
from lorabank.core.shelves import TUNERS
from lorabank.core.states import SELECTOR, TUNER, State, answering_in, own_state, whose_head
from lorabank.core.task_kinds import task_kind
from lorabank.data.methods import in_chat_template, recorded_scoring
from lorabank.exchange.peft_check import plain_files
from lorabank.exchange.peft_folder import CONFIG_FILE, WEIGHTS_FILE, combined_files, read_adapter, with_fields
from lorabank.exchange.safe_folders import check_target, write_folder
from lorabank.exchange.servers import SERVERS, Served
from lorabank.models.bases.architecture import load_config, without_weights
from lorabank.models.bases.fingerprint import tokenizer_files
from lorabank.models.bases.loading import find_head_modules, recorded_weights
from lorabank.models.bases.open_base import OpenBase
from lorabank.models.bases.quantised.recipe import is_ours
from lorabank.models.bases.resolving import locate_base, plain_name
from lorabank.models.bases.targets import as_skipped
from lorabank.workflows.assemble import RuntimeSettings, adapters_in_order, load_composer, load_runtime, stack_of
from lorabank.workflows.carrying.corrected import is_corrected, with_correction
from lorabank.workflows.carrying.model_card import (
    CARD_FILE,
    LABELS_FILE,
    Facts,
    card,
    labels_file,
    name_on_hub,
    scores_of,
)
from lorabank.workflows.carrying.refusals import (
    can_be_cut,
    depends_on_input,
    headless_sum,
    no_single_adapter,
    not_of_factors,
)
from lorabank.workflows.carrying.server_check import serve_command
from lorabank.workflows.carrying.whole_model import write_whole
from lorabank.workflows.publish import stored_reports
from lorabank.workflows.results import ExportResult
from lorabank.workflows.scored import AsTrained
from lorabank.workflows.show import find_named, listed

_UNCHANGED = "nothing was written"
_ANY_HEAD = 2
"""Outputs of a head that the adapter does not bring."""


@dataclass(frozen=True)
class _Draft:
    """A folder to be written.

    Attributes:
        files: PEFT's two files.
        kind: ``"adapter"``, ``"joined"`` or ``"composition"``.
        note: What its user must know.
        task: The task whose head and form it has, None for a sum of several.
        stage: Position of the task after which ``as-trained`` is this state; None where it never was.
        tuner: The variant of what has no factors (`TUNER`); None for factors.
    """

    files: dict[str, bytes]
    kind: str
    note: str
    task: TaskRecord | None
    stage: int | None = None
    tuner: str | None = None

    @property
    def form(self) -> str:
        """What the adapter is called."""
        return self.tuner or ("DoRA" if json.loads(self.files[CONFIG_FILE])["use_dora"] else "LoRA")


def export(
    path: str | Path,
    name: str,
    target: Path,
    *,
    state: State | None,
    own: bool,
    check: str | None,
    tokenizer: bool,
    merged: bool | Literal["gguf"],
    dtype: str | None,
    repository: str | None = None,
) -> ExportResult:
    """Write a task or a manual composition as one PEFT folder, or merged into its base, whole or not at all.

    With ``repository`` the folder's card is that of a repository on the hub.
    """
    whole: Literal["--merged", "--gguf"] | None = ("--gguf" if merged == "gguf" else "--merged") if merged else None
    if check is not None and check not in SERVERS:
        raise ConfigError(f"--check {check!r} is unknown; there is {listed(list(SERVERS))}", unchanged=_UNCHANGED)
    if check is not None and whole:
        raise ConfigError(f"--check is for adapters, and {whole} writes a whole model", unchanged=_UNCHANGED)
    if dtype is not None and not whole:
        raise ConfigError("--dtype is that of a whole model", hint="add --merged", unchanged=_UNCHANGED)
    bank = Bank.open(path)
    snapshot = bank.snapshot()
    record = find_named(snapshot, name)
    given, target = target, Path(os.path.abspath(target))
    check_target(target, bank.path)
    if isinstance(record, CompositionRecord):
        if own or state:
            option = "--own" if own else "--state"
            commands = [Command("export", name, str(given))]
            raise ConfigError(f"{option} is for tasks", commands=commands, unchanged=_UNCHANGED)
        draft, members = _export_composition(bank, snapshot, record, full_rank=whole is not None), record.members
    elif own:
        if state:
            raise ConfigError("--own and --state exclude each other", unchanged=_UNCHANGED)
        draft, members = _export_own(bank, snapshot, record), (name,)
    else:
        state = state or "now"
        draft, members = _export_state(bank, snapshot, record, state), (name,)
    if draft.tuner and _weighs_itself(draft.tuner):
        raise depends_on_input(name, draft.tuner)
    into_weights = whole is not None and snapshot.base.quantisation is None  # any delta weights go there
    if whole == "--merged" and draft.task is None and task_kind(snapshot.base.task_type).has_head:
        raise headless_sum(name, members)
    if draft.tuner and not into_weights and (asked := whole or (check and f"--check {check}")):
        raise not_of_factors(name, draft.tuner, asked)
    named = (name_on_hub(snapshot.base) if repository else None) or plain_name(snapshot.base)
    facts = _facts(bank, snapshot, name, draft, repository or target.name, tokenizer)
    facts = replace(facts, repository=repository is not None, loads_as=named)
    if whole:
        names, said = write_whole(target, draft.files, replace(facts, whole=whole), dtype=dtype)
        return ExportResult(str(target), names, "model", f"{draft.note}; {said}", state)
    if is_corrected(snapshot.base):
        note = f"{draft.note}; the correction of the quantised base is in it"
        draft = replace(draft, files=with_correction(draft.files, snapshot.base), note=note)
        facts = replace(facts, note=note, kind=draft.form)
    files = _plain(draft, snapshot.base, named)
    beside = _beside(facts)
    revision = snapshot.base.revision if snapshot.base.source == "hub" else None
    served = Served(name, str(target), files, revision)
    serve = serve_command(check, served, snapshot.base, members, draft.task) if check else None
    write_folder(target, files | beside)
    return ExportResult(str(target), tuple(sorted(files | beside)), draft.kind, draft.note, state, serve)


def _weighs_itself(tuner: str | None) -> bool:
    """Whether an adapter of this variant weighs its own parts by the input, so that no file of PEFT holds it."""
    return tuner is not None and tuner not in TUNERS.table


def _plain(draft: _Draft, base: BaseModelRecord, named: str) -> dict[str, bytes]:
    """PEFT's two files as plain PEFT reads them, on a base that plain transformers finds by a name.

    Raises:
        IncompatibleError: PEFT would read them otherwise.
    """
    if draft.tuner:
        config = with_fields(draft.files[CONFIG_FILE], base_model_name_or_path=named)
        return draft.files | {CONFIG_FILE: config}
    config = with_fields(draft.files[CONFIG_FILE], base_model_name_or_path=named, lora_dropout=0.0)
    labels = len(draft.task.labels) if draft.task else _ANY_HEAD
    return plain_files({CONFIG_FILE: config, WEIGHTS_FILE: draft.files[WEIGHTS_FILE]}, base, labels)


def _facts(bank: Bank, snapshot: Snapshot, name: str, draft: _Draft, folder: str, tokenizer: bool) -> Facts:
    """What the card says."""
    base, task = snapshot.base, draft.task
    facts = Facts(
        name,
        draft.note,
        base,
        plain_name(base),
        folder,
        scores=_scores(bank, snapshot, name, draft),
        kind=draft.form,
        tokenizer=tokenizer,
        not_quantised=_not_quantised(base),
    )
    if task is None:
        return replace(facts, headless=task_kind(base.task_type).has_head)
    adapter = snapshot.adapter_of(task.name)
    return replace(
        facts,
        labels=task.labels,
        template=task.prompt_template,
        chat=in_chat_template(adapter.config),
        max_length=adapter.config["max_length"],
        max_new_tokens=_answer_length(task, adapter),
        strategy=adapter.strategy,
    )


def _beside(facts: Facts) -> dict[str, bytes]:
    """The files that PEFT does not read: the model card, the labels' names, and the tokenizer's files if wanted."""
    files = tokenizer_files(locate_base(facts.base).path) if facts.tokenizer else {}
    if facts.labels:
        files[LABELS_FILE] = labels_file(facts.labels)
    return files | {CARD_FILE: card(facts)}


def _not_quantised(base: BaseModelRecord) -> tuple[str, ...]:
    """Linear layers that a base which lorabank quantises keeps as they are."""
    if not is_ours(base.quantisation):
        return ()
    model = without_weights(load_config(locate_base(base)), base.task_type)
    heads = find_head_modules(model, set(), base.name) if task_kind(base.task_type).has_head else ()
    return as_skipped(model, heads)


def _answer_length(task: TaskRecord, adapter: AdapterRecord) -> int:
    """Tokens of a generated answer: those of the task's scoring, if it generates."""
    if task_kind(task.task_type).labelled:
        return Facts.max_new_tokens
    return recorded_scoring(adapter.config).answer_tokens or Facts.max_new_tokens


def _scores(bank: Bank, snapshot: Snapshot, name: str, draft: _Draft) -> dict[str, str]:
    """What was measured of the very state that is exported."""
    order = [task.name for task in snapshot.tasks]
    if draft.task is None:
        subject, row, tasks = name, len(order), order
    elif draft.stage is None:
        return {}
    else:
        row = 1 + next(i for i, task in enumerate(snapshot.tasks) if task.position == draft.stage)
        subject, tasks = AsTrained.name, [draft.task.name]
    reports = [report for report in stored_reports(bank, snapshot) if report.subject == subject]
    return scores_of(reports[0], row, tasks) if reports else {}


def _export_own(bank: Bank, snapshot: Snapshot, task: TaskRecord) -> _Draft:
    """The stored files: they need nothing but a copy, and a copy keeps r, lora_alpha and every bit."""
    adapter = snapshot.adapter_of(task.name)
    files = bank.adapter_files(adapter.digest)
    beneath = _names(snapshot, adapter.context)
    alone = f"; without {listed(beneath)}, on top of which it was trained" if beneath else ""
    stage = None if beneath else task.position
    tuner = adapter.metrics.get(TUNER)
    note = f"{tuner or f'r {adapter.r}'} on {snapshot.base.name}; {_form(task, adapter)}{alone}"
    return _Draft(files, "adapter", note, task, stage, tuner)


def _export_state(bank: Bank, snapshot: Snapshot, task: TaskRecord, state: State) -> _Draft:
    """What ``predict --task --state`` answers with: every adapter of the state in one, and the head that answers."""
    own = snapshot.adapter_of(task.name)
    answers = answering_in(state, adapters_in_order(snapshot), own)
    own = whose_head(own, answers)
    task = snapshot.task(own.task)
    stage = task.position if state == "learnt" else snapshot.tasks[-1].position
    said = f"state {state}"
    if answers == own and not own.context:
        draft = _export_own(bank, snapshot, task)
        return replace(draft, note=f"{said}: {draft.note}", stage=stage)
    if SELECTOR in answers.objects:
        other = ("--own",) if SELECTOR in own.objects else ("--state", "learnt")
        raise ConfigError(
            f"task {task.name!r} is answered by attention over several adapters, which a single adapter cannot do",
            hint="write only its own adapter" if other == ("--own",) else "write it as it was when it was learnt",
            commands=[Command("export", task.name, "FOLDER", *other)],
            unchanged=_UNCHANGED,
        )
    stack = stack_of(bank, own_state(answers))
    joined = stack.combine(torch.ones(len(stack.names)))
    _, head, config = read_adapter(bank.verified_adapter(own.digest))
    files = combined_files(
        joined,
        head,
        base_model=snapshot.base.name,
        task_type=task.task_type,
        head_modules=config["modules_to_save"] or (),
        weight=recorded_weights(snapshot.base),
    )
    members = listed(_names(snapshot, own_state(answers)))
    note = f"{said}: {members} in one adapter, r {_rank(joined)} on {snapshot.base.name}; {_form(task, own)}"
    return _Draft(files, "joined", note, task, stage)


def _in_states(members: Sequence[Member]) -> Iterable[str]:
    """Digests of the adapters of the members' states, each once, their own ones first."""
    return dict.fromkeys([*(member.adapter for member in members), *(one for own in members for one in own.state)])


def _export_composition(bank: Bank, snapshot: Snapshot, record: CompositionRecord, *, full_rank: bool) -> _Draft:
    """A composition as one adapter; with ``full_rank`` also one whose delta weights have full rank."""
    composer, members = load_composer(bank, snapshot, record, _no_runtime)
    if composer.routed and len(members) == 1:
        return _export_state(bank, snapshot, snapshot.task(members[0].task), "learnt")
    weight = recorded_weights(snapshot.base)
    factors = composer.as_adapter(members[-1].position, stack_of(bank, _in_states(members)), weight)
    rank = "full rank" if factors is None else f"r {_rank(factors)}"
    if factors is None and full_rank and can_be_cut(record, composer):
        factors = _of_full_rank(bank, snapshot, record, members[-1].position)
    if factors is None:
        exported = [
            task for task in record.members if not _weighs_itself(snapshot.adapter_of(task).metrics.get(TUNER))
        ]
        raise no_single_adapter(record, composer, snapshot.base, exported)
    if not factors.A:
        raise ConfigError(
            f"composition {record.name!r} has the weight 0 for every member: that is the bare base model",
            unchanged=_UNCHANGED,
        )
    headless = task_kind(snapshot.base.task_type).has_head  # PEFT would look for a head that the files do not hold
    task_type = None if headless else snapshot.base.task_type
    files = combined_files(
        factors,
        {},
        base_model=snapshot.base.name,
        task_type=task_type,
        head_modules=(),
        weight=weight,
    )
    shares = [f"{task}={share:g}" for task, share in (record.parameters.get("weights") or {}).items()]
    merged = f"{', '.join(shares or record.members)} in one adapter"
    if merger := record.parameters.get("merger"):
        merged += f" by {merger}"
    note = f"{merged}, {rank} on {snapshot.base.name}"
    if headless:
        note += (
            " as a sequence classifier; it holds no head, as a sum of adapters has none of its own: "
            "take one from an exported task"
        )
    return _Draft(files, "composition", note, None)


def _form(task: TaskRecord, adapter: AdapterRecord) -> str:
    """What the user of a task's folder must know beside it: the outputs of its head, or how it is asked."""
    if task_kind(task.task_type).has_head:
        return f"head of {len(task.labels)} labels in this order: {listed(task.labels)}"
    template = task.prompt_template
    if in_chat_template(adapter.config):
        asked = "the text is a user's turn in the base's chat template"
        return f"{asked}; answers {listed(task.labels)}" if task.labels else asked
    asked = "the text is the prompt" if template is None else f"prompt {json.dumps(template, ensure_ascii=False)}"
    return f"{asked}; answers {listed(task.labels)}" if task.labels else asked


def _of_full_rank(bank: Bank, snapshot: Snapshot, record: CompositionRecord, stage: int) -> LoraFactors:
    """The delta weights that a composition answers with, in two factors of full rank."""
    settings = RuntimeSettings(device="cpu", dtype="float32", batch_size=1)
    runtime = load_runtime(bank, snapshot, OpenBase(snapshot.base), settings)
    composer, _ = load_composer(bank, snapshot, record, lambda: runtime)
    dense = composer.plan(stage, ()).dense
    assert dense is not None
    return dense.factors()


def _no_runtime() -> NoReturn:
    raise AssertionError("an export asks no model")


def _rank(factors: LoraFactors) -> int:
    return max((a.shape[0] for a in factors.A.values()), default=0)


def _names(snapshot: Snapshot, digests: Sequence[str]) -> list[str]:
    return [snapshot.adapters[digest].task for digest in digests]
