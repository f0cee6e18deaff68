"""Packed rows: every row once, in few packs, with the loss and gradients of rows that are passed by themselves."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers

from lorabank.core.errors import IncompatibleError
from lorabank.models.tasks.causal_lm import IGNORED, CausalLM
from lorabank.training.loop.packing import check_packable, collate_packs, packed_loss, packs

TINY = {
    "vocab_size": 60, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {"use_sliding_window": False},
    "mistral": {"sliding_window": 5},  # a row of ten tokens does not see its own beginning
    "gemma2": {"head_dim": 8, "sliding_window": 5},
    "gpt_neox": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
}
PADS = SimpleNamespace(pad_token_id=0)


def model_of(kind: str, **changes: Any) -> Any:
    torch.manual_seed(3)
    config = transformers.AutoConfig.for_model(kind, **(TINY | KINDS.get(kind, {}) | changes))
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def rows_of(lengths: list[tuple[int, int]], seed: int = 0) -> list[dict[str, list[int]]]:
    """Rows with so many tokens of prompt and completion."""
    chance = random.Random(seed)
    return [
        {"prompt": chance.choices(range(3, 60), k=prompt), "completion": chance.choices(range(3, 60), k=answer)}
        for prompt, answer in lengths
    ]


# ------------------------------------------------------------------------------------------------------ packs


def best_fit_decreasing(lengths: list[int], most: int) -> list[list[int]]:
    """By looking at every pack for every row."""
    found: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        room = {k: max(most, lengths[pack[0]]) - sum(lengths[i] for i in pack) for k, pack in enumerate(found)}
        fitting = [k for k in room if room[k] >= lengths[row]]
        if fitting:
            found[min(fitting, key=lambda k: room[k])].append(row)
        else:
            found.append([row])
    return found


@pytest.mark.parametrize("seed", range(30))
def test_rows_are_packed_as_best_fit_decreasing_packs_them(seed: int) -> None:
    chance = random.Random(seed)
    most = chance.randint(5, 40)
    lengths = [chance.randint(1, most + 3 * (seed % 2)) for _ in range(chance.randint(1, 120))]
    found, expected = packs(lengths, most), best_fit_decreasing(lengths, most)
    assert sorted(row for pack in found for row in pack) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in pack) <= most or len(pack) == 1 for pack in found)
    filled = [sorted(sum(lengths[i] for i in pack) for pack in some) for some in (found, expected)]
    assert filled[0] == filled[1]  # packs with the same room are the same to it


def test_no_rows_are_no_packs() -> None:
    assert packs([], 8) == []


# ------------------------------------------------------------------------------------------------------- loss


LENGTHS = [(9, 3), (1, 1), (4, 6), (1, 5), (7, 2), (2, 2), (12, 1)]


def test_a_pack_holds_its_rows_one_behind_the_other() -> None:
    rows = [{"prompt": [11, 12], "completion": [13, 14]}, {"prompt": [], "completion": [21, 22, 23]}]
    last = {"prompt": [31], "completion": [32]}
    batch = collate_packs(PADS, [rows, [last]])
    assert batch["input_ids"].tolist() == [[11, 12, 13, 21, 22], [31, 0, 0, 0, 0]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1], [0, 0, 0, 0, 0]]
    none = IGNORED
    assert batch["labels"].tolist() == [[none, 13, 14, 22, 23], [32, none, none, none, none]]


def gradients(model: Any, loss: torch.Tensor) -> list[torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]


@pytest.mark.parametrize(
    ("kind", "attention"),
    [
        (kind, attention)
        for kind in KINDS
        for attention in ("sdpa", "eager")
        if (kind, attention) != ("gemma2", "sdpa")
    ],
)
def test_loss_and_gradients_are_those_of_rows_alone(kind: str, attention: str) -> None:
    model = model_of(kind, attn_implementation=attention).double()
    check_packable(model, kind)
    rows = rows_of(LENGTHS)
    batch = collate_packs(PADS, [[rows[0], rows[1], rows[2]], [rows[3], rows[4]], [rows[5], rows[6]]])
    packed = packed_loss(model, batch)
    found = gradients(model, packed)
    total, terms = torch.zeros((), dtype=torch.float64), 0
    for row in rows:  # each by itself, by plain transformers
        ids = torch.tensor([[*row["prompt"], *row["completion"]]])
        answers = min(len(row["completion"]), ids.shape[1] - 1)
        logits = model(input_ids=ids).logits[0, -answers - 1 : -1]
        total = total + torch.nn.functional.cross_entropy(logits.double(), ids[0, -answers:], reduction="sum")
        terms += answers
    assert packed.item() == pytest.approx(total.item() / terms, rel=1e-6)
    for one, other in zip(found, gradients(model, total / terms), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_it_is_the_loss_of_the_same_rows_unpacked(kind: str) -> None:
    model, rows = model_of(kind), rows_of(LENGTHS, seed=4)
    task = CausalLM()
    apart = task.loss(model, task.collate(PADS, rows))
    together = packed_loss(model, collate_packs(PADS, [rows[:3], rows[3:]]))
    assert together.item() == pytest.approx(apart.item(), rel=1e-5)


def test_another_row_in_the_pack_changes_nothing() -> None:
    model, rows = model_of("mistral").double(), rows_of(LENGTHS, seed=1)
    loss = [packed_loss(model, collate_packs(PADS, [[rows[0], one]])).item() for one in rows_of([(6, 0), (6, 0)], 7)]
    assert loss[0] == pytest.approx(loss[1], rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("mamba", {"state_size": 4, "num_hidden_layers": 1}),  # a state is carried on
        ("bloom", {"n_head": 4, "n_layer": 1}),  # takes no positions
        ("falcon", {"alibi": True, "num_hidden_layers": 1}),
    ],
)
def test_a_model_that_would_mix_the_rows_is_refused(kind: str, changes: dict[str, Any]) -> None:
    model = model_of(kind, **changes)
    with pytest.raises(
        IncompatibleError, match=f"--packing: in '{kind}' texts of one sequence would change"
    ) as caught:
        check_packable(model, kind)
    assert (caught.value.hint, caught.value.unchanged) == ("leave --packing out", "nothing was changed")


def test_a_model_that_ignores_where_rows_begin_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """As transformers of other versions do, which mask nothing."""
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda position_ids: None)
    with pytest.raises(IncompatibleError, match="--packing"):
        check_packable(model_of("llama"), "llama")
