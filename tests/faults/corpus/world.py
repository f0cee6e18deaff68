"""A tiny base, a bank on it, and the import of one prepared adapter, judged from outside."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing, redirect_stderr, redirect_stdout
from pathlib import Path

from lorabank_cli.main import main

from lorabank import api
from lorabank.bank.bank import Bank
from lorabank.core.config import InitConfig, TrainConfig
from tests.faults.corpus.case import Case, write_good
from tests.faults.corpus.watch import Watch

Finding = tuple[str, str]
"""``"lost"``, ``"damaged"`` or ``"uncaught"``, and what."""

_LONGEST = 1500


class World:
    """Everything that the corpus is tried on.

    Args:
        folder: An empty folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = make_base(folder / "base")
        self.data = folder / "rows.jsonl"
        rows = [{"text": chr(97 + n) + chr(98 + n) + "xyz", "label": ("no", "yes")[n % 2]} for n in range(20)]
        self.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.good = write_good(folder / "good", self.base)
        self.bank, self._pristine = folder / "bank", folder / "pristine"
        config = TrainConfig(data=str(self.data), device="cpu", max_length=16, clusters_per_task=2)
        api.import_adapter(self.bank, self.good, "kept", config=config, init=InitConfig(base=str(self.base)))
        self.fingerprint = Bank.open(self.bank).snapshot().base.fingerprint
        shutil.copytree(self.bank, self._pristine)
        self._base_before = digest_of(self.base)
        self._cache = fingerprint_cache()

    def try_out(self, case: Case, *, process: bool = False) -> list[Finding]:
        """Import one adapter and look at what it left.

        Args:
            case: The adapter.
            process: Call the installed command in a process of its own.
        """
        place = self.folder / "case"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        source = Path(shutil.copytree(self.good, place / "source"))
        source = case.spoil(source) or source
        before, files = rows_of(self.bank), listing(self.bank)
        words = self._words(case, source)
        watch = Watch([self.bank, self._cache])
        if process:
            code, out, err = as_process(words)
        else:
            with case.during(source), watch:
                code, out, err = in_process(words)
        found = [("uncaught", f"outside the bank: {line}") for line in watch.seen]
        found += judge_output(case, code, out, err)
        after = rows_of(self.bank)
        if code and (after, listing(self.bank)) != (before, files):
            found.append(("damaged", "a refused import changed the bank"))
        if not set(before) <= set(after):
            found.append(("lost", "a row is gone or changed"))
        found += [("damaged", finding.problem) for finding in api.verify(self.bank, full=True)]
        if digest_of(self.base) != self._base_before:
            found.append(("damaged", "the base model was changed"))
        if code == 0:
            found += judge_mark(self.bank, case.task)
            shutil.rmtree(self.bank)
            shutil.copytree(self._pristine, self.bank)
        return [(kind, f"{case.name}: {what}") for kind, what in found]

    def _words(self, case: Case, source: Path) -> list[str]:
        words = ["import", str(source), "--bank", str(self.bank), "--as-task", case.task, "--data", str(self.data)]
        words += ["--device", "cpu", "--max-length", "16", "--clusters-per-task", "2"]
        return [*words, *(word.format(fingerprint=self.fingerprint) for word in case.words)]


def fingerprint_cache() -> Path:
    """The user's cache of fingerprints: the only folder beside the bank in which an import may write.

    An import writes there when the base has been unchanged for two seconds for the first time.
    """
    from huggingface_hub import constants

    folder = Path(constants.HF_HOME) / "lorabank" / "fingerprints"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder


def make_base(folder: Path) -> Path:
    """A random BERT of two layers and width 32, and a tokenizer of letters."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    torch.manual_seed(7)
    config = BertConfig(
        vocab_size=32, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=66, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    BertModel(config).save_pretrained(folder)
    words = ["<pad>", "<unk>", *"abcdefghijklmnopqrstuvwxyz"]
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>").save_pretrained(folder)
    return folder


def in_process(words: Sequence[str]) -> tuple[int, str, str]:
    """The command line's exit code and streams, without a process."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8", write_through=True) for _ in range(2)]
    with redirect_stdout(streams[0]), redirect_stderr(streams[1]):
        code = main(list(words))
    out, err = (stream.buffer.getvalue().decode() for stream in streams)  # type: ignore[attr-defined]
    return code, out, err


def as_process(words: Sequence[str]) -> tuple[int, str, str]:
    """The same from ``python -m lorabank_cli``."""
    command = [os.fsencode(word) for word in (sys.executable, "-m", "lorabank_cli", *words)]
    done = subprocess.run(command, capture_output=True, timeout=120, check=False)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def judge_output(case: Case, code: int, out: str, err: str) -> list[Finding]:
    """The documented exit code, one line that names the thing, nothing that moves a cursor."""
    found: list[Finding] = []
    if code != case.code:
        found.append(("uncaught", f"exit code {code}, documented is {case.code}: {err[:300]}"))
    if "Traceback" in err:
        found.append(("uncaught", f"a traceback: {err[-300:]}"))
    odd = {char for char in out + err if not char.isprintable() and char != "\n"}
    if odd:
        found.append(("uncaught", f"control characters {odd!r}"))
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    if len(errors) != (code != 0) or any(len(line) > _LONGEST for line in err.splitlines()):
        found.append(("uncaught", f"not one line of error: {err[:300]}"))
    if code and not any(word in err for word in ("nothing was changed", "was not changed")):
        found.append(("uncaught", "does not say what stayed as it was"))
    return found


def judge_mark(bank: Path, task: str) -> list[Finding]:
    """What was let in says that it came from elsewhere, and from which bytes."""
    adapter = Bank.open(bank).snapshot().adapter_of(task)
    if adapter.strategy != "imported" or adapter.metrics["trusted"] or len(adapter.metrics["source_digest"]) != 64:
        return [("damaged", "the row is not marked as imported")]
    return []


def rows_of(bank: Path) -> list[tuple[object, ...]]:
    """Every row of every table."""
    with closing(sqlite3.connect(bank / "bank.db")) as connection:
        tables = [name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")]
        return [(table, *row) for table in sorted(tables) for row in connection.execute(f'select * from "{table}"')]


def listing(bank: Path) -> list[str]:
    """Every path in the bank but the database's side files."""
    return sorted(str(path.relative_to(bank)) for path in bank.rglob("*") if not path.name.startswith("bank.db-"))


def digest_of(folder: Path) -> str:
    """A digest of every file in a folder."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        digest.update(str(path).encode() + path.read_bytes())
    return digest.hexdigest()
