"""A plug-in of vLLM (entry point ``vllm.general_plugins``), which is loaded wherever lorabank is installed beside it.

vLLM asks its resolvers where it was started with ``--enable-lora`` and ``VLLM_ALLOW_RUNTIME_LORA_UPDATING=1`` and a
request names a model that it does not know.
"""

from __future__ import annotations

import os

BANK = "LORABANK_BANK"
"""Environment variable with the bank's folder; without it nothing is registered, and nothing else is imported."""


def register() -> None:
    """Register the resolver, where `BANK` names a bank; vLLM calls it in each of its processes as they start."""
    if bank := os.environ.get(BANK):
        from lorabank.serving.backends.resolver import register as register_bank

        register_bank(bank)
