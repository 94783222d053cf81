"""Random traces of a small run that keep every promise of the format, whole and cut to what the run keeps."""

import numpy as np

from support.tiny_run import (
    ATTENTION_LAYERS_ONLY,
    EXPERTS,
    MLP_LAYERS_ONLY,
    VOCAB,
    TinyRun,
    bodies,
    full_name,
    layout_of,
)


def whole_arrays(run: TinyRun) -> dict[str, np.ndarray]:
    """Return the traces of every layer, head and position, of captures that the run has not made too.

    Padding is zero, the chain of residual states closes, attention is causal in a decoder and its rows sum to 1.
    Layers that lack attention or an MLP in a hybrid have numbers all the same; they are cut off later.
    """
    rng, arrays = np.random.default_rng(run.seed), dict[str, np.ndarray]()
    for prefix in run.prefixes:
        values = _side(run, prefix, rng)
        arrays |= {full_name(prefix, body): values[body] for body in bodies(prefix, run)}
    return arrays


def _side(run: TinyRun, prefix: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    source = np.asarray(run.source_lengths) if run.source_lengths else np.zeros(len(run.lengths), np.int64)
    encoder = prefix == "enc_" and run.source_lengths is not None
    lengths, t = (source, run.n_source) if encoder else (run.spread, run.n_positions)
    layers = run.n_source_layers if encoder else run.n_layers
    heads, kv, value = run.n_heads, run.n_kv_heads, run.d_head if run.d_value is None else run.d_value
    axis, read = lengths.ndim, np.arange(run.n_source) < source[..., None]
    real = np.arange(t) < lengths[..., None]

    def random(*body: int, at: np.ndarray = real) -> np.ndarray:
        mask = at.reshape(*lengths.shape, *(1,) * (len(body) - 2), at.shape[-1], 1)
        values = rng.uniform(0.5, 2.0, (*lengths.shape, *body)) * rng.choice([-1.0, 1.0], (*lengths.shape, *body))
        masked: np.ndarray = np.where(mask, values, 0.0).astype(run.dtype)
        return masked

    def attention(keys: np.ndarray, *, causal: bool) -> np.ndarray:
        allowed = real[..., :, None] & keys[..., None, :]
        allowed = np.expand_dims(allowed & np.tri(t, dtype=bool) if causal else allowed, (axis, axis + 1))
        weights = rng.uniform(0.2, 1.0, (*lengths.shape, layers, heads, t, keys.shape[-1])) * allowed
        total = weights.sum(-1, keepdims=True)
        shares: np.ndarray = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
        return shares.astype(run.dtype)

    states, final = random(layers + 1, t, run.d_model), random(t, run.d_model)
    arrays = {
        "self_attn": attention(real, causal=prefix == "dec_"),
        "self_q": random(layers, heads, t, run.d_head),
        "self_k": random(layers, kv, t, run.d_head),
        "self_v": random(layers, kv, t, value),
        "hidden": np.concatenate([states.take(range(layers), axis), np.expand_dims(final, axis)], axis),
        "res_embed": states.take(0, axis),
        "res_pre_attn": states.take(range(layers), axis),
        "res_post_attn": random(layers, t, run.d_model),
        "res_post_mlp": states.take(range(1, layers + 1), axis),
        "attn_out": random(layers, t, run.d_model),
        "mlp_out": random(layers, t, run.d_model),
        "head_out": random(layers, heads, t, value),
        "mlp_act": random(layers, t, run.d_mlp),
        "router": np.abs(random(layers, t, EXPERTS)) / 2,
        "logits": random(t, VOCAB),
    }
    if prefix == "dec_" and run.source_lengths:
        arrays |= {
            "cross_attn": attention(read, causal=False),
            "cross_q": random(layers, heads, t, run.d_head),
            "cross_k": random(layers, kv, run.n_source, run.d_head, at=read),
            "cross_v": random(layers, kv, run.n_source, value, at=read),
            "res_post_cross": random(layers, t, run.d_model),
            "cross_attn_out": random(layers, t, run.d_model),
            "cross_head_out": random(layers, heads, t, value),
        }
    return arrays


def random_arrays(run: TinyRun) -> dict[str, np.ndarray]:
    """Return the traces as the run keeps them; see `whole_arrays`."""
    whole = whole_arrays(run)
    return {name: _cut(whole[name], name, axes, run) for name, (_, _, axes) in layout_of(run).items()}


def _cut(values: np.ndarray, name: str, axes: tuple[str, ...], run: TinyRun) -> np.ndarray:
    for axis, kept in kept_numbers(name, axes, run).items():
        values = values.take(kept, axes.index(axis))
    token_axis = next((a for a in ("position", "query") if a in axes), None)
    if token_axis is None or keeps_all_positions(name, run):
        return values
    at, place = slot_positions(run), axes.index(token_axis)
    spread = at.reshape(*at.shape[:-1], *(1,) * (place - at.ndim + 1), at.shape[-1], *(1,) * (len(axes) - place - 1))
    taken = np.take_along_axis(values, np.where(spread < 0, 0, spread), axis=place)
    cut: np.ndarray = np.where(spread < 0, np.zeros((), taken.dtype), taken)
    return cut


def keeps_all_positions(name: str, run: TinyRun) -> bool:
    """Return whether an array has all positions: the encoder of an encoder-decoder always has."""
    return run.positions == "all" or (name.startswith("enc_") and run.source_lengths is not None)


def slot_positions(run: TinyRun) -> np.ndarray:
    """Return the token position in each slot, (N, [C,] slots), -1 where no token stands there."""
    lengths = run.spread[..., None]
    if isinstance(run.positions, tuple):
        wanted = np.asarray(run.positions)
    else:
        wanted = lengths - (2 if run.positions == "next" else 1)
    at: np.ndarray = np.where((wanted >= 0) & (wanted < lengths), wanted, -1)
    return at


def kept_numbers(name: str, axes: tuple[str, ...], run: TinyRun) -> dict[str, list[int]]:
    """Return the model's own numbers along the layer, depth and head axes of an array."""
    encoder = name.startswith("enc_") and run.source_lengths is not None
    n_layers = run.n_source_layers if encoder else run.n_layers
    layers = [i for i in range(n_layers) if run.layers is None or i in run.layers]
    heads = [h for h in range(run.n_heads) if run.heads is None or h in run.heads]
    body = name.split("_", 1)[1]
    having = range(n_layers)
    if run.attention_layers is not None and body in ATTENTION_LAYERS_ONLY:
        having = run.attention_layers  # type: ignore[assignment]
    if run.mlp_layers is not None and body in MLP_LAYERS_ONLY:
        having = run.mlp_layers  # type: ignore[assignment]
    numbers = {
        "layer": [i for i in layers if i in having],
        "depth": sorted({d for i in layers for d in (i, i + 1)}),
        "head": heads,
        "kv_head": sorted({h * run.n_kv_heads // run.n_heads for h in heads}),
    }
    return {axis: kept for axis, kept in numbers.items() if axis in axes}
