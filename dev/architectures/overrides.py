"""How each config field is made small: sizes by name, and by model type where the name cannot tell."""

from collections.abc import Mapping
from typing import Any, Final

HIDDEN: Final = 64
HEADS: Final = 4
HEAD: Final = 16
KEY_VALUE_HEADS: Final = 2
FEED_FORWARD: Final = 96
EXPERT: Final = 48
LAYERS: Final = 4
EXPERTS: Final = 4
VOCABULARY: Final = 128
CONTEXT: Final = 160
WINDOW: Final = 4


def _each(value: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), value)


SIZES: Final[Mapping[str, int]] = {
    **_each(HIDDEN, "hidden_size d_model n_embd dim emb_dim embedding_size embedding_dim word_embed_proj_dim"),
    **_each(HIDDEN, "input_embedding_size output_embedding_size pooler_hidden_size linear_attention_hidden_size"),
    **_each(HIDDEN, "hidden_size_global out_hidden_size projector_input_dim projector_output_dim lru_width"),
    **_each(
        HIDDEN, "encoder_hidden_size cross_attention_hidden_size d_latents prediction_head_size backbone_hidden_size"
    ),
    **_each(
        HIDDEN,
        "audio_hidden_size adapter_input_size adapter_in_dim adapter_out_dim ext_pw_out_channel nemo_conv_channels",
    ),
    **_each(HIDDEN, "depthwise_separable_out_channel output_channels"),
    **_each(16, "downsample_hidden_size"),
    **_each(LAYERS, "num_hidden_layers encoder_layers decoder_layers num_layers n_layer n_layers num_decoder_layers"),
    **_each(LAYERS, "num_encoder_layers num_self_attends_per_block"),
    **_each(2, "num_sparse_encoder_layers num_sparse_decoder_layers"),
    **_each(2, "depth num_global_layers conf_num_hidden_layers speech_encoder_layers t2u_encoder_layers"),
    **_each(2, "t2u_decoder_layers num_blocks"),
    **_each(HEADS, "num_attention_heads encoder_attention_heads decoder_attention_heads num_heads n_head n_heads"),
    **_each(HEADS, "num_encoder_attention_heads num_decoder_attention_heads attention_heads conf_num_attention_heads"),
    **_each(HEADS, "linear_num_value_heads linear_num_heads num_self_attention_heads num_cross_attention_heads"),
    **_each(HEADS, "speech_encoder_attention_heads t2u_encoder_attention_heads t2u_decoder_attention_heads"),
    **_each(HEADS, "index_n_heads swa_num_attention_heads"),
    **_each(KEY_VALUE_HEADS, "num_key_value_heads num_kv_heads kv_n_heads linear_num_key_heads"),
    **_each(KEY_VALUE_HEADS, "swa_num_key_value_heads num_global_key_value_heads num_query_groups"),
    **_each(HEAD, "head_dim d_kv dim_head d_head kv_channels linear_key_head_dim linear_value_head_dim v_head_dim"),
    **_each(HEAD, "linear_head_dim attention_head_size global_head_dim swa_head_dim index_head_dim swa_v_head_dim"),
    **_each(8, "qk_rope_head_dim qk_nope_head_dim rotary_dim"),
    **_each(HEAD, "qk_head_dim query_pre_attn_scalar"),
    **_each(24, "q_lora_rank kv_lora_rank o_lora_rank"),
    **_each(FEED_FORWARD, "intermediate_size encoder_ffn_dim decoder_ffn_dim d_ff ffn_dim d_inner ffn_hidden_size dff"),
    **_each(FEED_FORWARD, "dim_ff feed_forward_size dense_intermediate_size intermediate_size_mlp mlp_dim"),
    **_each(FEED_FORWARD, "speech_encoder_intermediate_size t2u_encoder_ffn_dim t2u_decoder_ffn_dim"),
    **_each(EXPERT, "moe_intermediate_size shared_expert_intermediate_size shared_experts_intermediate_size"),
    **_each(EXPERT, "shared_intermediate_size expert_ffn_hidden_size moe_shared_expert_intermediate_size"),
    **_each(EXPERTS, "num_experts n_routed_experts num_local_experts moe_num_experts"),
    **_each(2, "num_experts_per_tok num_experts_per_token moe_topk moe_top_k moe_k zero_expert_num"),
    **_each(1, "first_k_dense_replace num_dense_layers n_group topk_group num_expert_group moe_layer_start_index"),
    **_each(VOCABULARY, "vocab_size src_vocab_size tgt_vocab_size decoder_vocab_size vocab_size_per_layer_input"),
    **_each(VOCABULARY, "t2u_vocab_size unit_hifi_gan_vocab_size char_vocab_size entity_vocab_size audio_vocab_size"),
    **_each(VOCABULARY, "encoder_hash_byte_group_vocab pronunciation_vocab_size shape_vocab_size num_hash_buckets"),
    **_each(VOCABULARY, "unpadded_vocab_size vocab_offset ngram_vocab_size_base"),
    **_each(CONTEXT, "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions context_length"),
    **_each(CONTEXT, "max_encoder_position_embeddings max_decoder_position_embeddings model_max_length"),
    **_each(CONTEXT, "max_source_positions t2u_max_position_embeddings original_max_position_embeddings"),
    **_each(WINDOW, "sliding_window sliding_window_size attention_window_size window_size attention_chunk_size"),
    **_each(WINDOW, "index_topk keep_window_size local_radius global_block_size"),
    **_each(2 * WINDOW, "local_attention local_attention_window_len"),
    **_each(16, "num_latents"),
    **_each(8, "state_size mamba_d_state ssm_state_size time_step_rank mamba_dt_rank laurel_rank"),
    **_each(8, "hidden_size_per_layer_input num_conv_pos_embeddings"),
    **_each(2, "n_groups mamba_n_groups mamba_ngroups"),
    **_each(WINDOW, "mamba_chunk_size"),
}

