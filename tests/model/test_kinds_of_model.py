"""The module structure of models that are no plain stack of like layers, against their source code (literal)."""

from typing import Any

import pytest
import torch
import transformers as hf

from decision_traces.errors import UnsupportedArchitecture
from decision_traces.format.arrays import ModelTask
from decision_traces.model.discovery.intercept import AttentionCall, watch_attention
from decision_traces.model.discovery.probe import find_structure
from decision_traces.model.structure import IDENTITY, HookPoint, ModuleStructure
from dev.architectures.tiny import Kind, build_tiny, model_classes, no_warnings

CLASSES = {(c.kind, c.model_type): c for c in model_classes()}
IDS = torch.tensor([[50, 60, 70, 80, 90, 100, 110]])


def _model(kind: Kind, model_type: str) -> Any:
    with no_warnings():
        return build_tiny(CLASSES[kind, model_type])


def _structure(kind: Kind, model_type: str, task: ModelTask | None = None) -> ModuleStructure:
    return find_structure(_model(kind, model_type), 128, task or kind)


def _modules(hook_points: list[HookPoint | None]) -> list[str | None]:
    return [None if point is None else point.module for point in hook_points]


# -- hybrids -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model_type", "having"), [("jamba", (2,)), ("bamba", (1, 3)), ("qwen3_next", (1, 3)), ("lfm2", (2, 4))]
)
def test_in_a_hybrid_some_layers_have_attention_and_all_have_the_stream(
    model_type: str, having: tuple[int, ...]
) -> None:
    stack = _structure("causal", model_type).main
    n = stack.n_layers
    for stage in ("q", "k", "v", "attn", "head_out", "attn_out", "post_attn", "mlp_out"):
        assert stack.layers_with(stage) == having
    assert stack.layers_with("post_mlp") == tuple(range(n))
    assert [plan.layer for plan in stack.attention(cross=False)] == list(having)
    assert _modules([layer.pre_attn for layer in stack.layers]) == [f"model.layers.{i}" for i in range(n)]
    assert _modules([layer.post_mlp for layer in stack.layers]) == [f"model.layers.{i}" for i in range(n)]


def test_the_attention_layer_of_jamba_has_its_places() -> None:
    layer = _structure("causal", "jamba").layers[2]
    assert layer.post_attn == HookPoint("model.layers.2.pre_ff_layernorm", "input", 0, 0)
    assert layer.attn_out == HookPoint("model.layers.2.self_attn", "output", 0, 0)
    assert layer.mlp_out == HookPoint("model.layers.2.feed_forward", "output", None, 0)
    assert layer.mlp_act == HookPoint("model.layers.2.feed_forward.down_proj", "input", 0, 0)


# -- encoder-decoders ----------------------------------------------------------------------------------------


def test_t5_has_two_stacks_and_the_decoder_crosses() -> None:
    structure = _structure("seq2seq", "t5")
    assert list(structure.stacks) == ["enc", "dec"]
    assert structure.main is structure.stacks["dec"]
    own = [("enc", i, False) for i in range(4)]
    both = [("dec", i, cross) for i in range(4) for cross in (False, True)]
    assert [(c.side, c.layer, c.cross) for c in structure.calls] == own + both
    assert [c.module for c in structure.calls] == [
        "encoder.block.0.layer.0.SelfAttention",
        "encoder.block.1.layer.0.SelfAttention",
        "encoder.block.2.layer.0.SelfAttention",
        "encoder.block.3.layer.0.SelfAttention",
        "decoder.block.0.layer.0.SelfAttention",
        "decoder.block.0.layer.1.EncDecAttention",
        "decoder.block.1.layer.0.SelfAttention",
        "decoder.block.1.layer.1.EncDecAttention",
        "decoder.block.2.layer.0.SelfAttention",
        "decoder.block.2.layer.1.EncDecAttention",
        "decoder.block.3.layer.0.SelfAttention",
        "decoder.block.3.layer.1.EncDecAttention",
    ]
    assert {c.scale for c in structure.calls} == {1.0}  # T5 has its scale in its weights
    assert [stack.final_norm for stack in structure.stacks.values()] == [
        "encoder.final_layer_norm",
        "decoder.final_layer_norm",
    ]


