"""What plain transformers computes for one row of ids: its output flags, and hooks on modules named here by hand.

Nothing of the package is used. Every array is under the name it has in a run folder, without padding.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

Keep = Callable[[str, Tensor], None]


@dataclass(frozen=True, slots=True)
class Names:
    """Where things are in one family, by the names in its source.

    Attributes:
        layers: The list of layers, in the model without its head.
        block: In a layer: what holds the rest ("" where the layer itself does).
        after_attention: Its input is the stream after attention.
        attention: Its output is what attention writes.
        heads: Its input is the heads' outputs side by side.
        mlp: Its output is what the MLP writes.
        last: Its input is the MLP's hidden neurons.
        q, k, v: Their outputs are queries, keys and values; one name for all three where one matrix makes them.
        rotary: The module (of the model) that gives the angles by which q and k are turned; "" where they are not.
    """

    layers: str
    after_attention: str
    attention: str
    heads: str
    mlp: str
    last: str
    q: str
    k: str
    v: str
    block: str = ""
    rotary: str = ""


_BERT: Final = Names(
    "encoder.layer",
    "intermediate",
    "attention.output.dense",
    "attention.output.dense",
    "output.dense",
    "output.dense",
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
)
_LLAMA: Final = Names(
    "layers",
    "post_attention_layernorm",
    "self_attn",
    "self_attn.o_proj",
    "mlp",
    "mlp.down_proj",
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    rotary="rotary_emb",
)
FAMILIES: Final[Mapping[str, Names]] = {
    **dict.fromkeys(("bert", "roberta", "electra"), _BERT),
    **dict.fromkeys(("llama", "mistral", "qwen2"), _LLAMA),
    "albert": Names(
        "encoder.albert_layer_groups",
        "ffn",
        "attention.dense",
        "attention.dense",
        "ffn_output",
        "ffn_output",
        "attention.query",
        "attention.key",
        "attention.value",
        block="albert_layers.0",
    ),
    "gpt2": Names("h", "ln_2", "attn", "attn.c_proj", "mlp", "mlp.c_proj", *["attn.c_attn"] * 3),
}


def run_alone(model: Any, side: str, inputs: Mapping[str, Tensor]) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Run one row alone, unpadded.

    Args:
        model: A model of one of `FAMILIES`, in eager attention.
        side: "dec" or "enc", which the names of the arrays begin with.
        inputs: What the model is called with, one row.

    Returns:
        The arrays by name, and the logits (position, vocabulary) of a model with a head.
    """
    names, seen = FAMILIES[model.config.model_type], dict[str, list[Tensor]]()
    with ExitStack() as stack, torch.no_grad():
        for handle in _hooks(model, names, lambda name, value: seen.setdefault(name, []).append(value[0].clone())):
            stack.callback(handle.remove)
        out = model(**inputs, output_attentions=True, output_hidden_states=True)
    found = {name: torch.stack(values) for name, values in seen.items()}
    found["self_attn"] = torch.stack([a[0] for a in out.attentions])
    found["hidden"] = torch.stack([h[0] for h in out.hidden_states])
    found["res_embed"] = found["res_pre_attn"][0]
    found["head_out"] = _by_head(found["head_out"], found["self_attn"].shape[1])
    found |= _queries_keys_values(model, names, found)
    logits = out.logits[0].numpy() if "logits" in out else None
    return {f"{side}_{name}": value.numpy() for name, value in found.items() if not name.startswith("from_")}, logits


def _hooks(model: Any, names: Names, keep: Keep) -> Iterator[Any]:
    """Hook every layer; one that is called several times is kept several times."""

    def on_input(module: nn.Module, name: str) -> Any:
        return module.register_forward_pre_hook(
            lambda _m, args, named: keep(name, args[0] if args else named["hidden_states"]), with_kwargs=True
        )

    def on_output(module: nn.Module, name: str) -> Any:
        return module.register_forward_hook(lambda _m, _a, out: keep(name, out[0] if isinstance(out, tuple) else out))

    for layer in model.base_model.get_submodule(names.layers):
        yield on_input(layer, "res_pre_attn")
        yield on_output(layer, "res_post_mlp")
        block = layer.get_submodule(names.block)
        yield on_input(block.get_submodule(names.after_attention), "res_post_attn")
        yield on_output(block.get_submodule(names.attention), "attn_out")
        yield on_input(block.get_submodule(names.heads), "head_out")
        yield on_output(block.get_submodule(names.mlp), "mlp_out")
        yield on_input(block.get_submodule(names.last), "mlp_act")
        for module in dict.fromkeys((names.q, names.k, names.v)):
            yield on_output(block.get_submodule(module), f"from_{module}")


def _by_head(value: Tensor, n_heads: int) -> Tensor:
    """(layer, position, heads side by side) → (layer, head, position, width)."""
    return value.unflatten(-1, (n_heads, -1)).transpose(1, 2)


def _queries_keys_values(model: Any, names: Names, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return q, k and v as attention uses them: by head, and turned where the family turns them."""
    made = [found[f"from_{module}"] for module in dict.fromkeys((names.q, names.k, names.v))]
    q, k, v = made if len(made) == 3 else made[0].chunk(3, dim=-1)
    n_heads = model.config.num_attention_heads
    n_kv_heads = getattr(model.config, "num_key_value_heads", None) or n_heads
    q, k, v = _by_head(q, n_heads), _by_head(k, n_kv_heads), _by_head(v, n_kv_heads)
    if names.rotary:
        from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

        positions = torch.arange(q.shape[2])[None]
        cosine, sine = model.base_model.get_submodule(names.rotary)(v, positions)
        q, k = apply_rotary_pos_emb(q, k, cosine, sine)
    return {"self_q": q, "self_k": k, "self_v": v}
