"""The real command with little of what the system gives: it does its work, or ends with 10 and one error."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lorabank.bank.bank import Bank
from tests.unit.bank.conftest import Kit

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit of an address space is one of Linux")

MIB = 1 << 20


def run(limit: int, value: int, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line under a soft limit."""

    def narrow() -> None:
        resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))

    return subprocess.run(
        [sys.executable, "-m", "lorabank_cli", *words], capture_output=True, text=True, preexec_fn=narrow, timeout=120
    )


def check(done: subprocess.CompletedProcess[str], where: str) -> None:
    """Done, or refused in one error."""
    assert done.returncode in (0, 10), f"{where}: {done.returncode} {done.stderr}"
    if done.returncode == 0:
        assert done.stderr == "", where
    else:
        first, *others = done.stderr.splitlines()
        assert first.startswith("error: "), where
        assert all(line.startswith("  ") for line in others), f"{where}: {done.stderr}"
        assert "Traceback" not in done.stderr
        assert "internal" not in done.stderr


@pytest.fixture
def bank(tmp_path: Path) -> Bank:
    """A bank with one task."""
    kit = Kit()
    bank = Bank.create(tmp_path / "bank", kit.base)
    kit.add_task(bank, "spam")
    return bank


@pytest.fixture(scope="module")
def start() -> int:
    """MiB that Python takes to load the command line, without any command."""
    words = "import lorabank_cli.main; print(open('/proc/self/status').read())"
    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)
    return int(re.search(r"VmPeak:\s+(\d+) kB", done.stdout).group(1)) // 1024


STORAGE: dict[str, Callable[[Path], list[str]]] = {
    "list": lambda bank: ["list", "-b", str(bank)],
    "backup": lambda bank: ["backup", "-b", str(bank)],
    "verify": lambda bank: ["verify", "--full", "-b", str(bank)],
}


@pytest.mark.parametrize("command", STORAGE)
def test_an_address_space_in_which_modules_hardly_fit(bank, start, command):
    """In steps of two MiB from where Python can just begin: memory ends in another import each time."""
    ends = set()
    for more in range(1, 16, 2):
        done = run(resource.RLIMIT_AS, (start + more) * MIB, *STORAGE[command](bank.path))
        check(done, f"{command} with {start + more} MiB")
        ends.add(done.returncode)
    assert run(resource.RLIMIT_AS, 300 * MIB, *STORAGE[command](bank.path)).returncode == 0
    assert 10 in ends
    assert bank.verify(full=True) == []


@pytest.mark.parametrize("size", [64, 160, 320, 640])
def test_an_address_space_in_which_no_model_fits(bank, size):
    """NumPy's and PyTorch's libraries would end the process with lines of their own."""
    done = run(resource.RLIMIT_AS, size * MIB, "predict", "a text", "-b", str(bank.path), "--device", "cpu")
    assert done.returncode == 10
    assert done.stderr.startswith(f"error: out of memory: the address space is limited to {size} MiB, and ")
    check(done, f"predict with {size} MiB")


@pytest.mark.parametrize("command", STORAGE)
def test_few_open_files(bank, command):
    for most in range(4, 14, 2):
        done = run(resource.RLIMIT_NOFILE, most, *STORAGE[command](bank.path))
        if done.stderr.startswith(("Error processing line", "Fatal Python error", "Could not find")):
            continue  # Python itself cannot begin
        check(done, f"{command} with {most} files")
    assert bank.verify(full=True) == []


@pytest.mark.parametrize("size", [0, 1000, 5000, 70_000])
def test_files_of_a_limited_size(bank, size):
    check(run(resource.RLIMIT_FSIZE, size, "backup", "-b", str(bank.path)), f"backup with files of {size} bytes")
    assert bank.verify(full=True) == []
