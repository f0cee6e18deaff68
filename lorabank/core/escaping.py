"""What people are shown of text that came from outside: terminal, errors and the report use this one function."""

from __future__ import annotations


def safe(value: object) -> str:
    r"""Text for people: what moves the cursor, hides or reorders text, or cannot be encoded becomes ``\xNN``.

    That is everything Python calls unprintable (controls, format characters such as bidirectional and zero-width
    ones, lone surrogates, private and unassigned code points), except spaces of any width.
    """
    text = str(value)
    if text.isprintable():
        return text
    import unicodedata

    return "".join(c if c.isprintable() or unicodedata.category(c) == "Zs" else _escape(ord(c)) for c in text)


def formula_safe(name: str) -> str:
    """Text for a cell of a spreadsheet, which would run one that starts like a formula."""
    text = safe(name)
    return f"'{text}" if text.startswith(("=", "+", "-", "@")) else text


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
