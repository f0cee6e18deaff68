"""E: text that is shown, and names."""

from __future__ import annotations

import os
from pathlib import Path

from tests.faults.corpus.case import QUERY, Case, Spoil, fields, header
from tests.faults.corpus.packaging import nothing

ESC, BEL, C1 = "\x1b[2J\x1b[31m", "\x07\x08", "\x9b2J\x90"
OSC_8 = "\x1b]8;;https://localhost\x1b\\click\x1b]8;;\x1b\\"
OSC_52 = "\x1b]52;c;aGFja2Vk\x07"
BIDI, ZERO_WIDTH = "\u202egnol\u2066", "sp\u200bam\ufeff"
HTML = "<img src=x onerror=alert(1)><script>alert(1)</script>"
ANY_BASE = ("--base-fingerprint", "{fingerprint}")


def base(name: str) -> Spoil:
    return fields(base_model_name_or_path=name)


def tensor(name: str) -> Spoil:
    return header(lambda entries: entries.update({name: entries.pop(f"{QUERY}.lora_A.weight")}))


def named(name: str) -> Spoil:
    """A folder of another name."""

    def spoil(folder: Path) -> Path:
        other = Path(os.fsdecode(os.fsencode(folder.parent) + b"/" + os.fsencode(name)))
        os.rename(folder, other)
        return other

    return spoil


CASES = (
    Case("E01 ESC in the base's name", 5, base(ESC)),
    Case("E02 OSC 8 in a tensor's name", 6, tensor(OSC_8)),
    Case("E03 OSC 52 in a key", 6, fields(**{OSC_52: 1})),
    Case("E04 CR in the task's name", 2, nothing, task="spam\rham"),
    Case("E05 BEL in the base's name", 5, base(BEL)),
    Case("E06 C1 in a tensor's name", 6, tensor(C1)),
    Case("E07 bidirectional in the base's name", 5, base(BIDI)),
    Case("E08 zero width in the task's name", 2, nothing, task=ZERO_WIDTH),
    Case("E09 twin in another script", 2, nothing, task="k\u0435pt"),
    Case("E10 64 kB name", 2, nothing, task="a" * 65536),
    Case("E11 HTML in the base's name", 5, base(HTML)),
    Case("E12 formula in the base's name", 5, base("=cmd|'/c calc'!A0")),
    Case("E13 NUL in the task's name", 2, nothing, task="spam\0"),
    Case("E14 lone surrogate in the base's name", 5, base("\ud800")),
    Case("E15 reserved word", 2, nothing, task="default"),
    Case("E16 device of Windows", 2, nothing, task="con"),
    Case("E17 quote of SQL", 2, nothing, task="x'; drop table tasks; --"),
    Case("E18 lone surrogate that is kept", 0, base("\ud800"), words=ANY_BASE),
    Case("E19 everything that is kept", 0, base(ESC + OSC_8 + C1 + BIDI + HTML + "\0"), words=ANY_BASE),
    Case("E20 folder whose name is no UTF-8", 0, named("ham\udcff")),
    Case("E21 folder named with ESC", 0, named(ESC)),
    Case("E22 surrogate in an unknown key", 0, fields(**{"\ud800": 1}), words=("--ignore-unknown",)),
    Case("E23 key of 200 kB", 6, fields(**{"k\u202e" * 20_000: 1})),
)
