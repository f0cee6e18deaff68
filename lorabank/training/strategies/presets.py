"""Strategies that are settings alone.

| strategy | earlier adapters while training | penalty    | state after task t        | source |
| -------- | ------------------------------- | ---------- | ------------------------- | ------ |
| olora    | active, frozen                  | orthogonal | sum of 1..t               | O-LoRA, arXiv 2310.14152 |
| inclora  | active, frozen                  | none       | sum of 1..t               | its ablation |
| nlora    | active, frozen                  | l1         | sum of 1..t               | N-LoRA, arXiv 2410.10179 |
| isolated | off                             | none       | each task's own adapter   | the bound of every router |
| seqlora  | the last one continues training | none       | the snapshot after task t | sequential fine-tuning |
"""

from __future__ import annotations

from lorabank.training.strategies.base import Strategy

OLORA = Strategy(
    "olora",
    "active",
    "orthogonal",
    about="A new adapter beside all earlier ones, held orthogonal to their input directions.",
    paper="O-LoRA, arXiv 2310.14152",
)
INCLORA = Strategy(
    "inclora",
    "active",
    about="A new adapter beside all earlier ones, without a penalty.",
    paper="the ablation in O-LoRA, arXiv 2310.14152",
)
NLORA = Strategy(
    "nlora",
    "active",
    "l1",
    about="A new adapter beside all earlier ones, whose delta weight is held sparse.",
    paper="N-LoRA, arXiv 2410.10179",
)
ISOLATED = Strategy(
    "isolated", "off", about="Every task learns an adapter of its own, and only that adapter answers for it."
)
SEQLORA = Strategy(
    "seqlora", "continued", about="A single adapter is trained on every task in turn: sequential fine-tuning."
)
