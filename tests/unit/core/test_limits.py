"""Each limit of the table, at the limit, one under and one over it: what is over is refused and named."""

from __future__ import annotations

import io
import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow
import pyarrow.parquet
import pytest

from lorabank.bank.objects import store
from lorabank.bank.objects.layout import check_name
from lorabank.bank.upkeep.remarks import check_note, check_tags
from lorabank.core.config import TrainConfig
from lorabank.core.errors import ConfigError, DataError, LorabankError, StorageError
from lorabank.core.files.safetensors_header import STORED, judge_header
from lorabank.core.limits import LIMITS
from lorabank.core.settings import validate
from lorabank.data.formats.base import Table, check_row_limit
from lorabank.data.formats.cells import check_label
from lorabank.data.formats.delimited import Csv
from lorabank.data.formats.json_list import JsonList
from lorabank.data.formats.jsonl import JsonLines
from lorabank.data.formats.parquet import Parquet
from lorabank.data.formats.parquet_pages import check_footer, rows_at_a_time
from lorabank.data.formats.text_file import check_unpacked
from lorabank.data.formats.workbook import check_parts
from lorabank.data.forms.labels import label_list
from lorabank.data.rows import Rows

VALUES = {limit.name: limit.value for limit in LIMITS}


def write_header(folder: Path, header: dict[str, object], *, size: int = 0, padded: int = 0) -> Path:
    """A safetensors file with this header, blanks behind it up to ``padded`` bytes, and a hole up to ``size``."""
    text = json.dumps(header).encode().ljust(padded)
    path = folder / "adapter_model.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(size or file.tell())
    return path


def judge(path: Path) -> None:
    with path.open("rb") as file:
        judge_header(file, path.name)


def adapter(folder: Path, size: int) -> None:
    """A sparse file of ``size`` bytes: the header's length depends on no more than its digits."""
    header = {"a": {"dtype": "U8", "shape": [10**9], "data_offsets": [0, 10**9]}}
    data = size - 8 - len(json.dumps(header).encode())
    assert len(str(data)) == 10
    header["a"] = {"dtype": "U8", "shape": [data], "data_offsets": [0, data]}
    judge(write_header(folder, header, size=size))


def header(folder: Path, size: int) -> None:
    judge(write_header(folder, {}, padded=size))


def metadata(folder: Path, size: int) -> None:
    judge(write_header(folder, {"__metadata__": {"format": "pt", "k": "x" * (size - 9)}}))


def tensors(folder: Path, count: int) -> None:
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    judge(write_header(folder, {str(number): empty for number in range(count)}))


def rank(folder: Path, value: int) -> None:
    validate(TrainConfig, {"data": "x.jsonl", "r": value})


def config(folder: Path, size: int) -> None:
    path = folder / "adapter_config.json"
    path.write_bytes(b"{}".ljust(size))
    store._check_content(path)


def name(folder: Path, length: int) -> None:
    check_name("a" * length)


def row(folder: Path, size: int) -> None:
    """A line, a record, an entry or a cell of ``size`` bytes."""
    lines, record, entries, cells = (folder / f"data{suffix}" for suffix in (".jsonl", ".csv", ".json", ".parquet"))
    text = json.dumps({"text": ""})
    filler = "x" * (size - len(text))
    lines.write_text(text.replace('""', f'"{filler[1:]}"') + "\n")
    record.write_text(f"text\n{'x' * (size - 1)}\n")
    entries.write_text("[" + text.replace('""', f'"{filler}"') + "]")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["x" * size]}), cells)
    refused = []
    for reader in (JsonLines()(lines), Csv()(record), JsonList()(entries), Parquet(cells)):
        try:
            table = reader.read(["text"])
            table.bad.settle("data", len(table.rows), skip=False)
            assert table.rows
        except DataError as error:
            refused.append(error)
    assert len(refused) in (0, 4), "one limit for every format"
    if refused:
        raise refused[0]


def decoded(folder: Path, size: int) -> None:
    class Cell:
        """Something that says to take ``size`` bytes."""

        __slots__ = ()

        def __sizeof__(self) -> int:
            return size - (sys.getsizeof(Small()) - object.__sizeof__(Small()))

    class Small:
        __slots__ = ()

    Table("data.parquet", ("text",)).add(1, (Cell(),))


