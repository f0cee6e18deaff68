"""Tiny models with random weights whose rows stand in odd places, or are reached by padding, beside usual ones."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
import transformers as tf

PAD, END, VOCABULARY = 1, 2, 64
TOKENIZER: Any = SimpleNamespace(pad_token_id=PAD, eos_token_id=END)

_IDS = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": END}
_WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_ENCODER = _IDS | _WIDE | {"max_position_embeddings": 66, "initializer_range": 0.3}
_GROUPED = _ENCODER | {"num_key_value_heads": 2}
_T5 = _IDS | {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": PAD}
_BART = _IDS | {"d_model": 32, "max_position_embeddings": 66, "decoder_start_token_id": END, "init_std": 0.3}
_BART |= {"encoder_layers": 2, "encoder_attention_heads": 4, "encoder_ffn_dim": 48}
_BART |= {"decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48}
_DECODER = _BART | {"is_decoder": True, "is_encoder_decoder": False}
_TABLE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16, "share_att_key": True}
_TABLE |= {"position_biased_input": False, "norm_rel_ebd": "layer_norm", "max_relative_positions": -1}
_MOBILE = {"embedding_size": 32, "intra_bottleneck_size": 16, "true_hidden_size": 16, "num_feedforward_networks": 1}
_GRIFFIN = {"num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 8, "num_key_value_heads": 1}
_LED = {"attention_window": [4, 4], "max_encoder_position_embeddings": 66, "max_decoder_position_embeddings": 66}
_SWITCH = {
    "num_decoder_layers": 2,
    "num_experts": 4,
    "num_sparse_encoder_layers": 1,
    "num_sparse_decoder_layers": 1,
    "expert_capacity": 64,
}
_XLNET = _IDS | {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "initializer_range": 0.3}

CLASSIFIERS: dict[str, tuple[str, dict[str, Any]]] = {
    "Bert": ("BertConfig", _ENCODER),
    "Roberta": ("RobertaConfig", _ENCODER),
    "DebertaV2": ("DebertaV2Config", _ENCODER | _TABLE),
    "Longformer": ("LongformerConfig", _ENCODER | {"attention_window": [4, 4]}),
    "XLNet": ("XLNetConfig", _XLNET),
    "ConvBert": ("ConvBertConfig", _ENCODER | {"embedding_size": 32}),
    "FNet": ("FNetConfig", _ENCODER),
    "MobileBert": ("MobileBertConfig", _ENCODER | _MOBILE),
    "Nystromformer": ("NystromformerConfig", _ENCODER | {"num_landmarks": 8, "segment_means_seq_len": 8}),
}
DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "LlamaForCausalLM": ("LlamaConfig", _GROUPED),
    "RobertaForCausalLM": ("RobertaConfig", _ENCODER | {"is_decoder": True}),
    "BartForCausalLM": ("BartConfig", _DECODER),
    "PegasusForCausalLM": ("PegasusConfig", _DECODER),
    "RecurrentGemmaForCausalLM": ("RecurrentGemmaConfig", _GROUPED | _GRIFFIN),
    "RwkvForCausalLM": ("RwkvConfig", _IDS | {"hidden_size": 32, "num_hidden_layers": 2, "context_length": 66}),
    "MambaForCausalLM": ("MambaConfig", _IDS | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}),
}
ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "T5ForConditionalGeneration": ("T5Config", _T5),
    "BartForConditionalGeneration": ("BartConfig", _BART),
    "LEDForConditionalGeneration": ("LEDConfig", _BART | _LED),
    "SwitchTransformersForConditionalGeneration": ("SwitchTransformersConfig", _T5 | _SWITCH),
}
USUAL = ("Bert", "Roberta", "LlamaForCausalLM", "T5ForConditionalGeneration", "BartForConditionalGeneration")


@cache
def tiny(name: str) -> Any:
    """One model of the tables, in eval mode; the tests share it and leave it as it is."""
    everything = CLASSIFIERS | DECODERS | ENCODER_DECODERS
    config, sizes = everything[name]
    kind = f"{name}ForSequenceClassification" if name in CLASSIFIERS else name
    torch.manual_seed(3)
    model = getattr(tf, kind)._from_config(getattr(tf, config)(**sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def words(*lengths: int, seed: int = 0) -> list[list[int]]:
    """Token ids that are no special tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, VOCABULARY, (length,), generator=generator).tolist() for length in lengths]
