"""Settings of the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lorabank.core.config import MAX_RESIDENT
from lorabank.core.settings import setting

TOKEN = "LORABANK_TOKEN"
"""Environment variable with the token that callers must send."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where the server listens, and what it takes at a time."""

    host: str = setting("127.0.0.1", f"Address to listen on. Any address but a loopback one needs a token ({TOKEN}).")
    port: int = setting(8000, "Port to listen on; 0 takes a free one.", ge=0, le=65535)
    uds: str | None = setting(
        None, "Path of a Unix socket to listen on instead of a port; only this user can connect to it."
    )
    token_file: str | None = setting(
        None, f"File with the token that callers must send; default: the variable {TOKEN}."
    )
    batch_size: int = setting(32, "Maximum number of texts that share a forward pass.", ge=1, le=4096)
    max_queue: int = setting(256, "Maximum number of texts that wait; further texts are refused with 429.", ge=1)
    max_texts: int = setting(64, "Maximum number of texts in one call.", ge=1)
    max_body: int = setting(1 << 20, "Maximum size of a call's body, in bytes.", ge=1024)
    max_new_tokens: int = setting(
        1024, "Maximum number of new tokens of an answer; a call that asks for more gets this many.", ge=1, le=32768
    )
    seconds: float = setting(
        60.0, "Seconds after which a text that still waits is refused, and generation of an answer ends.", gt=0
    )
    grace: float = setting(30.0, "Seconds that calls under way may take to finish after SIGTERM or Ctrl-C.", ge=0)
    backend: str | None = setting(
        None,
        "Server that generates the text with the bank's base model: vllm=URL or vllm=unix:PATH; routing stays here.",
    )
    backend_folder: str | None = setting(
        None,
        "Folder for exported adapters, which the backend must be able to read; default: one beside the hub's cache.",
    )
    backend_adapters: int = setting(
        64, "Maximum number of exported adapters that are kept; the least recently used one is deleted.", ge=1
    )
    max_resident: str | None = setting(None, MAX_RESIDENT)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16"] = setting("auto", "auto: bfloat16 on a GPU, float32 on a CPU.")
