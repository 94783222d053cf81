"""What an encoder computes for one row of ids, by plain transformers: output flags and named hooks. No package code."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, AutoModelForMaskedLM

# Per family: the layers, the module whose input is the stream after attention, attention's write, the MLP's last
# matrix, and the module that the heads' outputs enter.
PLACES = {
    "bert": ("encoder.layer", "intermediate", "attention.output.dense", "output.dense"),
    "roberta": ("encoder.layer", "intermediate", "attention.output.dense", "output.dense"),
    "electra": ("encoder.layer", "intermediate", "attention.output.dense", "output.dense"),
    "distilbert": ("transformer.layer", "ffn", "attention.out_lin", "ffn.lin2"),
}
PROJECTIONS = {
    "distilbert": {"q": "attention.q_lin", "k": "attention.k_lin", "v": "attention.v_lin"},
    **{f: {w: f"attention.self.{n}" for w, n in {"q": "query", "k": "key", "v": "value"}.items()}
       for f in ("bert", "roberta", "electra")},
}  # fmt: skip
HEADS = 4


def load(folder: Path, *, head: bool) -> Any:
    """Load in float32 with eager attention, with or without its head."""
    auto = AutoModelForMaskedLM if head else AutoModel
    return auto.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def run_alone(model: Any, family: str, ids: list[int]) -> dict[str, np.ndarray]:
    """Run one row and keep everything, under the names of a run folder."""
    path, reader, write, last = PLACES[family]
    seen: dict[str, list[np.ndarray]] = {}

    def keep(name: str, value: Any, *, heads: bool = False) -> None:
        array = (value[0] if isinstance(value, tuple) else value)[0].clone().numpy()
        array = array.reshape(len(array), HEADS, -1).swapaxes(0, 1) if heads else array
        seen.setdefault(name, []).append(array)

    handles = []

    def on_input(module: Any, name: str, *, heads: bool = False) -> None:
        take = partial(keep, name, heads=heads)
        handles.append(
            module.register_forward_pre_hook(
                lambda _m, a, k: take(a[0] if a else k["hidden_states"]), with_kwargs=True
            )
        )  # fmt: skip

    def on_output(module: Any, name: str, *, heads: bool = False) -> None:
        take = partial(keep, name, heads=heads)
        handles.append(module.register_forward_hook(lambda _m, _a, out: take(out)))

    for layer in model.base_model.get_submodule(path):
        on_input(layer, "enc_res_pre_attn")
        on_output(layer, "enc_res_post_mlp")
        on_input(layer.get_submodule(reader), "enc_res_post_attn")
        on_input(layer.get_submodule(write), "enc_head_out", heads=True)
        on_output(layer.get_submodule(write), "enc_attn_out")
        on_input(layer.get_submodule(last), "enc_mlp_act")
        on_output(layer.get_submodule(last), "enc_mlp_out")
        for which, name in PROJECTIONS[family].items():
            on_output(layer.get_submodule(name), f"enc_self_{which}", heads=True)
    with torch.no_grad():
        out = model(torch.tensor([ids]), output_attentions=True, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    found = {name: np.stack(values) for name, values in seen.items()}
    found["enc_self_attn"] = torch.stack([a[0] for a in out.attentions]).numpy()
    found["enc_hidden"] = torch.stack([h[0] for h in out.hidden_states]).numpy()
    found["enc_res_embed"] = found["enc_res_pre_attn"][0]
    if "logits" in out:
        found["enc_logits"] = out.logits[0].numpy()
    if "last_hidden_state" in out:
        found["last_hidden_state"] = out.last_hidden_state[0].numpy()
    return found