def test_a_decoder_layer_of_t5_has_three_writes() -> None:
    layer = _structure("seq2seq", "t5").stacks["dec"].layers[1]
    own = "decoder.block.1.layer"
    assert layer.attn_out == HookPoint(f"{own}.0.SelfAttention", "output", 0, 0)
    assert layer.post_attn == HookPoint(f"{own}.1", "input", 0, 0)
    assert layer.cross_out == HookPoint(f"{own}.1.EncDecAttention", "output", 0, 0)
    assert layer.post_cross == HookPoint(f"{own}.2", "input", 0, 0)
    assert layer.mlp_out == HookPoint(f"{own}.2.DenseReluDense", "output", None, 0)
    assert layer.mlp_act == HookPoint(f"{own}.2.DenseReluDense.wo", "input", 0, 0)
    assert (layer.post_attn_kind, layer.post_attn_norm, layer.post_cross_norm, layer.post_mlp_norm) == (
        "stream",
        None,
        None,
        None,
    )


def test_bart_is_post_norm_on_both_sides() -> None:
    structure = _structure("seq2seq", "bart")
    encoder, decoder = (structure.stacks[side].layers[3] for side in ("enc", "dec"))
    assert [structure.stacks[side].post_attn_kind for side in ("enc", "dec")] == ["post_norm", "post_norm"]
    assert [structure.stacks[side].final_norm for side in ("enc", "dec")] == [IDENTITY, IDENTITY]
    assert encoder.cross is None and encoder.post_cross is None and encoder.cross_out is None
    assert decoder.cross is not None and decoder.cross.module == "model.decoder.layers.3.encoder_attn"
    assert _modules([decoder.post_attn, decoder.cross_out, decoder.post_cross, decoder.mlp_act]) == [
        "model.decoder.layers.3.encoder_attn",
        "model.decoder.layers.3.encoder_attn",
        "model.decoder.layers.3.fc1",
        "model.decoder.layers.3.fc2",
    ]
    assert [decoder.post_attn_norm, decoder.post_cross_norm, decoder.post_mlp_norm] == [
        "model.decoder.layers.3.self_attn_layer_norm",
        "model.decoder.layers.3.encoder_attn_layer_norm",
        "model.decoder.layers.3.final_layer_norm",
    ]
    order = [(c.side, c.layer, c.cross) for c in structure.calls]
    assert order[:4] == [("enc", 0, False), ("enc", 1, False), ("enc", 2, False), ("enc", 3, False)]
    assert order[4:7] == [("dec", 0, False), ("dec", 0, True), ("dec", 1, False)]


def test_stacks_of_different_depth_are_told_apart() -> None:
    config = hf.T5Config(
        d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4, vocab_size=99, pad_token_id=0
    )
    structure = find_structure(hf.T5ForConditionalGeneration(config).eval(), 99, "seq2seq")
    assert {side: stack.n_layers for side, stack in structure.stacks.items()} == {"enc": 2, "dec": 3}
    assert len(structure.stacks["dec"].attention(cross=True)) == 3
    assert structure.stacks["enc"].attention(cross=True) == ()


# -- models without a module for a layer ---------------------------------------------------------------------


def test_the_layers_of_xlm_are_cut_from_its_stream() -> None:
    structure = _structure("multiple_choice", "xlm")
    assert list(structure.stacks) == ["enc"]
    layers = structure.layers
    assert _modules([layer.pre_attn for layer in layers]) == [f"transformer.attentions.{i}" for i in range(4)]
    assert _modules([layer.post_mlp for layer in layers[:3]]) == [f"transformer.attentions.{i}" for i in (1, 2, 3)]
    assert _modules([layer.post_attn for layer in layers]) == [f"transformer.ffns.{i}" for i in range(4)]
    assert _modules([layer.attn_out for layer in layers]) == [f"transformer.attentions.{i}" for i in range(4)]
    assert _modules([layer.mlp_act for layer in layers]) == [f"transformer.ffns.{i}.lin2" for i in range(4)]
    assert [layer.post_attn_norm for layer in layers] == [f"transformer.layer_norm1.{i}" for i in range(4)]
    assert [layer.post_mlp_norm for layer in layers] == [f"transformer.layer_norm2.{i}" for i in range(4)]
    assert structure.main.d_mlp == 256  # its feed-forward layer is four times as wide as its stream, always
    assert all(call.written_out and call.scale == 1.0 for call in structure.calls)  # it divides the queries themselves


