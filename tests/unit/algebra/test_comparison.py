"""Two adapters side by side, against dense matrices in float64 NumPy."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from lorabank.algebra.comparison import compare_adapters, principal_angles
from lorabank.algebra.factors import LoraFactors

MODULES = {"m": (10, 9), "n": (7, 8)}


def no_weight(module: str) -> torch.Tensor:
    raise AssertionError("no adapter here has a row gain")


@pytest.fixture
def base() -> dict[str, torch.Tensor]:
    torch.manual_seed(7)
    return {module: torch.randn(shape) for module, shape in MODULES.items()}


def full(factors: LoraFactors, module: str, base: dict[str, torch.Tensor] | None = None) -> np.ndarray:
    """``(diag(g) - 1) W + s B A``; 0 on a module that is not changed."""
    if module not in factors.A:
        return np.zeros(MODULES[module])
    B, A = factors.B[module].double().numpy(), factors.A[module].double().numpy()
    made = factors.scaling[module] * B @ A
    if module in factors.gain:
        made += (factors.gain[module].double().numpy() - 1)[:, None] * base[module].numpy()
    return made


def cosines_of(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """By projectors: the singular values of ``P_1 P_2`` of the row spaces, as many as the smaller dimension."""
    projectors = [np.linalg.pinv(rows) @ rows for rows in (one, other)]
    smaller = min(np.linalg.matrix_rank(rows) for rows in (one, other))
    return np.linalg.svd(projectors[0] @ projectors[1], compute_uv=False)[:smaller]


def check(one: LoraFactors, other: LoraFactors, base) -> None:
    found = compare_adapters(one, other, base.__getitem__)
    deltas = [{module: full(each, module, base) for module in MODULES} for each in (one, other)]
    common = [module for module in MODULES if module in one.A and module in other.A]
    assert list(found.modules) == common
    for module in common:
        D, E = deltas[0][module], deltas[1][module]
        seen = found.modules[module]
        inner = float((D * E).sum())
        assert seen.inner == pytest.approx(inner, abs=1e-9)
        assert seen.cosine == pytest.approx(inner / np.linalg.norm(D) / np.linalg.norm(E), abs=1e-9)
        assert seen.distance == pytest.approx(np.linalg.norm(D - E) / np.linalg.norm(E), rel=1e-9)
        rows = cosines_of(one.A[module].double().numpy(), other.A[module].double().numpy())
        columns = cosines_of(one.B[module].T.double().numpy(), other.B[module].T.double().numpy())
        for angles, expected in ((seen.inputs, rows), (seen.outputs, columns)):
            np.testing.assert_allclose(angles.cosines, expected, atol=1e-9)
            assert angles.overlap == pytest.approx(float((expected**2).mean()), abs=1e-9)
    flat = [np.concatenate([delta.ravel() for delta in each.values()]) for each in deltas]
    assert found.inner == pytest.approx(float(flat[0] @ flat[1]), abs=1e-9)
    assert found.norms == pytest.approx([np.linalg.norm(each) for each in flat])
    assert found.cosine == pytest.approx(float(flat[0] @ flat[1]) / np.prod(found.norms), abs=1e-9)


def test_of_random_adapters(make_adapter, base) -> None:
    check(make_adapter(MODULES, 2, 4.0, seed=0), make_adapter(MODULES, 3, 2.0, seed=1), base)


def test_of_adapters_on_other_modules(make_adapter, base) -> None:
    one, other = make_adapter(MODULES, 2, 4.0, seed=0), make_adapter({"n": MODULES["n"]}, 3, 2.0, seed=1)
    check(one, other, base)
    assert compare_adapters(one, other, no_weight).distance >= 1


@pytest.mark.parametrize("both", [False, True])
def test_of_row_gains(make_adapter, base, both: bool) -> None:
    one, other = make_adapter(MODULES, 2, 4.0, seed=0), make_adapter(MODULES, 3, 2.0, seed=1)
    gain = {module: 1 + 0.3 * torch.arange(shape[0]) for module, shape in MODULES.items()}
    one = replace(one, gain=gain)
    other = replace(other, gain={"m": 2 - gain["m"]}) if both else other
    check(one, other, base)
    check(other, one, base)


def test_a_rotation_changes_no_delta_weight(make_adapter) -> None:
    one = make_adapter(MODULES, 3, 6.0, seed=0, dtype=torch.float64)
    mix = torch.tensor([[2.0, 1.0, 0.0], [0.0, 1.0, -1.0], [0.5, 0.0, 1.0]], dtype=torch.float64)
    rotated = LoraFactors(
        {module: torch.linalg.inv(mix) @ A for module, A in one.A.items()},
        {module: B @ mix for module, B in one.B.items()},
        one.scaling,
    )
    found = compare_adapters(one, rotated, no_weight)
    assert found.distance < 1e-12
    assert found.cosine == pytest.approx(1)
    for module in found.modules.values():
        np.testing.assert_allclose(module.inputs.cosines, 1)
        np.testing.assert_allclose(module.outputs.cosines, 1)


def test_what_points_the_other_way_cancels(make_adapter) -> None:
    one = make_adapter(MODULES, 2, 4.0, seed=0)
    other = replace(one, scaling=dict.fromkeys(MODULES, -1.0))
    assert compare_adapters(one, other, no_weight).cosine == pytest.approx(-1)


def test_known_angles() -> None:
    eye = torch.eye(6)
    tilted = torch.stack([eye[0], (eye[1] + eye[2]) / 2**0.5])
    found = principal_angles(eye[:2], tilted)
    assert found.cosines == pytest.approx((1, 0.5**0.5))
    assert (found.overlap, found.random) == (pytest.approx(0.75), pytest.approx(2 / 6))


def test_an_adapter_that_changes_nothing_has_no_angle(make_adapter) -> None:
    one, other = make_adapter(MODULES, 2, 4.0, seed=0), make_adapter(MODULES, 2, 4.0, seed=1)
    untouched = replace(other, B={module: torch.zeros_like(B) for module, B in other.B.items()})
    found = compare_adapters(one, untouched, no_weight)
    assert (found.cosine, found.norms[1], found.modules["m"].outputs.cosines) == (0.0, 0.0, ())