def page(folder: Path, size: int) -> None:
    """The header of a page that would unpack to ``size`` bytes: zigzag numbers in Thrift's compact protocol."""

    def number(value: int) -> bytes:
        value, parts = value * 2, []
        while value > 0x7F:
            parts.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*parts, value])

    header = b"\x15\x00\x15" + number(size) + b"\x15" + number(1) + b"\x2c\x15" + number(1) + b"\x15\x00\x00\x00"
    chunk = SimpleNamespace(
        data_page_offset=0,
        dictionary_page_offset=None,
        total_compressed_size=len(header) + 1,
        num_values=1,
        path_in_schema="text",
    )
    group = SimpleNamespace(num_rows=1, column=lambda _: chunk)
    schema = SimpleNamespace(column=lambda _: SimpleNamespace(max_repetition_level=0))
    metadata = SimpleNamespace(schema=schema, num_row_groups=1, row_group=lambda _: group)
    assert rows_at_a_time(io.BytesIO(header + b"\x00"), metadata, [0], "data.parquet") == [1]


def unpacked(folder: Path, size: int) -> None:
    check_unpacked("data.csv.gz", size)


def workbook(folder: Path, size: int) -> None:
    check_parts("data.xlsx", [SimpleNamespace(file_size=size - 1000), SimpleNamespace(file_size=1000)])


def footer(folder: Path, length: int) -> None:
    path = folder / "data.parquet"
    with path.open("wb") as file:
        file.seek(length + 4)
        file.write(struct.pack("<I", length) + b"PAR1")
    with path.open("rb") as file:
        check_footer(file, path)


def rows(folder: Path, count: int) -> None:
    check_row_limit("data.jsonl", count)


def labels(folder: Path, count: int) -> None:
    numbers = tuple(range(count))
    names = tuple(f"label {number}" for number in numbers)
    label_list(Rows(names, names, "data.jsonl", ("text", "label"), numbers, "line"))


def label(folder: Path, length: int) -> None:
    from lorabank.data.formats.cells import BadCell

    try:
        check_label("x" * length)
    except BadCell as error:
        raise ConfigError(error.problem) from error


def note(_: Path, length: int) -> None:
    check_note("x" * length)


def tags(_: Path, count: int) -> None:
    check_tags(f"tag{number}" for number in range(count))


CHECKS: dict[str, Callable[[Path, int], None]] = {
    function.__name__: function
    for function in (
        adapter,
        header,
        metadata,
        tensors,
        rank,
        config,
        name,
        note,
        tags,
        row,
        rows,
        decoded,
        page,
        unpacked,
        workbook,
        footer,
        labels,
        label,
    )
}  # fmt: skip


def test_every_limit_of_the_table_is_tested_here() -> None:
    assert {*CHECKS, "free space"} == set(VALUES)
    assert all(limit.meaning for limit in LIMITS)


@pytest.mark.parametrize("limit", CHECKS)
def test_at_the_limit_and_around_it(limit: str, tmp_path: Path) -> None:
    check, value = CHECKS[limit], VALUES[limit]
    check(tmp_path, value - 1)
    check(tmp_path, value)
    with pytest.raises(LorabankError) as caught:
        check(tmp_path, value + 1)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 300


@pytest.mark.parametrize("need", [0, 10**6])
def test_free_space_is_twice_the_need_and_a_reserve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, need: int
) -> None:
    least = VALUES["free space"] + 2 * need
    usage = store.shutil.disk_usage(tmp_path)
    for free, enough in ((least + 1, True), (least, True), (least - 1, False)):
        monkeypatch.setattr(store.shutil, "disk_usage", lambda _, free=free: usage._replace(free=free))
        if enough:
            store.check_space(tmp_path, need)
        else:
            with pytest.raises(StorageError, match="MiB free"):
                store.check_space(tmp_path, need)


def test_what_is_imported_has_the_same_limits() -> None:
    from lorabank.exchange import untrusted_adapter as foreign

    assert VALUES["rank"] == foreign.MAX_RANK
    assert VALUES["adapter"] == STORED.bytes
    assert VALUES["config"] == store.MAX_CONFIG
