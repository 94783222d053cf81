"""The module structure of known families, against what their source code says (literal), and refusals with reasons."""

import pytest
import transformers as hf
from support.models import tiny_decoder

from decision_traces.errors import UnsupportedArchitecture
from decision_traces.model.discovery.probe import find_structure
from decision_traces.model.structure import IDENTITY

# family: (what post_attn is, module that reads it or None, module of the attention write or None, final norm)
LAST = {
    "gpt2": ("stream", "transformer.h.2.ln_2", "transformer.h.2.attn", "transformer.ln_f"),
    "llama": ("stream", "model.layers.2.post_attention_layernorm", "model.layers.2.self_attn", "model.norm"),
    "qwen2": ("stream", "model.layers.2.post_attention_layernorm", "model.layers.2.self_attn", "model.norm"),
    "qwen3": ("stream", "model.layers.2.post_attention_layernorm", "model.layers.2.self_attn", "model.norm"),
    "mistral": ("stream", "model.layers.2.post_attention_layernorm", "model.layers.2.self_attn", "model.norm"),
    "gemma": ("stream", "model.layers.2.post_attention_layernorm", "model.layers.2.self_attn", "model.norm"),
    "gemma2": (
        "stream",
        "model.layers.2.pre_feedforward_layernorm",
        "model.layers.2.post_attention_layernorm",
        "model.norm",
    ),
    "gemma3": (
        "stream",
        "model.layers.2.pre_feedforward_layernorm",
        "model.layers.2.post_attention_layernorm",
        "model.norm",
    ),
    "opt": (
        "stream",
        "model.decoder.layers.2.final_layer_norm",
        "model.decoder.layers.2.self_attn",
        "model.decoder.final_layer_norm",
    ),
    "opt_post_norm": ("post_norm", "model.decoder.layers.2.fc1", "model.decoder.layers.2.self_attn", IDENTITY),
    "gpt_neox": ("derived", None, "gpt_neox.layers.2.attention", "gpt_neox.final_layer_norm"),
    "gpt_neox_sequential": (
        "stream",
        "gpt_neox.layers.2.post_attention_layernorm",
        "gpt_neox.layers.2.attention",
        "gpt_neox.final_layer_norm",
    ),
    "phi": ("derived", None, "model.layers.2.self_attn", "model.final_layernorm"),
    "cohere": ("derived", None, "model.layers.2.self_attn", "model.norm"),
    "olmo2": ("stream", "model.layers.2.mlp", "model.layers.2.post_attention_layernorm", "model.norm"),
    "granite": ("stream", "model.layers.2.post_attention_layernorm", "model.layers.2.self_attn", "model.norm"),
}
ONE_KV_HEAD_PER_HEAD = {"gpt2", "opt", "opt_post_norm", "gpt_neox", "gpt_neox_sequential", "phi"}


@pytest.mark.parametrize("family", LAST)
def test_finds_the_path_that_the_source_shows(family: str) -> None:
    structure = find_structure(tiny_decoder(family), 258)
    kind, reader, write, norm = LAST[family]
    last = structure.layers[2]
    assert structure.main.post_attn_kind == kind
    assert (last.post_attn and last.post_attn.module) == reader
    assert last.attn_out is not None and last.attn_out.module == write
    assert last.attn_out.factor == (0.5 if family == "granite" else 1.0)
    assert structure.final_norm == norm
    attention = structure.calls[2]
    assert (structure.n_layers, attention.n_heads, attention.d_head, structure.d_model) == (3, 4, 8, 32)
    assert attention.n_kv_heads == (4 if family in ONE_KV_HEAD_PER_HEAD else 2)


def test_attention_scale_is_the_models_own() -> None:
    assert [c.scale for c in find_structure(tiny_decoder("llama"), 258).calls] == pytest.approx([8**-0.5] * 3)
    # OPT scales its queries itself, so its attention function gets a factor of one.
    assert [c.scale for c in find_structure(tiny_decoder("opt"), 258).calls] == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (
            hf.OPTConfig(
                hidden_size=32,
                num_hidden_layers=2,
                num_attention_heads=4,
                ffn_dim=48,
                vocab_size=99,
                word_embed_proj_dim=16,
            ),
            "as wide as the residual stream",
        ),
    ],
    ids=["opt-350m-like"],
)
def test_refuses_by_name_with_the_reason(config: hf.PretrainedConfig, reason: str) -> None:
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    with pytest.raises(UnsupportedArchitecture, match=rf"^{type(model).__name__} is not understood: .*{reason}"):
        find_structure(model, 99)
