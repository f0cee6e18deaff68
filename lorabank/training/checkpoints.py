"""Checkpoints of an unfinished run that are either whole or not there.

A checkpoint is written into a folder whose name begins with a dot, a manifest of SHA-256 digests last, everything
synced, then renamed. Resuming takes the newest one whose every file matches its manifest. Tensors are safetensors, the
rest is JSON: nothing is unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

_MANIFEST = "manifest.json"
_KEPT = 2


def save_checkpoint(
    work: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]
) -> Path:
    """Write ``checkpoint-<step>`` and drop all but the newest two.

    Args:
        work: Folder of the run.
        step: Optimizer steps done.
        tensors: File stem to named tensors.
        facts: File stem to JSON values.

    Returns:
        The checkpoint's folder.
    """
    final, partial = work / f"checkpoint-{step}", work / f".checkpoint-{step}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    files = {f"{stem}.safetensors": save_tensors(_plain(group)) for stem, group in tensors.items()}
    files |= {f"{stem}.json": json.dumps(value).encode() for stem, value in facts.items()}
    manifest = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    for name, data in [*files.items(), (_MANIFEST, json.dumps(manifest).encode())]:
        with open(partial / name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    _sync_folder(partial)
    shutil.rmtree(final, ignore_errors=True)
    partial.rename(final)
    _sync_folder(work)
    for old in _by_step(work)[:-_KEPT]:
        shutil.rmtree(old)
    return final


def newest_checkpoint(work: Path) -> Path | None:
    """The newest checkpoint whose files all match its manifest, or None."""
    return next((folder for folder in reversed(_by_step(work)) if _is_whole(folder)), None)


def read_tensors(checkpoint: Path, stem: str) -> dict[str, Tensor]:
    """The named tensors of one file."""
    return load_tensors((checkpoint / f"{stem}.safetensors").read_bytes())


def read_facts(checkpoint: Path, stem: str) -> Any:
    """The JSON value of one file."""
    return json.loads((checkpoint / f"{stem}.json").read_text(encoding="utf-8"))


def random_state() -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state of every random generator: tensors, and what is not a tensor."""
    version, keys, gauss = random.getstate()
    name, numpy_keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    tensors = {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.asarray(numpy_keys).astype(np.int64))}
    if torch.cuda.is_available():
        tensors |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    facts = {"python": [version, list(keys), gauss], "numpy": [name, position, has_gauss, cached]}
    return tensors, facts


def restore_random_state(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
    """Put every generator back to a state of `random_state`."""
    version, keys, gauss = facts["python"]
    random.setstate((version, tuple(keys), gauss))
    name, position, has_gauss, cached = facts["numpy"]
    np.random.set_state((name, tensors["numpy"].numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(tensors["torch"])
    devices = [tensors[key] for key in sorted(key for key in tensors if key.startswith("cuda."))]
    if devices and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(devices)


def _plain(group: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in group.items()}


def _by_step(work: Path) -> list[Path]:
    folders = [path for path in work.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]{1,18}", path.name)]
    return sorted(folders, key=lambda path: int(path.name.removeprefix("checkpoint-")))


def _is_whole(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        return all(
            hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest for name, digest in manifest.items()
        )
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):  # JSON of another kind
        return False


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
