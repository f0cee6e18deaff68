"""Settings of the server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lorabank.core.config import MAX_RESIDENT
from lorabank.core.settings import setting

TOKEN = "LORABANK_TOKEN"
"""Environment variable with the token that callers must bring."""


@dataclass(frozen=True, kw_only=True)
class ServeConfig:
    """Where the server listens, and what it takes at a time."""

    host: str = setting("127.0.0.1", f"Address to listen on; any but a loopback address needs a token ({TOKEN}).")
    port: int = setting(8000, "Port to listen on; 0 takes a free one.", ge=0, le=65535)
    uds: str | None = setting(None, "Path of a Unix socket to listen on, for this user alone, in place of a port.")
    token_file: str | None = setting(
        None, f"File that holds the token that callers must bring; default: the variable {TOKEN}."
    )
    batch_size: int = setting(32, "Texts that share a forward pass.", ge=1, le=4096)
    max_queue: int = setting(256, "Texts that may wait; further ones are refused with 429.", ge=1)
    max_texts: int = setting(64, "Texts of one call.", ge=1)
    max_body: int = setting(1 << 20, "Bytes of a call's body.", ge=1024)
    max_new_tokens: int = setting(
        1024, "Maximum number of new tokens of an answer; a call that asks for more gets this many.", ge=1, le=32768
    )
    seconds: float = setting(60.0, "Seconds until a call that waits is refused, and one that generates ends.", gt=0)
    grace: float = setting(30.0, "Seconds that calls under way have to end after SIGTERM.", ge=0)
    max_resident: str | None = setting(None, MAX_RESIDENT)
    device: str = setting("auto", "auto, cpu, cuda or cuda:N.")
    dtype: Literal["auto", "float32", "bfloat16"] = setting("auto", "auto: bfloat16 on a GPU, float32 on a CPU.")
