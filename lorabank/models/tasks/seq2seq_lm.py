"""Encoder-decoder language models: the encoder reads the prompt, the decoder answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from lorabank.core.task_kinds import SEQ_2_SEQ_LM, TaskKind
from lorabank.models.tasks.causal_lm import check_labelled, inner, labelled, mean_cross_entropy
from lorabank.models.tasks.decoder_inputs import decoder_inputs, pad_targets
from lorabank.models.tasks.encoding import pad_batch
from lorabank.models.tasks.padding import mean_over_passes
from lorabank.models.tasks.prompting import encode_pairs
from lorabank.models.tasks.task_types import Examples


class Seq2SeqLM:
    """PEFT's ``SEQ_2_SEQ_LM``."""

    kind: ClassVar[TaskKind] = SEQ_2_SEQ_LM

    def encode(
        self,
        tokenizer: Any,
        texts: Sequence[str],
        targets: Sequence[str],
        *,
        labels: Sequence[str],
        template: str | None,
        max_length: int,
    ) -> Examples:
        """Token ids of the encoder's prompts and the decoder's targets; arguments and errors as in `encode_pairs`."""
        return encode_pairs(
            tokenizer, texts, targets, labels=labels, template=template, max_length=max_length, glued=False
        )

    def collate(self, tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch, padded on the right.

        Returns:
            ``input_ids`` and ``attention_mask`` int64 ``[n, longest prompt]``; ``labels`` int64
            ``[n, longest completion]``, -100 behind shorter ones.

        Raises:
            ValueError: No token of the batch is labelled: a mean over none would not be a number.
        """
        inputs = pad_batch(tokenizer, [row["prompt"] for row in rows])
        return {**inputs, "labels": check_labelled(pad_targets([row["completion"] for row in rows]))}

    def loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        """Mean cross entropy of the answers' tokens; the model's own shift makes the decoder's input from them.

        Args:
            model: An encoder-decoder language model.
            inputs: What `collate` gives, on the model's device.

        Returns:
            A float32 scalar with its graph.
        """
        return mean_over_passes(self._loss, model, inputs)

    def predictions(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits ``[tokens, vocabulary]`` and token of every place of the rows' answers."""
        return labelled(*self._logits(model, inputs))

    def _loss(self, model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
        return mean_cross_entropy(*self._logits(model, inputs))

    def _logits(self, model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Of rows that may share a pass: logits ``[n, s, vocabulary]`` and labels ``[n, s]``."""
        labels = inputs["labels"]
        decoder = decoder_inputs(inner(model), labels)
        output = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            decoder_input_ids=decoder,
            use_cache=False,
        )
        return output.logits, labels
