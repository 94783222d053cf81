"""What an encoder-decoder computes for one text and one target, by plain transformers: output flags and named hooks.

Every array is under the name it has in a run folder. No package code.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForSeq2SeqLM

HEADS = 4
# Per side: the layers; per half of a layer (self-attention, cross-attention, MLP): the attention module or the modules
# of the MLP's last matrix and output, and where the stream stands behind it: a module's input (<) or output (>).
_BART_DECODER = {
    "self": "self_attn",
    "post_attn": ">self_attn_layer_norm",
    "cross": "encoder_attn",
    "post_cross": ">encoder_attn_layer_norm",
    "last": "fc2",
    "mlp": "fc2",
}
_BART_ENCODER = {"self": "self_attn", "post_attn": ">self_attn_layer_norm", "last": "fc2", "mlp": "fc2"}
_PRE_NORM_DECODER = {**_BART_DECODER, "post_attn": "<encoder_attn_layer_norm", "post_cross": "<final_layer_norm"}
_PRE_NORM_ENCODER = {**_BART_ENCODER, "post_attn": "<final_layer_norm"}
_T5_DECODER = {
    "self": "layer.0.SelfAttention",
    "post_attn": "<layer.1",
    "cross": "layer.1.EncDecAttention",
    "post_cross": "<layer.2",
    "last": "layer.2.DenseReluDense.wo",
    "mlp": "layer.2.DenseReluDense",
}
_T5_ENCODER = {
    "self": "layer.0.SelfAttention",
    "post_attn": "<layer.1",
    "last": "layer.1.DenseReluDense.wo",
    "mlp": "layer.1.DenseReluDense",
}
PLACES: dict[str, dict[str, tuple[str, dict[str, str]]]] = {
    "t5": {"enc": ("encoder.block", _T5_ENCODER), "dec": ("decoder.block", _T5_DECODER)},
    "bart": {"enc": ("model.encoder.layers", _BART_ENCODER), "dec": ("model.decoder.layers", _BART_DECODER)},
    "mbart": {"enc": ("model.encoder.layers", _PRE_NORM_ENCODER), "dec": ("model.decoder.layers", _PRE_NORM_DECODER)},
    "marian": {"enc": ("model.encoder.layers", _BART_ENCODER), "dec": ("model.decoder.layers", _BART_DECODER)},
    "pegasus": {"enc": ("model.encoder.layers", _PRE_NORM_ENCODER), "dec": ("model.decoder.layers", _PRE_NORM_DECODER)},
}
PROJECTIONS = {
    "t5": {"q": "q", "k": "k", "v": "v", "out": "o"},
    **{f: {"q": "q_proj", "k": "k_proj", "v": "v_proj", "out": "out_proj"} for f in PLACES if f != "t5"},
}
ACCESSORS = {"attn", "q", "k", "v", "hidden", "embed", "pre_attn", "post_attn", "post_mlp"}


def load(folder: Path) -> Any:
    """Load in float32 with eager attention."""
    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def run_alone(model: Any, family: str, ids: list[int], target: list[int]) -> dict[str, np.ndarray]:
    """Run one text with what the decoder reads, and keep everything."""
    seen: dict[str, list[np.ndarray]] = {}
    handles = [h for side in ("enc", "dec") for h in _hooks(model, family, side, seen)]
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor([ids]),
            decoder_input_ids=torch.tensor([target]),
            output_attentions=True,
            output_hidden_states=True,
            use_cache=False,
        )
    for handle in handles:
        handle.remove()
    found = {name: np.stack(values) for name, values in seen.items()}
    for side, word in (("enc", "encoder"), ("dec", "decoder")):
        found[f"{side}_self_attn"] = torch.stack([a[0] for a in out[f"{word}_attentions"]]).numpy()
        found[f"{side}_hidden"] = torch.stack([h[0] for h in out[f"{word}_hidden_states"]]).numpy()
        found[f"{side}_res_embed"] = found[f"{side}_res_pre_attn"][0]
    found["dec_cross_attn"] = torch.stack([a[0] for a in out.cross_attentions]).numpy()
    found["dec_logits"] = out.logits[0].numpy()
    return found


def _hooks(model: Any, family: str, side: str, seen: dict[str, list[np.ndarray]]) -> Iterator[Any]:
    path, places = PLACES[family][side]

    def keep(name: str, value: Any, *, heads: bool = False) -> None:
        array = (value[0] if isinstance(value, tuple) else value)[0].clone().numpy()
        array = array.reshape(len(array), HEADS, -1).swapaxes(0, 1) if heads else array
        seen.setdefault(name, []).append(array)

    def on_input(module: Any, name: str, *, heads: bool = False) -> Any:
        take = partial(keep, name, heads=heads)
        return module.register_forward_pre_hook(
            lambda _m, a, k: take(a[0] if a else k["hidden_states"]), with_kwargs=True
        )

    def on_output(module: Any, name: str, *, heads: bool = False) -> Any:
        take = partial(keep, name, heads=heads)
        return module.register_forward_hook(lambda _m, _a, out: take(out))

    for layer in model.get_submodule(path):
        yield on_input(layer, f"{side}_res_pre_attn")
        yield on_output(layer, f"{side}_res_post_mlp")
        for stage in ("post_attn", "post_cross"):
            if stage in places:
                put = on_input if places[stage][0] == "<" else on_output
                yield put(layer.get_submodule(places[stage][1:]), f"{side}_res_{stage}")
        yield on_input(layer.get_submodule(places["last"]), f"{side}_mlp_act")
        yield on_output(layer.get_submodule(places["mlp"]), f"{side}_mlp_out")
        for kind, prefix in (("self", f"{side}_"), ("cross", f"{side}_cross_")):
            if kind in places:
                attention = layer.get_submodule(places[kind])
                parts = {w: attention.get_submodule(n) for w, n in PROJECTIONS[family].items()}
                yield on_output(attention, f"{prefix}attn_out")
                yield on_input(parts["out"], f"{prefix}head_out", heads=True)
                for which in "qkv":
                    yield on_output(parts[which], f"{side}_{kind}_{which}", heads=True)
