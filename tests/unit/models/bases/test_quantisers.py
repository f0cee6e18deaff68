"""What each quantiser keeps of a matrix, by its paper's equation, and beside bitsandbytes where that is installed."""

from __future__ import annotations

import hashlib
import importlib.util

import numpy as np
import pytest
import torch

from tests.unit.models.bases.test_quantised import kept_and_back, random

BNB = importlib.util.find_spec("bitsandbytes") is not None
needs_bnb = pytest.mark.skipif(not BNB, reason="needs bitsandbytes: pip install bitsandbytes")
LEVELS = np.array([
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
])  # fmt: skip
"""Of NF4, as appendix E of the QLoRA paper prints them."""


@pytest.mark.parametrize("shape", [(24, 64), (7, 33)])
@pytest.mark.parametrize("block", [32, 64, 128])
def test_nf4_is_the_nearest_level_of_each_block(block: int, shape: tuple[int, int]) -> None:
    weight = random(*shape)
    kept, found = kept_and_back(f"nf4:block_size={block},double_quant=false", weight)
    flat = weight.double().numpy().flatten()
    blocks = np.pad(flat, (0, -len(flat) % block)).reshape(-1, block)
    magnitudes = np.abs(blocks).max(1, keepdims=True)
    nearest = np.abs(blocks[..., None] / magnitudes[..., None] - LEVELS).argmin(-1)
    expected = (LEVELS[nearest] * magnitudes).flatten()[: len(flat)].reshape(shape)
    assert np.abs(found.double().numpy() - expected).max() < 1e-6
    assert kept["codes"].numel() * kept["codes"].element_size() == -(-len(flat) // 2)


def test_double_quantisation_keeps_the_magnitudes_in_8_bits() -> None:
    weight = random(96, 512)
    kept, found = kept_and_back("nf4", weight)
    _, single = kept_and_back("nf4:double_quant=false", weight)
    magnitudes = weight.reshape(-1, 64).abs().amax(1).double()
    levels, outer = kept["levels"].double(), kept["outer"].double().repeat_interleave(256)
    left = magnitudes - magnitudes.mean()
    nearest = levels[(left[:, None] / outer[:, None] - levels).abs().argmin(1)] * outer + magnitudes.mean()
    scale = (nearest / magnitudes).repeat_interleave(64).reshape(96, 512)
    assert (found.double() - single.double() * scale).abs().max() < 1e-5
    constants = sum(t.numel() * t.element_size() for name, t in kept.items() if name not in ("codes", "levels"))
    assert constants == 96 * 512 / 64 + 4 * 96 * 512 / 64 / 256 + 4


@needs_bnb
def test_nf4_is_what_transformers_loads() -> None:
    """bitsandbytes' own layer, as ``BitsAndBytesConfig(load_in_4bit=True)`` makes it."""
    import bitsandbytes

    weight, x = random(48, 64), random(5, 64, seed=1)
    theirs = bitsandbytes.nn.Linear4bit(64, 48, bias=False, quant_type="nf4", compress_statistics=True)
    theirs.weight = bitsandbytes.nn.Params4bit(weight, requires_grad=False, quant_type="nf4", compress_statistics=True)
    theirs = theirs.to("cpu")
    kept, back = kept_and_back("nf4", weight)
    state = theirs.weight.quant_state
    assert torch.equal(theirs.weight.data.flatten(), kept["codes"])
    assert int((state.absmax.int() - kept["magnitudes"].int()).abs().max()) <= 1
    assert torch.equal(state.state2.absmax, kept["outer"])
    assert torch.equal(state.state2.code, kept["levels"])
    assert torch.allclose(bitsandbytes.functional.dequantize_4bit(theirs.weight.data, state), back, atol=0.02)
    assert torch.allclose(theirs(x), x @ back.T, atol=0.1)


def test_the_codes_of_nf4_are_those_of_bitsandbytes() -> None:
    """Its 0.50.2 gave this digest of numbers that need no generator; it need not be installed."""
    numbers = (torch.arange(96 * 512) * 7919 + 104729) % 65536
    kept, _ = kept_and_back("nf4", (numbers.float() / 32768 - 1).view(96, 512))
    digest = hashlib.sha256(kept["codes"].numpy().tobytes()).hexdigest()
    assert digest == "f26117592501dce23ee0a198ca965567f285a0c29dfbdb31ca6a6a1eedb2056f"


def test_int8_is_the_nearest_multiple_of_each_rows_step() -> None:
    weight = torch.cat([random(7, 33), torch.zeros(1, 33)])
    kept, found = kept_and_back("int8", weight)
    rows = weight.double().numpy()
    steps = np.abs(rows).max(1, keepdims=True) / 127
    codes = np.rint(rows / np.where(steps > 0, steps, 1))
    assert np.array_equal(kept["codes"].numpy(), codes)
    assert np.abs(found.double().numpy() - codes * steps).max() < 1e-6


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("group", [32, 64])
def test_hqq_is_the_fit_of_each_group(bits: int, group: int) -> None:
    """The same equations in numpy and float64, group by group in each turn."""
    weight = random(20, 48)
    kept, found = kept_and_back(f"hqq:bits={bits},group_size={group}", weight)
    w, most = weight.double().numpy().reshape(-1, group), 2**bits - 1
    s = (w.max(1, keepdims=True) - w.min(1, keepdims=True)) / most
    z, beta, errors, zeros = -w.min(1, keepdims=True) / s, 10.0, [], []
    for _ in range(20):
        q = np.clip(np.rint(w / s + z), 0, most)
        d = w - s * (q - z)
        errors.append(np.abs(d).mean())
        zeros.append(z)
        if len(errors) > 1 and errors[-1] >= errors[-2]:
            break
        e = np.sign(d) * np.maximum(np.abs(d) - np.maximum(np.abs(d), 1e-12) ** -0.3 / beta, 0)
        z = (q - (w - e) / s).mean(1, keepdims=True)
        beta *= 1.01
    z = zeros[int(np.argmin(errors))]
    expected = s * (np.clip(np.rint(w / s + z), 0, most) - z)
    error = np.abs(found.double().numpy().reshape(-1, group) - w).mean()
    assert error == pytest.approx(np.abs(expected - w).mean(), rel=0.02)
    assert error < 1.02 * errors[0]
    assert kept["codes"].numel() == weight.numel() * bits // 8


def test_hqq_keeps_a_constant_and_fills_its_last_group() -> None:
    weight = torch.cat([torch.full((3, 21), 0.25), torch.zeros(2, 21)])
    _, found = kept_and_back("hqq", weight)
    assert torch.allclose(found, weight, atol=1e-3)


def test_a_constant_group_takes_nothing_from_small_ones() -> None:
    """Steps are kept relative to the largest, which a group without a step must not be."""
    small = 1e-6 * random(4, 64)
    _, alone = kept_and_back("hqq", small)
    _, found = kept_and_back("hqq", torch.cat([small, torch.zeros(1, 64), torch.full((1, 64), 0.25)]))
    error, least = float((found[:4] - small).norm()), float((alone - small).norm())
    assert error < 1.2 * least < 0.2 * float(small.norm())
    assert torch.equal(found[4], torch.zeros(64))
    assert torch.allclose(found[5], torch.full((64,), 0.25))
