"""Models of transformers that cannot be a base, each with its reason.

Nearly everything that a base must be is read from the model or measured in it; what stands here is neither.
docs/bases.md says what came of every class.
"""

from __future__ import annotations

from collections.abc import Mapping

UNSUPPORTED: Mapping[tuple[str, str], str] = {
    ("cpmant", "CAUSAL_LM"): "it puts tokens of its own before each prompt, so no mask fits what was read already",
    ("prophetnet", "CAUSAL_LM"): "how likely it finds a word depends on how many words follow",
    ("prophetnet", "SEQ_2_SEQ_LM"): "how likely it finds a word depends on how many words follow",
    ("xlnet", "CAUSAL_LM"): "it sees the words that follow",
}
"""Model type and task type to the reason."""
