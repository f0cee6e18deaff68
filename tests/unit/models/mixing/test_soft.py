"""Marginal answers, against sums written out."""

from __future__ import annotations

import numpy as np
import pytest

from lorabank.models.answering.base import AnswerForm, Answers
from lorabank.models.mixing.runtime import Plan
from lorabank.models.mixing.soft import answer_routed, label_totals, likeliest, shares_of, task_shares

ALL = np.ones(4, np.bool_)


def test_a_sure_text_counts_for_its_task_alone() -> None:
    posterior = np.array([[0.96, 0.03, 0.01, 0.0], [0.94, 0.04, 0.02, 0.0]])
    shares = task_shares(posterior, posterior.argmax(1), ALL)
    assert shares[0].tolist() == [1, 0, 0, 0]
    assert shares[1] == pytest.approx(np.array([0.94, 0.04, 0.02, 0]))


def test_tasks_below_a_hundredth_and_beyond_99_hundredths_are_left_out() -> None:
    posterior = np.array([[0.5, 0.486, 0.008, 0.006], [0.5, 0.492, 0.0, 0.008], [0.6, 0.2, 0.185, 0.015]])
    shares = task_shares(posterior, posterior.argmax(1), ALL)
    assert (shares > 0).tolist() == [[True, True, False, False], [True, True, False, False], [True] * 4]
    posterior = np.array([[0.55, 0.44, 0.01, 0.0]])
    assert (task_shares(posterior, posterior.argmax(1), ALL) > 0).tolist() == [[True, True, False, False]]
    assert shares.sum(1) == pytest.approx(np.ones(3))
    assert shares[0, 0] == pytest.approx(0.5 / 0.986)


def test_a_task_with_free_answers_answers_alone_or_not_at_all() -> None:
    posterior = np.array([[0.5, 0.3, 0.2, 0.0], [0.3, 0.5, 0.2, 0.0]])
    shares = task_shares(posterior, posterior.argmax(1), np.array([False, True, True, True]))
    assert shares.tolist() == [[1, 0, 0, 0], [0, pytest.approx(0.5 / 0.7), pytest.approx(0.2 / 0.7), 0]]


def test_equal_labels_of_two_tasks_add_up() -> None:
    parts = [
        (0.5, ("no", "yes", "other"), np.array([0.3, 0.2, 0.5])),
        (0.4, ("yes", "no"), np.array([0.9, 0.1])),
        (0.1, ("spam",), np.array([1.0])),
    ]
    totals = label_totals(parts)
    expected = {"no": 0.5 * 0.3 + 0.4 * 0.1, "other": 0.25, "spam": 0.1, "yes": 0.5 * 0.2 + 0.4 * 0.9}
    assert totals == pytest.approx(expected, abs=1e-15)
    assert likeliest(totals) == "yes"
    assert label_totals(parts[::-1]) == totals


def test_of_equal_labels_the_first_answers() -> None:
    """Of one task the first of its labels, as where it is asked alone; of several the first in the alphabet."""
    tied = (0.5, ("b", "a"), np.array([0.5, 0.5]))
    assert likeliest(label_totals([tied])) == "b"
    assert likeliest(label_totals([tied, tied])) == likeliest(label_totals([(0.5, ("c", "a"), tied[2]), tied])) == "a"


def test_the_order_of_tasks_changes_no_bit() -> None:
    chance = np.random.default_rng(0)
    parts = [
        (p, ("a", "b"), q) for p, q in zip(chance.dirichlet(np.ones(9)), chance.dirichlet(np.ones(2), 9), strict=True)
    ]
    told = {tuple(label_totals([parts[k] for k in chance.permutation(9)]).items()) for _ in range(20)}
    assert len(told) == 1


class _Runtime:
    """Two tasks whose heads answer by what the state is, and one that generates."""

    def __init__(self) -> None:
        self.answerer = self
        self.forms = (
            AnswerForm(("no", "yes"), 9),
            AnswerForm(("yes", "spam"), 9),
            AnswerForm((), 9, scoring="generation"),
        )
        self.hard: list[str] = []
        self.soft: list[tuple[str, int]] = []

    def answer(self, texts, plan: Plan, heads) -> Answers:
        self.hard += texts
        return Answers(
            tuple(f"{text} by {head}" for text, head in zip(texts, heads, strict=True)), np.full(len(texts), 0.5)
        )

    def label_shares(self, texts, plan: Plan, heads) -> list[np.ndarray]:
        self.soft += list(zip(texts, heads.tolist(), strict=True))
        assert plan.weights.tolist() == [[[1, 0], [1, 1], [0, 1]][head] for head in heads]
        return [np.array([0.4, 0.6]) if head == 0 else np.array([0.3, 0.7]) for head in heads]


def plan(posterior: list[list[float]], *, soft: bool = True) -> Plan:
    p = np.array(posterior)
    states = np.array([[1, 0], [1, 1], [0, 1]], np.float32)
    route = p.argmax(1)
    return Plan(weights=states[route], route=route, posterior=p, own_states=states if soft else None)


def test_only_unsure_texts_are_asked_in_several_states() -> None:
    runtime, heads = _Runtime(), np.arange(3)
    asked = plan([[0.97, 0.03, 0.0], [0.5, 0.4, 0.1], [0.2, 0.2, 0.6], [0.0, 0.7, 0.3]])
    answers = answer_routed(runtime, ["a", "b", "c", "d"], asked, heads)
    assert sorted(runtime.hard) == ["a", "c", "d"]
    assert runtime.soft == [("b", 0), ("b", 1)]
    assert answers.said == ("a by 0", "yes", "c by 2", "d by 1")
    assert answers.probabilities[1] == pytest.approx((0.5 * 0.6 + 0.4 * 0.3) / 0.9)
    assert shares_of(asked, heads, runtime.forms)[1] == pytest.approx(np.array([5, 4, 0]) / 9)


def test_without_states_the_route_answers() -> None:
    runtime = _Runtime()
    answers = answer_routed(
        runtime, ["a", "b"], plan([[0.5, 0.4, 0.1], [0.1, 0.5, 0.4]], soft=False), np.array([2, 0, 1])
    )
    assert answers.said == ("a by 2", "b by 0")
    assert runtime.soft == []


def test_each_task_is_asked_what_it_reads_of_a_text() -> None:
    runtime, heads = _Runtime(), np.arange(3)
    asked = plan([[0.97, 0.03, 0.0], [0.5, 0.4, 0.1]])
    answers = answer_routed(runtime, ["a", "b"], asked, heads, lambda i, k: f"{'ab'[i]} for {k}")
    assert (runtime.hard, runtime.soft) == (["a for 0"], [("b for 0", 0), ("b for 1", 1)])
    assert answers.said[0] == "a for 0 by 0"
    hard = answer_routed(
        _Runtime(), ["a", "b"], plan([[0.1, 0.9, 0.0]] * 2, soft=False), heads, lambda i, k: f"{i}{k}"
    )
    assert hard.said == ("01 by 1", "11 by 1")