LAYER_COUNTS: Final = ("num_hidden_layers", "num_layers", "n_layer")
SIZED_WHERE_NONE: Final = ("head_dim", "num_key_value_heads")
INDEX_LISTS: Final = ("mlp_only_layers", "hybrid_layer_ids", "cross_attention_layers", "moe_layers", "full_attn_idxs")

_DRAFTER: Final = "it only drafts for a larger model: it takes that model's states, keys and values, and no input ids"
_GRANITE_SPEECH_ENCODER: Final = {"hidden_dim": HIDDEN, "context_size": 16, "max_pos_emb": 32}

_SLIDING, _FULL, _CONV = "sliding_attention", "full_attention", "conv"
_TWO_INNER_SIZES: Final = {"embedding_size": 48}

BY_MODEL_TYPE: Final[Mapping[str, Mapping[str, Any]]] = {
    "albert": _TWO_INNER_SIZES,
    "bamba": {"attn_layer_indices": [1, 3]},
    "cohere_compass_text": {
        "layer_types": [_SLIDING, _FULL, _SLIDING, _FULL],
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]},
            "full_attention": None,
        },
    },
    "convbert": _TWO_INNER_SIZES,
    "dbrx": {"attn_config": {"rope_theta": 1e4, "clip_qkv": 8.0}},
    "deepseek_v2": {"num_experts_per_tok": 2},
    "deepseek_v4": {"compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4}},
    "electra": _TWO_INNER_SIZES,
    "funnel": {"block_sizes": (2, 1, 1), "num_decoder_layers": 2},
    "glm_moe_dsa": {"indexer_types": ["full", "shared", "full", "shared"]},
    "granitemoehybrid": {"layer_types": ["linear_attention", _FULL, "linear_attention", _FULL]},
    "jamba": {"attn_layer_period": 4, "attn_layer_offset": 2},
    "laguna": {"layer_types": [_SLIDING, _FULL, _SLIDING, _FULL]},
    "lfm2": {"layer_types": [_CONV, _CONV, _FULL, _CONV, _FULL], "num_hidden_layers": 5},
    "llama4_text": {"moe_layers": [1, 3]},
    "mellum": {"layer_types": [_SLIDING, _FULL, _SLIDING, _FULL]},
    "minimax_m3_vl_text": {
        "layer_types": [_FULL, "minimax_m3_sparse", _FULL, "minimax_m3_sparse"],
        "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"],
        "index_block_size": 2,
        "index_topk_blocks": 2,
    },
    "ministral": {"layer_types": [_SLIDING, _FULL, _SLIDING, _FULL]},
    "mobilebert": {"embedding_size": 48, "true_hidden_size": 32, "intra_bottleneck_size": 32},
    "xlstm": {"num_blocks": LAYERS},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots3_note_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 24,
        "swa_kv_lora_rank": 24,
        "swa_head_dim": HEAD,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": HEAD,
    },
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 2},
    "esmc": {"num_key_value_heads": 4},
    "gemma4_text": {"global_head_dim": 32, "num_kv_shared_layers": 2},
    "gemma4_unified_text": {"global_head_dim": 32},
    "gemma3n_text": {"num_kv_shared_layers": 2, "intermediate_size": FEED_FORWARD},
    "gpt_neo": {"attention_types": [[["global", "local"], 2]], "intermediate_size": FEED_FORWARD},
    "led": {"max_encoder_position_embeddings": CONTEXT, "attention_window": WINDOW},
    "lfm2_moe": {"layer_types": [_CONV, _CONV, _FULL, _CONV, _FULL], "num_hidden_layers": 5},
    "longcat_flash": {"head_dim": 8},
    "longformer": {"attention_window": WINDOW},
    "mamba2": {"num_heads": 8},
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "neomme": {
        "per_layer_config": {1: {"sliding_window": None}, 2: {"sliding_window": 8}, 3: {"sliding_window": None}}
    },
    "granite_speech_encoder": _GRANITE_SPEECH_ENCODER,
    "granite_speech_plus_encoder": _GRANITE_SPEECH_ENCODER,
    "vibevoice_acoustic_tokenizer_encoder": {"depths": (1, 1, 1, 1, 1, 1, 1), "num_filters": 2},
    "qwen4_exp_text": {
        "ple_layer_ids": [1],
        "ple_embed_dim": 32,
        "heads_per_ngram": 4,
        "split_ngram_parts": 2,
        "ngram_vocab_size_base": VOCABULARY,
        "make_ngram_vocab_size_divisible_by": 8,
        "hc_lowrank": 16,
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD,
        "indexer_budget": WINDOW,
        "indexer_compress_ratio": 2,
        "eos_token_id": 1,
    },
    "reformer": {
        "axial_pos_shape": (16, 16),
        "axial_pos_embds_dim": (24, 40),
        "lsh_attn_chunk_length": 4,
        "local_attn_chunk_length": 4,
        "hash_seed": 0,  # else each forward pass hashes anew
    },
    "xmod": {"default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
}
"""Fields that a config of the type is built with; a mapping for a sub-config sets fields of that."""

BY_KIND: Final[Mapping[tuple[str, str], Mapping[str, Any]]] = {
    ("causal", "xlm"): {"causal": True},
}

GAIN: Final[Mapping[str, float]] = {"mobilebert": 0.4}  # it has no norms that would keep its activations small

NOT_BUILDABLE: Final[Mapping[str, str]] = {
    "gemma3n": "its image tower needs the optional package timm (gemma3n_text is its text model)",
    "gemma4_assistant": _DRAFTER,
    "gemma4_unified_assistant": _DRAFTER,
}
"""Classes that are not built, by model type, with the reason."""

NEEDS_MORE: Final[Mapping[str, str]] = {
    "voxtral_realtime": "it adds the sound's embeddings to the text's at every position, so it refuses ids alone",
}
"""Classes that build but do not run on text alone, by model type, with the reason."""
