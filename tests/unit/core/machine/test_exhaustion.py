"""What is said when memory or threads run out, by whom ever, and what only looks like it."""

from __future__ import annotations

import errno
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lorabank.bank.failures import reported
from lorabank.core.errors import DataError, MissingExtraError, StorageError
from lorabank.core.machine.exhaustion import exhausted, hidden_os_error


class SafetensorError(Exception):
    """As safetensors names its own."""


class OutOfMemoryError(RuntimeError):
    """As torch names its own."""


MEMORY = [
    MemoryError(),
    MemoryError("std::bad_alloc"),
    ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ImportError("_flapack.so: cannot allocate memory in static TLS block"),
    ImportError("x.so: cannot apply additional memory protection after relocation: Cannot allocate memory"),
    OSError("libgomp.so.1: cannot create shared object descriptor: Cannot allocate memory"),
    OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "weights"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: 12"),
    RuntimeError(
        "[enforce fail at alloc_cpu.cpp:100] . DefaultCPUAllocator: not enough memory: you tried to allocate"
    ),
    RuntimeError("unable to mmap 67108864 bytes from file </x/model.safetensors>: Cannot allocate memory (12)"),
    OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("std::bad_alloc"),
    SafetensorError("Error while deserializing: I/O error: Cannot allocate memory (os error 12)"),
]
THREADS = [
    RuntimeError("can't start new thread"),
    RuntimeError("thread constructor failed: Resource temporarily unavailable"),
    BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)),
]
OTHER = [
    KeyError("out of memory"),
    ValueError("label 'out of memory'"),
    DataError("line 3: 'cannot allocate memory' is no label"),
    FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "out of memory.jsonl"),
    ImportError("No module named 'torch'"),
    RuntimeError("The size of tensor a (3) must match the size of tensor b (2)"),
    KeyboardInterrupt(),
]


@pytest.mark.parametrize("error", MEMORY, ids=repr)
def test_memory(error):
    known = exhausted(error)
    assert (known.exit_code, known.message) == (10, "out of memory")


@pytest.mark.parametrize("error", THREADS, ids=repr)
def test_threads(error):
    known = exhausted(error)
    assert (known.exit_code, known.message) == (10, "the system cannot start more threads")


def limited(write: Callable[[Path], object], folder: Path) -> Any:
    """The error of a library that writes a file larger than the system allows: a full disk without a disk."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        write(folder / "file")
    except Exception as error:
        return error
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_what_the_system_refuses_behind_a_library(tmp_path):
    tensors = {"a": torch.zeros(10_000)}
    by_safetensors = limited(lambda path: save_file(tensors, path), tmp_path)
    assert type(by_safetensors).__name__ == "SafetensorError"
    assert hidden_os_error(by_safetensors).errno == errno.EFBIG
    by_torch = limited(lambda path: torch.save(tensors, path), tmp_path)
    assert isinstance(by_torch, RuntimeError)
    assert hidden_os_error(by_torch).strerror == "a file could not be written"
    with pytest.raises(StorageError, match=f"^{tmp_path}: File too large$") as caught, reported(tmp_path):
        raise by_safetensors
    assert caught.value.hint is None
    full = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(StorageError, match="No space left on device") as caught, reported(tmp_path):
        raise full
    assert caught.value.hint == "free some space and run the same command again"
    assert [hidden_os_error(error) for error in OTHER if not isinstance(error, OSError)] == [None] * 6


@pytest.mark.parametrize("error", OTHER, ids=repr)
def test_what_is_neither(error):
    assert exhausted(error) is None


def raised(error: BaseException, *, under: BaseException | None, explicitly: bool) -> BaseException:
    """An error that was raised from another one, or while that was handled."""
    try:
        try:
            raise under
        except type(under) as cause:
            if explicitly:
                raise error from cause
            raise error  # noqa: B904
    except type(error) as caught:
        return caught


@pytest.mark.parametrize("explicitly", [True, False])
def test_an_error_of_ours_is_read_by_what_it_was_raised_from(explicitly):
    ours = MissingExtraError("base model 'x' needs a package: _flapack.so: failed to map segment")
    assert exhausted(ours) is None  # as a text alone it may be anybody's
    assert exhausted(raised(ours, under=MEMORY[2], explicitly=explicitly)).message == "out of memory"
    between = raised(ImportError("cannot import name 'x'"), under=MemoryError(), explicitly=explicitly)
    assert exhausted(raised(DataError("the tokenizer cannot be read"), under=between, explicitly=True)) is not None


def test_what_was_handled_on_purpose_is_not_looked_at():
    error = DataError("not JSON")
    error.__context__, error.__suppress_context__ = MemoryError(), True
    assert exhausted(error) is None


def test_a_chain_that_ends_in_itself():
    error = ValueError("a")
    error.__context__ = other = ValueError("b")
    other.__context__ = error
    assert exhausted(error) is None
