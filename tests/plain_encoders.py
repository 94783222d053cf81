"""What a multiple-choice encoder computes for one choice, by plain transformers: output flags and named hooks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import AutoModelForMultipleChoice, AutoTokenizer

# Per family: the list of layers, and the module whose input is the stream after attention.
PLACES = {
    "bert": ("bert.encoder.layer", "intermediate"),
    "roberta": ("roberta.encoder.layer", "intermediate"),
    "xlm_roberta": ("roberta.encoder.layer", "intermediate"),
    "distilbert": ("distilbert.transformer.layer", "ffn"),
    "electra": ("electra.encoder.layer", "intermediate"),
    "deberta_v2": ("deberta.encoder.layer", "intermediate"),
    "deberta_v3": ("deberta.encoder.layer", "intermediate"),
    "mpnet": ("mpnet.encoder.layer", "intermediate"),
    "modernbert": ("model.layers", "mlp_norm"),
    "albert": ("albert.encoder.albert_layer_groups", "albert_layers.0.ffn"),
}
# The projections that q, k and v come out of, where nothing (rotary embedding, scale) stands behind them.
PROJECTIONS = {
    "bert": "attention.self.{query,key,value}",
    "roberta": "attention.self.{query,key,value}",
    "distilbert": "attention.{q_lin,k_lin,v_lin}",
    "electra": "attention.self.{query,key,value}",
    "mpnet": "attention.attn.{q,k,v}",
    "albert": "albert_layers.0.attention.{query,key,value}",
}


@dataclass
class PlainChoice:
    """One choice alone: attn (L, H, T, T), hidden (L+1, T, D), residual stages (L, T, D), its score."""

    attn: np.ndarray
    hidden: np.ndarray
    pre_attn: np.ndarray
    post_attn: np.ndarray
    post_mlp: np.ndarray
    qkv: dict[str, np.ndarray]
    score: float


def load(folder: Path) -> tuple[Any, Any]:
    """Return the model in float32 with eager attention, and its tokenizer."""
    options = {"dtype": torch.float32, "attn_implementation": "eager"}
    return AutoModelForMultipleChoice.from_pretrained(folder, **options).eval(), AutoTokenizer.from_pretrained(folder)


def run_choice(model: Any, tokenizer: Any, family: str, question: str, choice: str) -> PlainChoice:
    """Run one question with one choice and keep everything."""
    path, reader = PLACES[family]
    layers = model.get_submodule(path)
    seen: dict[str, list[np.ndarray]] = {"pre": [], "post": [], "mlp": [], "q": [], "k": [], "v": []}

    def keep(name: str, value: Any) -> None:
        seen[name].append((value[0] if isinstance(value, tuple) else value)[0].clone().numpy())

    handles = []
    for layer in layers:
        handles += [
            layer.register_forward_pre_hook(
                lambda _m, a, k: keep("pre", a[0] if a else k["hidden_states"]), with_kwargs=True
            ),
            layer.register_forward_hook(lambda _m, _a, out: keep("mlp", out)),
            layer.get_submodule(reader).register_forward_pre_hook(lambda _m, a: keep("post", a[0])),
        ]
        for name, module in projections(family, layer).items():
            handles.append(module.register_forward_hook(lambda _m, _a, out, name=name: keep(name, out)))
    encoded = tokenizer(question, choice, return_tensors="pt")
    with torch.no_grad():
        out = model(**{k: v[:, None] for k, v in encoded.items()}, output_attentions=True, output_hidden_states=True)
    for handle in handles:
        handle.remove()
    heads, length = out.attentions[0].shape[1], encoded["input_ids"].shape[1]
    return PlainChoice(
        attn=torch.stack([a[0] for a in out.attentions]).numpy(),
        hidden=torch.stack([h[0] for h in out.hidden_states]).numpy(),
        pre_attn=np.stack(seen["pre"]),
        post_attn=np.stack(seen["post"]),
        post_mlp=np.stack(seen["mlp"]),
        qkv={n: np.stack([x.reshape(length, heads, -1).swapaxes(0, 1) for x in seen[n]]) for n in "qkv" if seen[n]},
        score=float(out.logits[0, 0]),
    )


def projections(family: str, layer: Any) -> dict[str, Any]:
    """Return the modules that q, k and v come out of, for the families where they do."""
    if family not in PROJECTIONS:
        return {}
    head, names = PROJECTIONS[family].removesuffix("}").split("{")
    return {which: layer.get_submodule(head + name) for which, name in zip("qkv", names.split(","), strict=True)}


class Held(nn.Module):
    """A LayerNorm whose division is a constant to autograd."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        centred = x - x.mean(-1, keepdim=True)
        sigma = (centred.square().mean(-1, keepdim=True) + self.norm.eps).sqrt().detach()
        return centred / sigma * self.norm.weight + self.norm.bias


def bert_parts(folder: Path, question: str, choice: str) -> dict[str, np.ndarray]:
    """Gradient of a BERT's score times each write at the first token; parts do not see one another's gradients."""
    model = AutoModelForMultipleChoice.from_pretrained(folder, attn_implementation="eager").double().eval()
    writes: dict[str, list[torch.Tensor]] = {"attn": [], "mlp": [], "embed": []}

    def keep(name: str):
        def hook(_m, _a, out):
            leaf = out.detach().requires_grad_()
            writes[name].append(leaf)
            return leaf

        return hook

    model.bert.embeddings.register_forward_hook(keep("embed"))
    for layer in model.bert.encoder.layer:
        layer.attention.output.dense.register_forward_hook(keep("attn"))
        layer.output.dense.register_forward_hook(keep("mlp"))
        layer.attention.output.LayerNorm = Held(layer.attention.output.LayerNorm)
        layer.output.LayerNorm = Held(layer.output.LayerNorm)
    pair = AutoTokenizer.from_pretrained(folder)(question, choice, return_tensors="pt")
    score = model(**{k: v[:, None] for k, v in pair.items()}).logits.sum()
    flat = [*writes["embed"], *writes["attn"], *writes["mlp"]]
    grads = torch.autograd.grad(score, flat)
    values = [float((g * w).detach()[0, 0].sum()) for g, w in zip(grads, flat, strict=True)]
    n = len(writes["attn"])
    return {"embed": np.array(values[0]), "attn": np.array(values[1 : 1 + n]), "mlp": np.array(values[1 + n :])}
