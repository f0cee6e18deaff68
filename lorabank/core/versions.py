"""Versions of what decides an adapter's bytes."""

from __future__ import annotations

import platform


def package_versions() -> dict[str, str]:
    """Python and the packages that decide an adapter's bytes, as the adapter's record keeps them."""
    from importlib.metadata import version

    packages = ("lorabank", "torch", "transformers", "tokenizers", "safetensors", "numpy", "scikit-learn")
    return {"python": platform.python_version(), **{package: version(package) for package in packages}}
