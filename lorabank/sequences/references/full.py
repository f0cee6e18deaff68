"""``full``: all weights of the base, trained on every task in turn: sequential full fine-tuning.

    theta_t = AdamW(theta_{t-1}, grad of the mean CE of task t)        theta: all weights; a head for each task

It is what adapters are compared with ("LoRA learns less and forgets less", arXiv 2405.09673), and the lower baseline
``SeqFT`` of continual-learning papers. The learning rate of 2e-5 is one of the three that BERT's authors fine-tune
with (arXiv 1810.04805, appendix A.3: 5e-5, 3e-5, 2e-5), and LLaMA's usual one (Alpaca's recipe).
"""

from __future__ import annotations

from lorabank.sequences.references.base import Reference

FULL = Reference(
    "full",
    "all weights",
    2e-5,
    about="All weights of the base are trained on every task in turn: full fine-tuning, which no adapter can store.",
    paper="arXiv 1810.04805 (learning rate); LoRA Learns Less and Forgets Less, arXiv 2405.09673 (as a reference)",
)
