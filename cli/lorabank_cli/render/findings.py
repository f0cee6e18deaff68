"""What ``verify`` and ``doctor`` found wrong: a table, and below it the cures as commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lorabank.core.escaping import safe
from lorabank_cli.render.text import table

if TYPE_CHECKING:
    from lorabank.core.commands import Command
    from lorabank.core.records import Finding
    from lorabank_cli.render.output import Output

_NAMED = 3


def findings_text(output: Output, findings: Sequence[Finding]) -> str:
    """The findings, and each cure once with what it is for."""
    rows = [(finding.kind, finding.subject, finding.message) for finding in findings]
    cured: dict[tuple[str, tuple[Command, ...]], list[str]] = {}
    for finding in findings:
        cured.setdefault((finding.hint, finding.commands), []).append(finding.subject)
    blocks = [output.next(*commands, title=_title(hint, subjects)) for (hint, commands), subjects in cured.items()]
    return "\n\n".join([table(("kind", "subject", "finding"), rows), *blocks])


def _title(hint: str, subjects: Sequence[str]) -> str:
    names = list(dict.fromkeys(subjects))
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return safe(f"to fix {', '.join(names[:_NAMED])}{more}" + (f": {hint}" if hint else ""))
