"""The HTML report: complete, offline, and safe with hostile text."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lorabank.bank.snapshot import Snapshot
from lorabank.core.records import (
    AdapterRecord,
    BaseModelRecord,
    CompositionRecord,
    DatasetRecord,
    EvaluationRecord,
    TaskRecord,
)
from lorabank.evaluation.confusion import LabelScores, label_detail, label_scores, with_texts
from lorabank.evaluation.metrics import average_through_time
from lorabank.evaluation.reporting.bank import render_report
from lorabank.evaluation.reporting.words import best
from lorabank.models.facts.curves import HeldOut, LearningCurve
from tests.unit.components.page import Page, assert_well_made


def adapter(position: int, task: str, context: tuple[str, ...]) -> AdapterRecord:
    return AdapterRecord(
        digest=str(position) * 64,
        task=task,
        r=8,
        lora_alpha=32.0,
        use_rslora=False,
        target_modules=("query",),
        strategy="olora",
        penalties={"orthogonal": 0.5},
        context=context,
        seed=0,
        steps=120,
        wall_seconds=33.25,
        device="cpu",
        bytes=1,
        head_digest=None,
        files={},
        versions={},
        config={},
        metrics={},
    )


def bank(label: str = "positive", *, tasks: bool = True) -> Snapshot:
    base = BaseModelRecord(
        "base/model", "hub", None, "c" * 64, "f" * 64, "t" * 64, "float32", "SEQ_CLS", 384, 22713216
    )
    if not tasks:
        return Snapshot("id", 1, base, (), (), (), (), {})
    return Snapshot(
        id="9f3c2a",
        format=1,
        base=base,
        tasks=tuple(TaskRecord(n, p, "SEQ_CLS", ("negative", label), "ready") for p, n in ((1, "one"), (3, "three"))),
        removed_tasks=(TaskRecord("two", 2, "SEQ_CLS", ("a", "b"), "removed"),),
        datasets=(DatasetRecord("one", "train", 480, ("text", "label"), "d" * 64, "one.jsonl", rows_cut=7),),
        compositions=(CompositionRecord("mix", "manual", ("one", "three"), ("1", "3"), {"max_rank": 4}, {}),),
        by_position={
            1: adapter(1, "one", ()),
            2: adapter(2, "two", ("1" * 64,)),
            3: adapter(3, "three", ("1" * 64, "2" * 64)),
        },
    )


def measured(**changes: Any) -> Any:
    values = [[None, None], [0.875, None], [0.75, 0.9]]
    one = {
        "subject": "as-trained",
        "mode": "as-trained",
        "task_id": "given",
        "metric": "accuracy",
        "tasks": ("one", "three"),
        "values": values,
        "low": [[None if v is None else v - 0.1 for v in row] for row in values],
        "high": [[None if v is None else v + 0.05 for v in row] for row in values],
        "counts": [40, 40],
        "scalars": {"average_accuracy": 0.825, "backward_transfer": -0.125, "forward_transfer": None},
        "routing": None,
        "environments": (),
        "labels": {},
        "texts": {},
    }
    return SimpleNamespace(**one | changes)


def render(snapshot: Snapshot, *sections: Any) -> str:
    return render_report(snapshot, sections, created_at="2026-01-02T03:04:05Z", version="1.2.3")


def test_report_tells_lineage_and_scores() -> None:
    texts = Page(render(bank(), measured())).texts
    page = " ".join(texts)
    for fact in ("base/model", "9f3c2a", "2026-01-02 03:04 UTC", "lorabank 1.2.3", "22,713,216", "f" * 64):
        assert fact in page
    assert "one, two" in texts, "trained beside the adapters of the tasks 'one' and 'two'"
    assert "Removed: two (#2)." in page
    assert "orthogonal = 0.5" in texts
    assert "max_rank = 4" in texts
    assert "-0.1250" in texts
    assert "0.825" in texts
    assert "[0.650, 0.800]" in texts


def test_report_tells_how_many_more_tasks_fit() -> None:
    filled = bank()
    newest = filled.by_position[3]._replace(metrics={"directions_left": 23})
    page = " ".join(Page(render(filled._replace(by_position={**filled.by_position, 3: newest}))).texts)
    assert "Room for later tasks: 2 more tasks of rank 8 fit." in page
    assert "Room for" not in " ".join(Page(render(filled)).texts)


def test_report_loads_and_runs_nothing() -> None:
    html = render(bank(), measured(), measured(subject="mix", mode="manual"))
    page = assert_well_made(html)
    policy = {"http-equiv": "Content-Security-Policy", "content": "default-src 'none'; style-src 'unsafe-inline'"}
    assert ("meta", policy) in page.tags
    assert not re.search(r"url\((?!#)", html)


def test_hostile_text_is_shown_not_obeyed() -> None:
    hostile = "<script>alert(1)</script>\x1b[31m\u202e\u200b&"
    html = render(bank(hostile), measured(scalars={hostile: 1.0}))
    page = Page(html)
    assert all(tag != "script" for tag, _ in page.tags)
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f\u202e\u200b]", html)
    assert "\\x1b[31m\\u202e\\u200b&" in " ".join(page.texts)


def test_routing_is_shown_with_its_confusion() -> None:
    routing = {
        "oracle": 0.875,
        "routed": 0.8125,
        "accuracy": 0.95,
        "confusion": [[38, 2], [3, 37]],
        "tasks": ["one", "three"],
    }
    texts = Page(render(bank(), measured(mode="prototype", task_id="routed", routing=routing))).texts
    assert "accuracy 0.812 routed, 0.875 with the true task" in " ".join(texts)
    start = texts.index("rows of ↓ went to →")
    assert texts[start + 1 : start + 9] == ["one", "three", "one", "38", "2", "three", "3", "37"]
    routing |= {"right": [0.95, 0.925], "confidence": 0.96, "calibration_error": 0.01}
    texts = Page(render(bank(), measured(mode="prototype", task_id="routed", routing=routing))).texts
    assert "probability of the routed task was 0.960 (calibration error 0.010)" in " ".join(texts)
    start = texts.index("rows of ↓ went to →")
    assert texts[start + 1 : start + 4] == ["one", "three", "right"]
    assert texts[start + 4 : start + 12] == ["one", "38", "2", "0.950", "three", "3", "37", "0.925"]


def text_to_text() -> Snapshot:
    """A causal language model with a labelled task, one of prompts and completions, and one of plain text."""
    forms = (
        ("labelled", "classification", "likelihood", "{text}\nOption: no, <b>yes</b>\nAnswer:", ("no", "<b>yes</b>")),
        ("asked", "messages", "generation", None, ()),
        ("read", "text", "perplexity", None, ()),
    )
    tasks, adapters = [], {}
    for position, (name, form, scoring, template, labels) in enumerate(forms, start=1):
        tasks.append(TaskRecord(name, position, "CAUSAL_LM", labels, "ready", prompt_template=template))
        config = {"format": form, "scoring": scoring, "max_length": 256 + position, "max_new_tokens": 30 + position}
        adapters[position] = adapter(position, name, ())._replace(config=config)
    base = bank().base._replace(task_type="CAUSAL_LM")
    return bank()._replace(base=base, tasks=tuple(tasks), by_position=adapters)


def test_a_language_models_tasks_tell_how_they_are_asked() -> None:
    html = render(text_to_text(), measured(metric="exact_match"))
    texts = Page(html).texts
    start = texts.index("settings") + 1
    template = "{text}\nOption: no, <b>yes</b>\nAnswer:"
    assert texts[start : start + 8] == [
        "labelled", "CAUSAL_LM", "classification", template, "likelihood", "accuracy", "257", "–",
    ]  # fmt: skip
    assert texts[start + 8 : start + 16] == [
        "asked", "CAUSAL_LM", "messages", "the text is the prompt", "generation", "exact match", "258",
        "max_new_tokens 32",
    ]  # fmt: skip
    assert texts[start + 16 : start + 24] == [
        "read", "CAUSAL_LM", "text", "none: the whole text is learnt", "perplexity", "inverse perplexity", "259",
        "max_new_tokens 33",
    ]  # fmt: skip
    assert "free text" in texts
    # what the scores of the matrix are
    assert texts[texts.index("given") + 1] == "exact match"


def test_different_metrics_are_told_in_a_word() -> None:
    texts = Page(render(text_to_text(), measured(metric="accuracy, exact_match, inverse_perplexity"))).texts
    assert texts[texts.index("given") + 1] == "mixed scores"
    assert not any("accuracy, exact" in text for text in texts if not text.startswith("result,")), "but for the CSV"


def test_classifiers_have_no_prompts() -> None:
    assert "How the tasks are asked" not in Page(render(bank(), measured())).texts


def test_routing_is_told_in_the_metric() -> None:
    routing = {
        "oracle": 0.5,
        "routed": 0.25,
        "accuracy": 1.0,
        "confusion": [[1, 0], [0, 1]],
        "tasks": ["one", "three"],
    }
    texts = Page(render(bank(), measured(metric="token_f1", task_id="routed", routing=routing))).texts
    assert "token f1 0.250 routed, 0.500 with the true task" in " ".join(texts)


def test_notes_and_tags_are_shown_and_escaped() -> None:
    plain = bank()
    assert "Notes and tags" not in Page(render(plain)).texts
    tasks = (plain.tasks[0]._replace(note="<b>mails</b>\u202e", tags=("late", "prod")), plain.tasks[1])
    page = Page(render(plain._replace(tasks=tasks)))
    assert "Notes and tags" in page.texts
    assert "late, prod" in page.texts
    assert "<b>mails</b>\\u202e" in page.texts
    assert all(tag != "b" for tag, _ in page.tags)


def test_an_empty_bank_has_a_report() -> None:
    assert "0 tasks learnt on base/model" in " ".join(Page(render(bank(tasks=False))).texts)


def judged(gold: list[str], answers: list[str], text: str) -> LabelScores:
    detail = {"labels": label_detail(gold, answers, [0.75] * len(gold))}
    right = sum(map(str.__eq__, gold, answers)) / len(gold)
    cell = EvaluationRecord(
        "k", "s", 3, "one", "accuracy", right, len(gold), right - 0.1, right + 0.1, "given", {}, detail
    )
    found = label_scores(cell, sorted(set(gold)))
    assert found is not None
    return with_texts(found, [text] * len(gold))


def test_the_report_begins_with_a_sentence_and_warns_of_chance() -> None:
    gold = ["no", "yes"] * 20
    labels = {"one": judged(gold, ["no"] * 40, "t"), "three": judged(gold, gold, "t")}
    scalars = {"average_accuracy": 0.825, "forgetting": 0.125}
    texts = Page(render(bank(), measured(labels=labels, scalars=scalars))).texts
    sentence = "as-trained: average accuracy 0.825 after 2 tasks; forgetting 0.125; the worst task is one with 0.750."
    assert sentence in texts
    assert "as-trained: not clearly above chance on 1 task of 2 (one)." in texts
    whole = " ".join(Page(render(bank(), measured())).texts)
    assert "chance" not in whole
    assert "average accuracy" not in " ".join(Page(render(bank())).texts)


def test_labels_confusions_and_mistakes_stand_in_folds() -> None:
    gold = ["no", "yes"] * 20
    answers = ["yes", "yes"] * 2 + gold[4:]
    page = Page(render(bank(), measured(labels={"one": judged(gold, answers, "a <b>text</b>")})))
    texts = page.texts
    assert "one: macro-F1 0.950" in texts
    start = texts.index("wanted ↓ answered →")
    assert texts[start + 1 : start + 9] == ["no", "yes", "no", "18", "2", "yes", "0", "20"]
    assert texts.count("a <b>text</b>") == 2
    many = [f"label {k:02}" for k in range(30)] * 2
    found = judged(many, many[1:] + many[:1], "t")
    texts = Page(render(bank(), measured(labels={"one": found}))).texts
    assert "The commonest confusions of one" in texts
    assert "wanted ↓ answered →" not in texts


def test_settings_and_dates_are_for_people() -> None:
    whole = bank()
    config = {"learning_rate": 0.002, "map": ["a=b", "c=d"], "prompt_template": None}
    adapters = {key: one._replace(config=config) for key, one in whole.by_position.items()}
    tasks = tuple(task._replace(created_at="2030-01-02T03:04:05.123456+00:00") for task in whole.tasks)
    html = render(whole._replace(by_position=adapters, tasks=tasks), measured())
    texts = Page(html).texts
    start = texts.index("learning_rate")
    assert texts[start - 3 : start + 6] == [
        "Settings that are the same for every task", "setting", "value",
        "learning_rate", "0.002", "map", "a=b, c=d", "prompt_template", "–",
    ]  # fmt: skip
    assert "Settings that differ between the tasks" not in texts
    adapters[3] = adapters[3]._replace(config=config | {"learning_rate": 0.001})
    texts = Page(render(whole._replace(by_position=adapters, tasks=tasks), measured())).texts
    start = texts.index("Settings that differ between the tasks")
    assert texts[start + 1 : start + 7] == ["task", "learning_rate", "one", "0.002", "three", "0.001"]
    assert texts.count("2030-01-02 03:04 UTC") == 2
    assert "123456" not in html


def test_who_does_not_see_it_is_told() -> None:
    routing = {
        "oracle": 0.9,
        "routed": 0.8,
        "accuracy": 0.95,
        "confusion": [[1, 0], [0, 1]],
        "tasks": ["one", "three"],
    }
    gold = ["no", "yes"] * 5
    html = render(bank(), measured(routing=routing, labels={"one": judged(gold, gold[::-1], "t")}))
    tables = re.findall(r"<table[ >].*?</table>", html, re.S)
    assert len(tables) > 8
    for table in tables:
        assert len(re.findall(r"<caption>[^<]+</caption>", table)) == 1
    assert not re.search(r"<th(?![^>]*scope=)[ >]", html)
    for rule in ("@media print", "prefers-color-scheme: dark"):
        assert rule in html


def many(tasks: int) -> tuple[tuple[str, ...], Any]:
    names = tuple(f"queue-{k:02}-support" for k in range(tasks))
    values = np.full((tasks + 1, tasks), np.nan)
    for task in range(tasks):
        values[task + 1 :, task] = 0.9 - np.arange(tasks - task) / 100
    return names, values


def test_fifty_tasks_stay_legible() -> None:
    """Columns are numbers, cells are whole per cent, few lines have a colour, and a curve shows the average."""
    names, values = many(50)
    html = render(bank(), measured(tasks=names, values=values, low=None, high=None, counts=[40] * 50))
    assert_well_made(html)
    (matrix,) = re.findall(r'<table class="scores dense">.*?</table>', html, re.S)
    texts = Page(matrix).texts
    assert texts[2:52] == [str(k) for k in range(1, 51)]
    start = texts.index("after 50 queue-49-support")
    assert texts[start + 1 :] == [str(round(100 * (0.9 - (49 - k) / 100))) for k in range(50)]
    average, by_task = re.findall(r'<figure class="chart">.*?</figure>', html, re.S)
    last = np.mean([0.9 - k / 100 for k in range(50)])
    assert f"as-trained ends at {last:.3f}" in average
    legend = Page(re.findall(r"<ul class=.legend.*?</ul>", by_task, re.S)[0]).texts
    assert legend == list(names[:7]), "these lost most"
    assert by_task.count("<title>") == 50
    assert len(html) < 1_000_000


def test_the_average_is_the_mean_over_the_tasks_learnt() -> None:
    nothing = np.nan
    values = np.array(
        [[nothing] * 3, [0.9, nothing, nothing], [0.7, 0.8, nothing], [0.6, 0.7, 0.5]],
    )
    assert average_through_time(values) == pytest.approx([0.9, 0.75, 0.6])
    values[1, 0] = nothing
    assert np.isnan(average_through_time(values)).tolist() == [True, False, False]


def test_metrics_have_plain_names_and_say_their_variant() -> None:
    html = render(bank(), measured(scalars={"average_accuracy": 0.8, "forgetting.first_last": 0.1}))
    page = Page(html)
    titles = {one["title"] for one in page.all("abbr")}
    said = "Loss from the first score, as Avalanche counts it: 1/(T-1) Σ_{j<T} (R[j, j] - R[T, j])."
    assert f"forgetting.first_last. {said}" in titles
    assert "forgetting, first last" in page.texts


def test_lineage_and_trainings_are_drawn() -> None:
    curve = LearningCurve(
        2, (2, 4), (0.75, 0.5), (0.001, 0.0005), HeldOut(9, 2, None, (2, 4), (0.6, 0.7), (0.5, 0.4), 2, False)
    )
    html = render_report(bank(), [], curves={"one": curve}, created_at="", version="1")
    page = assert_well_made(html)
    told = "one: loss from 0.75 to 0.5 after 4 steps; on held-out rows 0.6 after step 2, the lowest"
    assert f"{told}; learning rate 0.001 to 0.0005" in page.texts
    assert "kept: step 2" in page.texts
    assert {"1  one", "2  three", "mix: 2 of 2 tasks"} <= set(page.texts)


def test_the_best_of_several_is_named() -> None:
    assert best({"a": 0.5}) is None
    assert best({"a": 0.5, "b": 0.75, "c": 0.25}) == (
        "Of 3 ways to train and answer, b has the highest average (0.750) and c the lowest (0.250)."
    )
    assert best({"a": 0.5, "b": 0.5}) == "All 2 ways to train and answer have the average 0.500."
    assert best({"a": 0.1 + 0.2, "b": 0.3}) == "All 2 ways to train and answer have the average 0.300."
    assert best({"a": 0.5, "b": 0.75, "c": 0.25, "d": 0.75}) == (
        "Of 4 ways to train and answer, b and d have the highest average (0.750) and c the lowest (0.250)."
    )


def test_the_task_that_changed_most_is_told_whether_it_fell_or_rose() -> None:
    values = np.full((4, 3), np.nan)
    for task, change in enumerate((0.2, -0.1, 0.05)):
        values[task + 1 :, task] = 0.5 + change * np.arange(3 - task)
    one = measured(tasks=("a", "b", "c"), values=values, low=None, high=None, counts=[9] * 3)
    labels = [image.get("aria-label") or "" for image in Page(render(bank(), one)).all("svg")]
    (label,) = [label for label in labels if "changed most" in label]
    assert label.endswith("a changed most: +0.400 from its learning to the last stage")
