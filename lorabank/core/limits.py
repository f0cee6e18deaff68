"""Every limit on what comes from outside, in one table: the code that enforces a limit imports it from here.

A limit keeps a file that somebody prepared from costing memory, time or disk before it is refused. What lies above one
is refused whole: nothing is cut.
"""

from typing import NamedTuple

MAX_FILE = 2 * 1024**3
MAX_HEADER = 1_000_000
MAX_METADATA = 64 * 1024
MAX_TENSORS = 4096
MAX_RANK = 1024
MAX_CONFIG = 256 * 1024
MAX_NAME = 64
MAX_NOTE = 2000
MAX_TAGS = 32
MAX_LINE = 1024**2
MAX_ROWS = 5_000_000
MAX_DECODED = 1024**3
MAX_UNPACKED = 1024**3
MAX_WORKBOOK = 256 * 1024**2
MAX_PAGE = 256 * 1024**2
MAX_FOOTER = 8 * 1024**2
MAX_LABELS = 10_000
MAX_LABEL_LENGTH = 256
FREE_SPACE = 64 * 1024**2


class Limit(NamedTuple):
    """One limit.

    Attributes:
        name: How the table calls it.
        value: The greatest value that is accepted (``free space``: the least).
        unit: What ``value`` counts.
        meaning: What is limited, and where.
    """

    name: str
    value: int
    unit: str
    meaning: str


LIMITS = (
    Limit("adapter", MAX_FILE, "bytes", "a safetensors file, imported or stored"),
    Limit("header", MAX_HEADER, "bytes", "the header of a safetensors file"),
    Limit("metadata", MAX_METADATA, "bytes", "keys and values of the metadata in such a header"),
    Limit("tensors", MAX_TENSORS, "tensors", "in one safetensors file"),
    Limit("rank", MAX_RANK, "", "r of an adapter, trained or imported"),
    Limit("config", MAX_CONFIG, "bytes", "a JSON file of an adapter folder"),
    Limit("name", MAX_NAME, "characters", "the name of a task or composition"),
    Limit("note", MAX_NOTE, "characters", "the note of a task or composition"),
    Limit("tags", MAX_TAGS, "tags", "of one task or composition"),
    Limit("row", MAX_LINE, "bytes", "a line of .jsonl, a record of .csv, an entry of .json, cells of any other row"),
    Limit("rows", MAX_ROWS, "rows", "of one data file, and values of one of its columns"),
    Limit("decoded", MAX_DECODED, "bytes", "all cells that are read from one data file, as they lie in memory"),
    Limit("unpacked", MAX_UNPACKED, "bytes", "what a .gz file unpacks to"),
    Limit("workbook", MAX_WORKBOOK, "bytes", "what the parts of a .xlsx file unpack to"),
    Limit("page", MAX_PAGE, "bytes", "what one page of a .parquet file unpacks to"),
    Limit("footer", MAX_FOOTER, "bytes", "the footer of a .parquet file"),
    Limit("labels", MAX_LABELS, "labels", "of one task"),
    Limit("label", MAX_LABEL_LENGTH, "characters", "one label"),
    Limit("free space", FREE_SPACE, "bytes", "stay free on the disk beside twice of what is written"),
)