def test_squeezebert_has_the_stream_behind_its_positions_and_a_module_for_each_product() -> None:
    structure = _structure("multiple_choice", "squeezebert")
    layers = structure.layers
    assert [layer.pre_attn.axes for layer in layers] == ["bpd", "bdp", "bdp", "bdp"]
    assert {layer.post_attn.axes for layer in layers if layer.post_attn} == {"bdp"}
    assert {layer.attn_out.axes for layer in layers if layer.attn_out} == {"bdp"}
    wrappers = [f"transformer.encoder.layers.{i}.attention.matmul_qkv" for i in range(4)]
    assert [call.module for call in structure.calls] == wrappers
    assert structure.written_out[:2] == ("transformer.encoder.layers.0.attention", wrappers[0])
    assert _modules([layer.post_attn for layer in layers]) == [
        f"transformer.encoder.layers.{i}.intermediate" for i in range(4)
    ]


def test_xlnet_has_positions_first_and_its_attention_in_einstein_sums() -> None:
    structure = _structure("multiple_choice", "xlnet")
    last = structure.layers[3]
    assert last.pre_attn == HookPoint("transformer.layer.3", "input", 0, 0, axes="pbd")
    assert last.post_mlp == HookPoint("transformer.layer.3", "output", 0, 0, axes="pbd")
    assert last.post_attn == HookPoint("transformer.layer.3.ff", "input", 0, 0, axes="pbd")
    assert last.mlp_act == HookPoint("transformer.layer.3.ff.layer_2", "input", 0, 0, axes="pbd")
    assert structure.main.final.axes == "bpd"
    assert [(c.module, c.written_out, c.scale) for c in structure.calls] == [
        (f"transformer.layer.{i}.rel_attn", True, 0.25) for i in range(4)
    ]
    assert {(c.n_heads, c.d_head) for c in structure.calls} == {(4, 16)}


def test_albert_calls_one_module_for_every_layer() -> None:
    structure = _structure("masked", "albert")
    group = "albert.encoder.albert_layer_groups.0"
    assert [layer.pre_attn for layer in structure.layers] == [HookPoint(group, "input", 0, call) for call in range(4)]
    assert [layer.post_mlp for layer in structure.layers] == [
        HookPoint(group, "output", None, call) for call in range(4)
    ]
    assert [(layer.post_attn and layer.post_attn.module, layer.post_attn and layer.post_attn.call)
            for layer in structure.layers] == [(f"{group}.albert_layers.0.ffn", call) for call in range(4)]  # fmt: skip
    assert [(c.module, c.layer) for c in structure.calls] == [
        (f"{group}.albert_layers.0.attention", layer) for layer in range(4)
    ]


# -- heads ---------------------------------------------------------------------------------------------------


def test_gemma_4_has_wider_heads_in_every_second_layer() -> None:
    structure = _structure("causal", "gemma4_text")
    assert [(c.d_head, c.d_value, c.n_heads, c.n_kv_heads) for c in structure.calls] == [
        (16, 16, 4, 2),
        (32, 32, 4, 2),
        (16, 16, 4, 2),
        (32, 32, 4, 2),
    ]


def test_gemma_4_takes_keys_and_values_of_earlier_layers_and_each_call_shows_them() -> None:
    """The last two of four layers share: the sliding one with layer 0, the full one with layer 1."""
    model, seen = _model("causal", "gemma4_text"), []
    with torch.no_grad(), watch_attention(lambda call: seen.append(call)):
        model(IDS, use_cache=False)
    assert len(seen) == 4
    for layer, source in ((2, 0), (3, 1)):
        assert torch.equal(seen[layer].key, seen[source].key)
        assert torch.equal(seen[layer].value, seen[source].value)
        assert not torch.equal(seen[layer].query, seen[source].query)
    assert seen[0].key.shape != seen[1].key.shape


