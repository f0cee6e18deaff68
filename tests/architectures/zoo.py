"""Tiny models with random weights of every class that transformers can load for a task type.

A config is made small by its fields' names (`SIZES`), its lists of one value a layer are cut to the first layer of
each kind, and what a class needs beside that stands in `ALSO`.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto import modeling_auto as auto

MAPPINGS: Mapping[str, Any] = {
    "SEQ_CLS": auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    "CAUSAL_LM": auto.MODEL_FOR_CAUSAL_LM_MAPPING,
    "SEQ_2_SEQ_LM": auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING,
}
"""Task type to transformers' classes for it, by config class."""

AUTO: Mapping[str, Any] = {
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "CAUSAL_LM": transformers.AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": transformers.AutoModelForSeq2SeqLM,
}


@dataclass(frozen=True, order=True)
class Pair:
    """A class of transformers, the task type that it is loaded for, and one of the forms in `FORMS`."""

    task_type: str
    config: str
    form: str = ""

    def __str__(self) -> str:
        return "-".join(word for word in (self.task_type, self.config.removesuffix("Config"), self.form) if word)

    @property
    def config_class(self) -> type[PreTrainedConfig]:
        """The class of its config."""
        return getattr(transformers, self.config)

    @property
    def model_class(self) -> type[PreTrainedModel]:
        """The class that transformers loads."""
        return MAPPINGS[self.task_type][self.config_class]


def pairs() -> list[Pair]:
    """All that the mappings hold, in order."""
    found = {
        Pair(task_type, config.__name__, form)
        for task_type, mapping in MAPPINGS.items()
        for config in mapping
        for form in ("", *FORMS.get(config.__name__, ()))
    }
    return sorted(pair for pair in found if hasattr(transformers, pair.config))


SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"]
_TEXT = """
good bad film plot actor fine awful great dull money prize click free win cash meet lunch report mail team the a is was
and of to very not it Answer Option : , positive negative spam ham 0 1 2 3
"""
WORDS = list(dict.fromkeys([*SPECIAL, *_TEXT.split(), "Ġ", *"AO:,", *map(chr, range(ord("a"), ord("z") + 1))]))
"""And letters, for classes whose tokenizer transformers replaces by one of its own (Qwen 3.5)."""
VOCABULARY = 96
"""Ids of a tiny model; those above the words are never written, and stand for images and sounds."""

FRAMES = {"SEQ_CLS": "<s> $A </s>", "CAUSAL_LM": "<s> $A", "SEQ_2_SEQ_LM": "$A </s>"}
"""What the tokenizer puts around a text."""

SIZES: dict[str, Any] = {
    name: value
    for value, names in {
        1: "n_group topk_group num_expert_group n_shared_experts num_shared_experts first_k_dense_replace",
        2: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_decoder_layers "
        "num_encoder_layers num_key_value_heads num_kv_heads num_experts_per_tok top_k depth index_n_heads o_groups "
        "linear_num_key_heads swa_num_key_value_heads num_codebooks index_topk_blocks num_blocks n_groups "
        "num_self_attends_per_block mamba_n_groups zero_expert_num",
        4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_experts "
        "num_local_experts n_routed_experts linear_num_value_heads linear_num_heads swa_num_attention_heads "
        "mamba_d_state state_size ssm_state_size time_step_rank num_self_attention_heads num_cross_attention_heads "
        "index_block_size patch_size rotary_dim spatial_merge_size",
        8: "head_dim d_kv d_head qk_nope_head_dim qk_rope_head_dim v_head_dim index_head_dim linear_key_head_dim "
        "linear_value_head_dim linear_head_dim dim_head global_head_dim swa_head_dim mamba_d_head mamba_head_dim "
        "mamba_n_heads mamba_num_heads laurel_rank hidden_size_per_layer_input xpath_unit_hidden_size image_size "
        "mamba_chunk_size chunk_size sliding_window attention_window_size rel_extent attention_chunk_size",
        16: "q_lora_rank kv_lora_rank o_lora_rank num_latents d_latents entity_emb_size pronunciation_embed_dim "
        "shape_embed_dim output_channels conv_dim nemo_conv_channels ext_pw_out_channel "
        "depthwise_separable_out_channel downsample_hidden_size codebook_size hc_lowrank codebook_dim",
        24: "moe_intermediate_size shared_expert_intermediate_size expert_ffn_hidden_size shared_intermediate_size "
        "moe_shared_expert_intermediate_size",
        32: "hidden_size d_model n_embd dim emb_dim embedding_size lru_width attention_hidden_size out_hidden_size "
        "hidden_size_global output_dim",
        48: "intermediate_size n_inner d_inner hidden_dim encoder_ffn_dim decoder_ffn_dim ffn_dim d_ff dim_ff dff "
        "ffn_hidden_size dense_intermediate_size mlp_dim",
        64: "index_topk",
        160: "max_position_embeddings n_positions n_ctx max_seq_len max_sequence_length context_length "
        "max_2d_position_embeddings num_hash_buckets max_encoder_position_embeddings "
        "max_decoder_position_embeddings num_position_embeddings max_source_positions max_target_positions",
        0.3: "initializer_range init_std",
        VOCABULARY: "vocab_size src_vocab_size tgt_vocab_size vocab_size_per_layer_input shape_vocab_size "
        "pronunciation_vocab_size entity_vocab_size t2u_vocab_size unit_hifi_gan_vocab_size",
    }.items()
    for name in names.split()
}
"""Field of any config class to its value; classes take those that they have."""

TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

ALSO: dict[str, dict[str, Any]] = {
    "BambaConfig": {"attn_layer_indices": [1], "mamba_n_heads": 8},
    "BltConfig": {"encoder_hash_byte_group_vocab": 64, "encoder_hash_byte_group_size": [3]},
    "CohereCompassTextConfig": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "CohereConfig": {"logit_scale": 1.0},
    "DbrxConfig": {"attn_config": {"rope_theta": 1e4, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "Dots3NoteTextConfig": {
        "swa_num_attention_heads": 4, "swa_num_key_value_heads": 4, "swa_q_lora_rank": 16, "swa_kv_lora_rank": 16,
        "swa_head_dim": 16, "swa_qk_nope_head_dim": 8, "swa_v_head_dim": 8,
    },
    "SwitchTransformersConfig": {"num_sparse_encoder_layers": 1, "num_sparse_decoder_layers": 1},
    "FunnelConfig": {"block_sizes": [1, 1], "num_decoder_layers": 1},
    "GraniteMoeHybridConfig": {"layer_types": ["linear_attention", "full_attention"]},
    "JambaConfig": {
        "use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1, "mamba_dt_rank": 4,
    },
    "EncoderDecoderConfig": {"decoder": {"is_decoder": True, "add_cross_attention": True}},
    "EsmcConfig": {"num_key_value_heads": 4},
    "GPTNeoConfig": {"attention_types": [[["global", "local"], 1]]},
    "Lfm2MoeConfig": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "LayoutLMv3Config": {"coordinate_size": 6, "shape_size": 4},
    "LiltConfig": {"hidden_size": 48},
    "LEDConfig": {"attention_window": [4, 4]},
    "LongformerConfig": {"attention_window": [4, 4], "max_position_embeddings": 162},
    "Mamba2Config": {"num_heads": 8},
    "MobileBertConfig": {"intra_bottleneck_size": 32, "true_hidden_size": 32, "initializer_range": 0.1},
    "MoshiConfig": {"sliding_window": 160},
    "RecurrentGemmaConfig": {"num_hidden_layers": 3},
    "ReformerConfig": {
        "axial_pos_shape": [16, 10], "axial_pos_embds_dim": [8, 24], "attn_layers": ["local", "lsh"], "num_buckets": 4,
        "attention_head_size": 8, "local_attn_chunk_length": 16, "lsh_attn_chunk_length": 16, "feed_forward_size": 48,
        "hash_seed": 0, "is_decoder": True,
    },
    "DeepseekV4Config": {"num_key_value_heads": 1},
    "FalconH1Config": {"mamba_d_ssm": 64},
    "Gemma3nTextConfig": {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2, "intermediate_size": 48,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "activation_sparsity_pattern": [0.9, 0.0, 0.0, 0.0],
    },
    "Qwen4ExpTextConfig": {
        "indexer_n_heads": 2, "indexer_kv_heads": 1, "indexer_head_dim": 8, "indexer_budget": 16,
        "indexer_compress_ratio": 4,
    },
    "XmodConfig": {"default_language": "en_XX"},
    "ZambaConfig": {
        "num_hidden_layers": 4, "layers_block_type": ["linear_attention", "hybrid"] * 2, "attention_hidden_size": 64,
        "attention_head_dim": 16, "use_mamba_kernels": False, "mamba_dt_rank": 4,
    },
    "ZayaConfig": {"num_experts_per_tok": 1},
}  # fmt: skip
"""Name of a config class to what it needs beside `SIZES`; nested for the configs inside it."""


FORMS: dict[str, dict[str, dict[str, Any]]] = {
    "DebertaConfig": {"relative": {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}},
    "DebertaV2Config": {
        "v3": {
            "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 16, "share_att_key": True,
            "norm_rel_ebd": "layer_norm", "position_biased_input": False, "max_position_embeddings": 128,
            "max_relative_positions": -1,
        },
    },
    "FalconConfig": {"40b": {"new_decoder_architecture": True, "num_kv_heads": 2}, "alibi": {"alibi": True}},
    "LlamaConfig": {"tied": {"tie_word_embeddings": True}},
    "OPTConfig": {"350m": {"word_embed_proj_dim": 16, "do_layer_norm_before": False}},
    "OlmoConfig": {"clipped": {"clip_qkv": 0.5}},
    "OlmoeConfig": {"clipped": {"clip_qkv": 0.5}},
    "Qwen3MoeConfig": {"dense": {"mlp_only_layers": [0]}},
    "T5Config": {"gated": {"feed_forward_proj": "gated-gelu"}},
}  # fmt: skip
"""Config class to what checkpoints of it are known to differ in, where that leads to other code."""


def tiny_config(pair: Pair) -> PreTrainedConfig:
    """A small config that the pair's model class can be built from: of a decoder alone for a causal model."""
    kind = pair.config_class
    fields = _tiny_fields(kind)
    if pair.task_type == "CAUSAL_LM" and not kind.sub_configs:
        decoder = {"is_decoder": True, "is_encoder_decoder": False}
        fields |= {name: value for name, value in decoder.items() if name in _known(kind)}
    elif fields.get("is_encoder_decoder", getattr(kind, "is_encoder_decoder", False)):
        fields.setdefault("decoder_start_token_id", 2)
    return kind(**fields | FORMS.get(pair.config, {}).get(pair.form, {}))


def _known(kind: type[PreTrainedConfig]) -> set[str]:
    return {name for c in kind.__mro__ for name in inspect.get_annotations(c)}


def _tiny_fields(kind: type[PreTrainedConfig]) -> dict[str, Any]:
    also = ALSO.get(kind.__name__, {})
    usual = kind(**{name: value for name, value in also.items() if name in kind.sub_configs})
    known = _known(kind)
    renamed = kind.attribute_map
    fields = {}
    for name, value in SIZES.items():
        own = renamed.get(name, name)
        if own in known or name in known:
            fields[own if own in known else name] = value
    if "kv_lora_rank" in known:  # latent attention has no groups of heads
        fields["num_key_value_heads"] = fields["num_attention_heads"]
    fields |= {name: value for name, value in TOKENS.items() if name in known or not kind.sub_configs}
    for name, value in vars(usual).items():
        if isinstance(value, int) and name.endswith(("token_id", "token_index")) and name not in fields:
            fields[name] = min(value, VOCABULARY - 1)
    fields |= {name: 0.0 for name, value in vars(usual).items() if "drop" in name and isinstance(value, float)}
    depth = next((name for name in ("num_hidden_layers", "num_layers", "n_layer", "n_layers") if name in fields), None)
    if depth:
        layers = {
            name: value
            for name, value in vars(usual).items()
            if isinstance(value, list | tuple) and len(value) == getattr(usual, depth) and name in known
        }
        if layers:
            picked = list(islice(_kinds(list(zip(*layers.values(), strict=True))), 4))
            fields |= {name: [value[i] for i in picked] for name, value in layers.items()}
            fields[depth] = len(picked)
    for name in kind.sub_configs:
        inner = getattr(usual, name, None)
        if isinstance(inner, PreTrainedConfig):
            fields[name] = _tiny_fields(type(inner)) | {"model_type": inner.model_type}
    return _merged(fields, also)


def _kinds(layers: list[Any]) -> Iterator[int]:
    """The first layer of each kind, and another of the first where all are alike."""
    first = [i for i, layer in enumerate(layers) if layer not in layers[:i]]
    yield from first if len(first) > 1 else range(min(2, len(layers)))


def _merged(fields: dict[str, Any], also: Mapping[str, Any]) -> dict[str, Any]:
    """The fields with others laid over them, those of configs inside too."""
    for name, value in also.items():
        inner = fields.get(name)
        both = isinstance(value, dict) and isinstance(inner, dict)
        fields[name] = _merged(dict(inner or {}), value) if both else copy.deepcopy(value)
    return fields


def tiny_tokenizer(task_type: str) -> PreTrainedTokenizerFast:
    """One token a word of `WORDS`, with the special tokens that the task type is used with."""
    vocabulary = {word: i for i, word in enumerate(WORDS)}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()])
    special = [(word, vocabulary[word]) for word in ("<s>", "</s>")]
    inner.post_processor = processors.TemplateProcessing(single=FRAMES[task_type], special_tokens=special)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        model_max_length=128,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        cls_token="<s>",
        sep_token="</s>",
    )


def build(pair: Pair, config: PreTrainedConfig, folder: Path) -> Path:
    """Write a tiny model with its tokenizer."""
    torch.manual_seed(0)
    model = AUTO[pair.task_type].from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # wide weights: with the usual ones all texts would have nearly the same logits
                parameter.add_(torch.randn_like(parameter) * 0.05)
    model.save_pretrained(folder)
    tiny_tokenizer(pair.task_type).save_pretrained(folder)
    return folder
