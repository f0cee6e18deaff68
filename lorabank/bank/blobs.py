"""What is read out of a blob; content that cannot be read is damage, and the error names the blob."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from lorabank.core.errors import DamagedError

if TYPE_CHECKING:
    from lorabank.bank.bank import Bank

T = TypeVar("T")


def parsed_blob(bank: Bank, digest: str, parse: Callable[[bytes], T]) -> T:
    """What ``parse`` makes of the content of a blob.

    Args:
        bank: The bank that holds the blob.
        digest: SHA-256 of its content.
        parse: Reads the content; raises `DamagedError` for content that it cannot read.

    Raises:
        DamagedError: The blob is missing or changed, or ``parse`` cannot read it.
    """
    content = bank.read_blob(digest)
    try:
        return parse(content)
    except DamagedError as error:
        raise error.saying(f"blob {digest[:12]}: {error.message}") from error
