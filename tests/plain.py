"""What a model computes, by plain transformers: output flags and hooks by the families' own names. No package code.

Every function runs one example alone and unpadded, in eager attention.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

# Per family: the list of layers, the module whose input is the stream after attention (None: parallel block),
# and the module that attention's write comes out of.
PLACES = {
    "gpt2": ("transformer.h", "ln_2", "attn"),
    "llama": ("model.layers", "post_attention_layernorm", "self_attn"),
    "qwen2": ("model.layers", "post_attention_layernorm", "self_attn"),
    "qwen3": ("model.layers", "post_attention_layernorm", "self_attn"),
    "mistral": ("model.layers", "post_attention_layernorm", "self_attn"),
    "gemma": ("model.layers", "post_attention_layernorm", "self_attn"),
    "gemma2": ("model.layers", "pre_feedforward_layernorm", "self_attn"),
    "gemma3": ("model.layers", "pre_feedforward_layernorm", "self_attn"),
    "opt": ("model.decoder.layers", "final_layer_norm", "self_attn"),
    "gpt_neox": ("gpt_neox.layers", None, "attention"),
    "phi": ("model.layers", None, "self_attn"),
    "cohere": ("model.layers", None, "self_attn"),
    "olmo2": ("model.layers", "mlp", "self_attn"),
    "gptj": ("transformer.h", None, "attn"),
    "gpt_neo": ("transformer.h", "ln_2", "attn"),
    "mpt": ("transformer.blocks", "norm_2", "attn"),
    "falcon": ("transformer.h", None, "self_attention"),
    "granite": ("model.layers", "post_attention_layernorm", "self_attn"),
}


@dataclass
class Plain:
    """One example alone: attn (L, H, T, T), hidden (L+1, T, D), residual stages (L, T, D), logits (T, V)."""

    attn: np.ndarray
    hidden: np.ndarray
    pre_attn: np.ndarray
    post_attn: np.ndarray
    post_mlp: np.ndarray
    logits: torch.Tensor


def load(folder: Path) -> Any:
    """Load in float32 with eager attention."""
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def run_alone(model: Any, family: str, ids: list[int]) -> Plain:
    """Run one example and keep everything."""
    path, reader, attention = PLACES[family]
    layers = model.get_submodule(path)
    seen: dict[str, list[np.ndarray]] = {"pre": [], "post": [], "mlp": [], "write": []}

    def tensor(value: Any) -> np.ndarray:
        value = value[0] if isinstance(value, tuple) else value
        return value.reshape(-1, value.shape[-1]).clone().numpy()

    handles = []
    for layer in layers:
        handles.append(
            layer.register_forward_pre_hook(
                lambda _m, a, k: seen["pre"].append(tensor(a[0] if a else k["hidden_states"])), with_kwargs=True
            )
        )
        handles.append(layer.register_forward_hook(lambda _m, _a, o: seen["mlp"].append(tensor(o))))
        handles.append(
            layer.get_submodule(attention).register_forward_hook(lambda _m, _a, o: seen["write"].append(tensor(o)))
        )
        if reader:
            handles.append(
                layer.get_submodule(reader).register_forward_pre_hook(lambda _m, a: seen["post"].append(tensor(a[0])))
            )
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_attentions=True, output_hidden_states=True, use_cache=False)
    for handle in handles:
        handle.remove()
    pre, write = np.stack(seen["pre"]), np.stack(seen["write"])
    return Plain(
        attn=torch.stack([a[0] for a in out.attentions]).numpy(),
        hidden=torch.stack([h[0] for h in out.hidden_states]).numpy(),
        pre_attn=pre,
        post_attn=np.stack(seen["post"]) if reader else pre + write,
        post_mlp=np.stack(seen["mlp"]),
        logits=out.logits[0],
    )


def llama_qkv(model: Any, ids: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return q, k, v (L, heads, T, d_head) of a Llama by hooks on its projections and its own rotary function."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    d_head, found = model.config.head_dim, {"q": [], "k": [], "v": []}
    handles = [
        getattr(layer.self_attn, f"{name}_proj").register_forward_hook(
            lambda _m, _a, o, name=name: found[name].append(o.view(1, len(ids), -1, d_head).transpose(1, 2))
        )
        for layer in model.model.layers
        for name in "qkv"
    ]
    with torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
        for handle in handles:
            handle.remove()
        cos, sin = model.model.rotary_emb(found["v"][0], torch.arange(len(ids))[None])
        turned = [apply_rotary_pos_emb(q, k, cos, sin) for q, k in zip(found["q"], found["k"], strict=True)]
    q, k = (np.stack([pair[i][0].numpy() for pair in turned]) for i in (0, 1))
    return q, k, np.stack([v[0].numpy() for v in found["v"]])


def gpt2_qkv(model: Any, ids: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return q, k, v (L, heads, T, d_head) of a GPT-2 by hooks on its joint projection."""
    joint: list[torch.Tensor] = []
    handles = [b.attn.c_attn.register_forward_hook(lambda _m, _a, o: joint.append(o[0])) for b in model.transformer.h]
    with torch.no_grad():
        model(torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    heads = model.config.n_head
    parts = [[p.view(len(ids), heads, -1).transpose(0, 1).numpy() for p in j.chunk(3, dim=-1)] for j in joint]
    return tuple(np.stack([layer[i] for layer in parts]) for i in range(3))


def worst_difference(stored: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest |stored - expected| / (|expected| + median |expected|), in float64."""
    assert stored.shape == expected.shape, (stored.shape, expected.shape)
    a, b = np.asarray(stored, np.float64), np.asarray(expected, np.float64)
    if a.size == 0:
        return 0.0
    return float((np.abs(a - b) / (np.abs(b) + np.median(np.abs(b)) + 1e-30)).max())
