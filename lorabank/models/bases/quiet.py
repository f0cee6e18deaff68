"""What other libraries say, kept short: no load reports and progress bars, one line of an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

_LONGEST = 400
"""Characters of an error that goes over several lines."""


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No load report, no progress bar, errors only; the settings are put back at the end."""
    import logging as levels

    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(levels.ERROR)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def first_line(error: BaseException) -> str:
    """The first line of an error's text, with the ones that it announces, or the error's type's name."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if lines and lines[0].endswith(":"):  # a list follows
        return " ".join(lines)[:_LONGEST]
    return lines[0] if lines else type(error).__name__
