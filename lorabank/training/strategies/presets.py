"""Strategies that are settings alone.

| strategy | earlier adapters while training | penalty    | state after task t        | source |
| -------- | ------------------------------- | ---------- | ------------------------- | ------ |
| olora    | active, frozen                  | orthogonal | sum of 1..t               | O-LoRA, arXiv 2310.14152 |
| inclora  | active, frozen                  | none       | sum of 1..t               | its ablation |
| nlora    | active, frozen                  | l1         | sum of 1..t               | N-LoRA, arXiv 2410.10179 |
| isolated | off                             | none       | each task's own adapter   | the bound of every router |
| seqlora  | the last one goes on training   | none       | the snapshot after task t | sequential fine-tuning |
"""

from __future__ import annotations

from lorabank.training.strategies.base import Strategy

OLORA = Strategy("olora", "active", "orthogonal")
INCLORA = Strategy("inclora", "active")
NLORA = Strategy("nlora", "active", "l1")
ISOLATED = Strategy("isolated", "off")
SEQLORA = Strategy("seqlora", "continued")
