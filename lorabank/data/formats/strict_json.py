"""JSON as strictly as RFC 8259 says: what ``json`` alone would accept is refused.

``json.loads`` takes NaN, infinite numbers and repeated keys; here each of them is an error with its place.
"""

from __future__ import annotations

import json
import re
from typing import Any, NoReturn

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

KINDS = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a number",
    float: "a number",
    type(None): "null",
}
"""What a value is called in a message."""

# A whole string, or a run of anything else that is not punctuation: a number or a word.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s,:\[\]{}"]+')


class Refused(ValueError):
    """Something that ``json`` would accept; ``token`` is the text that stands in the file."""

    def __init__(self, problem: str, token: str | None = None) -> None:
        super().__init__(problem)
        self.token = token


def offset_of(token: str, text: str, start: int = 0) -> int:
    """Where a number or constant stands in ``text``, from ``start`` on; the same letters in a string do not count."""
    return next((match.start() for match in _TOKEN.finditer(text, start) if match.group() == token), start)


def problem_of(error: json.JSONDecodeError) -> str:
    """What is wrong with the syntax, in words."""
    return f"not JSON: {error.msg.lower().removesuffix(' at')}"


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        seen: set[str] = set()
        repeated = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise Refused(f"the key {repeated!r} appears twice")
    return record


def _constant(token: str) -> NoReturn:
    raise Refused(f"{token} is not JSON", token)


def _float(token: str) -> float:
    value = float(token)
    if value in (float("inf"), float("-inf")):
        raise Refused("the number is too large", token)
    return value


def _int(token: str) -> int:
    try:
        return int(token)
    except ValueError as error:  # Python's own limit, 4,300 digits
        raise Refused("the number has too many digits", token) from error


DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int)
"""Raises ``Refused`` beside what ``json`` raises."""
