"""B: the tensors and their values."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tests.faults.corpus.case import PREFIX, QUERY, Case, tensors

A, B = f"{QUERY}.lora_A.weight", f"{QUERY}.lora_B.weight"
Tensors = dict[str, torch.Tensor]


def factors(found: Tensors, kinds: tuple[str, ...] = ("lora_A", "lora_B")) -> list[str]:
    return [name for name in found if any(kind in name for kind in kinds)]


def each(change: Callable[[torch.Tensor], torch.Tensor], *kinds: str) -> Callable[[Tensors], None]:
    def run(found: Tensors) -> None:
        for name in factors(found, kinds or ("lora_A", "lora_B")):
            found[name] = change(found[name])

    return run


def one_nan(found: Tensors) -> None:
    found[A][0, 0] = float("nan")


def half(found: Tensors) -> None:
    for name in [name for name in factors(found) if ".layer.1." in name]:
        del found[name]


def renamed(old: str, new: str, *, keep: bool = False) -> Callable[[Tensors], None]:
    def run(found: Tensors) -> None:
        for name in [name for name in factors(found) if old in name]:
            found[name.replace(old, new)] = found[name].clone() if keep else found.pop(name)

    return run


def cancelling(found: Tensors) -> None:
    """B A is zero, neither A nor B is."""
    for name in factors(found, ("lora_A",)):
        found[name] = found[name][:1].repeat(2, 1)
    for name in factors(found, ("lora_B",)):
        found[name] = found[name][:, :1] * torch.tensor([1.0, -1.0])


CASES = (
    Case("B01 one NaN", 6, tensors(one_nan)),
    Case("B02 all infinite", 6, tensors(each(lambda t: torch.full_like(t, float("inf"))))),
    Case("B03 subnormal numbers only", 6, tensors(each(lambda t: torch.full_like(t, 1e-40), "lora_B"))),
    Case("B04 weights times 10,000", 0, tensors(each(lambda t: t * 1e4, "lora_B"))),
    Case("B05 zero", 6, tensors(each(torch.zeros_like, "lora_B"))),
    Case("B06 int8", 6, tensors(each(lambda t: t.to(torch.int8)))),
    Case("B07 float64", 6, tensors(each(lambda t: t.double()))),
    Case("B08 transposed", 6, tensors(each(lambda t: t.T))),
    Case("B09 half of them missing", 6, tensors(half)),
    Case("B10 none of the base's modules", 5, tensors(renamed("bert.encoder.layer", "transformer.h"))),
    Case("B11 one layer too many", 5, tensors(renamed(".layer.1.", ".layer.2.", keep=True))),
    Case("B12 a weight of the base", 6, tensors(lambda found: found.update({f"{QUERY}.weight": torch.eye(32)}))),
    Case("B13 a base_layer", 6, tensors(lambda found: found.update({f"{QUERY}.base_layer.weight": torch.eye(32)}))),
    Case(
        "B14 a module saved whole that is not declared",
        6,
        tensors(lambda found: found.update({f"{PREFIX}bert.pooler.dense.weight": torch.eye(32)})),
    ),
    Case("B15 infinite only when multiplied", 6, tensors(each(lambda t: t.sign() * 1e30))),
    Case("B16 factors that cancel", 6, tensors(cancelling)),
    Case("B17 names of a compiled model", 0, tensors(renamed(PREFIX, f"{PREFIX}_orig_mod."))),
    Case("B18 names of a raw state", 0, tensors(renamed(".weight", ".default.weight"))),
    Case("B19 two adapters in one file", 6, tensors(renamed("lora_A.weight", "lora_A.other.weight", keep=True))),
    Case(
        "B20 a weight of the base behind a wrapper",
        6,
        tensors(lambda found: found.update({f"{QUERY}._orig_mod.weight": torch.eye(32)})),
    ),
    Case("B21 names without a prefix", 6, tensors(renamed(PREFIX, ""))),
)