def test_deepseek_v3_has_narrower_values_than_keys() -> None:
    config = hf.DeepseekV3Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, intermediate_size=48,
        moe_intermediate_size=16, n_routed_experts=4, num_experts_per_tok=2, n_group=1, topk_group=1, vocab_size=99,
        first_k_dense_replace=1, q_lora_rank=12, kv_lora_rank=12, qk_rope_head_dim=4, qk_nope_head_dim=8, v_head_dim=6,
        attn_implementation="eager",
    )  # fmt: skip
    structure = find_structure(hf.DeepseekV3ForCausalLM(config).eval(), 99)
    assert [(c.d_head, c.d_value, c.n_heads, c.n_kv_heads) for c in structure.calls] == [(12, 6, 4, 4)] * 2
    assert _modules([layer.mlp_act for layer in structure.layers]) == ["model.layers.0.mlp.down_proj", None]
    assert _modules([layer.mlp_out for layer in structure.layers]) == ["model.layers.0.mlp", "model.layers.1.mlp"]


def test_keys_and_values_repeated_by_the_model_itself_are_counted_once() -> None:
    """Falcon's old 40B layout repeats each key-value head for its group before its own attention."""
    config = hf.FalconConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_kv_heads=2, new_decoder_architecture=True,
        vocab_size=99, attn_implementation="eager",
    )  # fmt: skip
    structure = find_structure(hf.FalconForCausalLM(config).eval(), 99)
    assert [(c.n_heads, c.n_kv_heads, c.repeats) for c in structure.calls] == [(4, 2, 2)] * 2


def test_two_self_attentions_in_a_layer_leave_its_stream_alone() -> None:
    structure = _structure("causal", "longcat_flash")
    stack = structure.main
    reason = "layer 'model.layers.3' has 2 calls of self-attention, not one"
    assert dict(stack.missing) == dict.fromkeys(
        ("q", "k", "v", "attn", "head_out", "post_attn", "attn_out", "mlp_out", "mlp_act"), reason
    )
    assert _modules([layer.pre_attn for layer in stack.layers]) == [f"model.layers.{i}" for i in range(4)]
    assert _modules([layer.post_mlp for layer in stack.layers]) == [f"model.layers.{i}" for i in range(4)]
    assert len(structure.calls) == 8 and {c.layer for c in structure.calls} == {-1}
    assert stack.final_norm == "model.norm"


def test_a_mixer_beside_attention_is_not_taken_for_the_mlp() -> None:
    """Falcon-H1 writes attention and a state-space mixer in one step, and its MLP in the next."""
    structure = _structure("causal", "falcon_h1")
    assert _modules([layer.mlp_out for layer in structure.layers]) == [None] * 4
    assert _modules([layer.mlp_act for layer in structure.layers]) == [None] * 4
    assert structure.main.missing["mlp_out"] == "no module returns just what the MLP adds to the residual stream"


def test_a_model_without_a_stream_is_refused_with_the_layer_it_is_about() -> None:
    with pytest.raises(UnsupportedArchitecture, match=r"^DeepseekV4ForCausalLM is not understood: layer 'model.layers"):
        _structure("causal", "deepseek_v4")


def test_eager_and_sdpa_have_the_same_structure_but_for_the_probabilities() -> None:
    found = {name: find_structure(build_tiny(CLASSES["causal", "llama"], name), 128) for name in ("eager", "sdpa")}  # type: ignore[arg-type]
    assert [c.has_probabilities for c in found["eager"].calls] == [True] * 4
    assert [c.has_probabilities for c in found["sdpa"].calls] == [False] * 4
    assert dict(found["sdpa"].main.missing) == {}
    places = ("pre_attn", "post_attn", "attn_out", "mlp_out", "mlp_act", "post_mlp")
    for a, b in zip(found["eager"].layers, found["sdpa"].layers, strict=True):
        assert [getattr(a, p) for p in places] == [getattr(b, p) for p in places]


def test_a_call_is_what_the_attention_function_saw() -> None:
    seen: list[AttentionCall] = []
    model = _model("causal", "llama")
    with torch.no_grad(), watch_attention(lambda call: seen.append(call)):
        model(IDS, use_cache=False)
    plans = find_structure(model, 128).calls
    assert [(p.n_heads, p.n_kv_heads, p.d_head) for p in plans] == [
        (c.query.shape[1], c.key.shape[1], c.query.shape[3]) for c in seen
    ]
