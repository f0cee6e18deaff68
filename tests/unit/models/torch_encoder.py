"""A classifier whose attention is torch's nn.MultiheadAttention, written as transformers' models are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput


class TorchConfig(PreTrainedConfig):
    model_type = "torch-encoder"

    vocab_size: int = 40
    hidden_size: int = 32
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 48
    max_position_embeddings: int = 66
    pad_token_id: int | None = 1
    fused: bool = False


class Block(nn.Module):
    """A layer that calls torch's attention."""

    def __init__(self, config: TorchConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.self_attn = nn.MultiheadAttention(d, config.num_attention_heads, batch_first=True)
        self.linear1, self.linear2 = nn.Linear(d, config.intermediate_size), nn.Linear(config.intermediate_size, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, x: Tensor, padding: Tensor | None) -> Tensor:
        x = self.norm1(x + self.self_attn(x, x, x, key_padding_mask=padding, need_weights=False)[0])
        return self.norm2(x + self.linear2(self.linear1(x).relu()))


class Blocks(nn.Module):
    """Layers one after the other."""

    def __init__(self, config: TorchConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))

    def forward(self, x: Tensor, src_key_padding_mask: Tensor | None = None) -> Tensor:
        for layer in self.layers:
            x = layer(x, src_key_padding_mask)
        return x


class TorchPreTrained(PreTrainedModel):
    config_class = TorchConfig
    base_model_prefix = "body"

    def _init_weights(self, module: nn.Module) -> None:
        """A head that no file holds: without this, its memory would keep whatever lay there before."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
            nn.init.zeros_(module.bias)


class TorchModel(TorchPreTrained):
    def __init__(self, config: TorchConfig) -> None:
        super().__init__(config)
        d, heads, wide = config.hidden_size, config.num_attention_heads, config.intermediate_size
        self.embeddings = nn.Embedding(config.vocab_size, d)
        if config.fused:
            layer = nn.TransformerEncoderLayer(d, heads, wide, dropout=0.0, batch_first=True)
            self.encoder: nn.Module = nn.TransformerEncoder(layer, config.num_hidden_layers)
        else:
            self.encoder = Blocks(config)
        self.post_init()

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embeddings

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: Any) -> BaseModelOutput:
        padding = None if attention_mask is None else attention_mask == 0
        hidden = self.encoder(self.embeddings(input_ids), src_key_padding_mask=padding)
        return BaseModelOutput(last_hidden_state=hidden)


class TorchForSequenceClassification(TorchPreTrained):
    def __init__(self, config: TorchConfig) -> None:
        super().__init__(config)
        self.body = TorchModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, labels: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        hidden = self.body(input_ids, attention_mask).last_hidden_state
        logits = self.classifier(hidden[:, 0])
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def wide(model: nn.Module) -> None:
    """Larger weights: with the usual ones all texts would have nearly the same features and logits."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)


def register() -> None:
    """Make transformers know the three classes; a second call changes nothing."""
    AutoConfig.register(TorchConfig.model_type, TorchConfig, exist_ok=True)
    AutoModel.register(TorchConfig, TorchModel, exist_ok=True)
    AutoModelForSequenceClassification.register(TorchConfig, TorchForSequenceClassification, exist_ok=True)


def make(**config: Any) -> TorchForSequenceClassification:
    """A classifier with random weights."""
    register()
    torch.manual_seed(0)
    model = TorchForSequenceClassification(TorchConfig(**config)).eval()
    wide(model)
    return model


def save(folder: Path, tokenizer: Any) -> Path:
    """A base without a head, and its tokenizer."""
    register()
    torch.manual_seed(7)
    model = TorchModel(TorchConfig())
    wide(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
