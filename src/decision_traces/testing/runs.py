"""Small run folders of random numbers, written with plain Zarr and pandas: independent of the run writer.

What is written is returned beside the folder, so that tests compare the reader with NumPy and nothing else.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import google_crc32c
import numpy as np
import pandas as pd
import zarr
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

Layout = Literal["sharded", "v3", "v2"]


@dataclass(frozen=True, slots=True)
class TinyRun:
    """What a small run holds.

    Attributes:
        lengths: Tokens of each example, or of each choice of each example.
        n_layers: Layers.
        n_heads: Query heads.
        n_kv_heads: Key-value heads.
        d_head: Width of a head.
        d_model: Width of the residual stream.
        n_positions: T.
        dtype: float16 or float32.
        capture: The `--capture` words.
        layout: "sharded" is the format of this package; "v3" and "v2" are older tools' plain chunks, without
            format_version, manifest and digests.
        block_rows: Examples per shard.
        links: Repeated layers are hard links, as the writer makes them.
        seed: Of the random numbers.
    """

    lengths: tuple[int, ...] | tuple[tuple[int, ...], ...] = (5, 2, 1, 6, 3)
    n_layers: int = 3
    n_heads: int = 4
    n_kv_heads: int = 2
    d_head: int = 3
    d_model: int = 8
    n_positions: int = 6
    dtype: Literal["float16", "float32"] = "float16"
    capture: tuple[str, ...] = ("attn", "qkv", "hidden", "resid")
    layout: Layout = "sharded"
    block_rows: int = 2
    links: bool = True
    seed: int = 0

    @property
    def n_choices(self) -> int | None:
        """Choices per example, or None for a decoder run."""
        return len(self.lengths[0]) if isinstance(self.lengths[0], tuple) else None

    @property
    def spread(self) -> np.ndarray:
        """Tokens per example, (N,) or (N, C)."""
        return np.asarray(self.lengths, dtype=np.int64)


DECODER = TinyRun(lengths=(5, 2, 1, 6, 3))
CHOICES = TinyRun(lengths=((5, 2), (3, 3), (1, 6)), n_layers=2)

VOCAB = 50
# name: (group, key, axes); spelled out here so that a slip in the schema's table cannot hide.
_BODY: dict[str, tuple[str, str, str, str]] = {
    "self_attn": ("self_attn.zarr", "attn", "layer head query key", "attn"),
    "self_q": ("self_qkv.zarr", "q", "layer head position d_head", "qkv"),
    "self_k": ("self_qkv.zarr", "k", "layer kv_head position d_head", "qkv"),
    "self_v": ("self_qkv.zarr", "v", "layer kv_head position d_head", "qkv"),
    "hidden": ("hidden.zarr", "h", "depth position d_model", "hidden"),
    "res_embed": ("res_embed.zarr", "x", "position d_model", "resid"),
    "res_pre_attn": ("res_pre_attn.zarr", "x", "layer position d_model", "resid"),
    "res_post_attn": ("res_post_attn.zarr", "x", "layer position d_model", "resid"),
    "res_post_mlp": ("res_post_mlp.zarr", "x", "layer position d_model", "resid"),
}


def layout_of(run: TinyRun) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Return name to (group, key, axes) of the arrays a run holds."""
    choices = run.n_choices is not None
    prefix, lead, cut = ("enc_mc_", ("example", "choice"), "self_") if choices else ("dec_", ("example",), "")
    return {
        prefix + body.removeprefix(cut): (prefix + group.removeprefix(cut), key, (*lead, *axes.split()))
        for body, (group, key, axes, capture) in _BODY.items()
        if capture in run.capture
    }


def random_arrays(run: TinyRun) -> dict[str, np.ndarray]:
    """Return random traces that keep every promise of the format: padding, chain, causality, rows of sum 1."""
    rng, lead, t = np.random.default_rng(run.seed), run.spread.shape, run.n_positions
    real = np.arange(t) < run.spread[..., None]

    def random(*body: int) -> np.ndarray:
        mask = real.reshape(*lead, *(1,) * (len(body) - 2), t, 1)
        values = rng.uniform(0.5, 2.0, (*lead, *body)) * rng.choice([-1.0, 1.0], (*lead, *body))
        masked: np.ndarray = np.where(mask, values, 0.0).astype(run.dtype)
        return masked

    states, layers = random(run.n_layers + 1, t, run.d_model), run.n_layers
    axis = len(lead)
    final = random(t, run.d_model)
    arrays = {
        "self_attn": _attention(run, rng, real),
        "self_q": random(layers, run.n_heads, t, run.d_head),
        "self_k": random(layers, run.n_kv_heads, t, run.d_head),
        "self_v": random(layers, run.n_kv_heads, t, run.d_head),
        "hidden": np.concatenate([states.take(range(layers), axis), np.expand_dims(final, axis)], axis),
        "res_embed": states.take(0, axis),
        "res_pre_attn": states.take(range(layers), axis),
        "res_post_attn": random(layers, t, run.d_model),
        "res_post_mlp": states.take(range(1, layers + 1), axis),
    }
    names = layout_of(run)
    prefix = "dec_" if run.n_choices is None else "enc_mc_"
    renamed = {prefix + (k if run.n_choices is None else k.removeprefix("self_")): v for k, v in arrays.items()}
    return {name: renamed[name] for name in names}


def _attention(run: TinyRun, rng: np.random.Generator, real: np.ndarray) -> np.ndarray:
    t, lead = run.n_positions, run.spread.shape
    allowed = real[..., :, None] & real[..., None, :]
    if run.n_choices is None:
        allowed = allowed & np.tri(t, dtype=bool)
    allowed = np.expand_dims(allowed, (len(lead), len(lead) + 1))
    weights = rng.uniform(0.2, 1.0, (*lead, run.n_layers, run.n_heads, t, t)) * allowed
    total = weights.sum(-1, keepdims=True)
    shares: np.ndarray = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return shares.astype(run.dtype)


def token_table(run: TinyRun) -> pd.DataFrame:
    """Return the token table of a run, with consistent predictions."""
    rng = np.random.default_rng(run.seed + 1)
    rows = []
    for row, length in enumerate(run.spread):
        options = [_tokens(rng, int(n), run.n_positions) for n in np.atleast_1d(length)]
        columns = options[0]
        if run.n_choices is not None:
            parts = [[0 if m else -1 for m in o["attention_mask"]] for o in options]
            columns = {k: [o[k] for o in options] for k in columns} | {"sequence_ids": parts}
        outcome = _next_token(rng, columns) if run.n_choices is None else _choice(rng, run.n_choices)
        rows.append({"example_id": f"tiny-validation-{row:06d}", "text": f"text number {row}", **columns, **outcome})
    return pd.DataFrame(rows)


def _tokens(rng: np.random.Generator, length: int, t: int) -> dict[str, Any]:
    ids = [int(i) for i in rng.integers(1, VOCAB, length)]
    return {
        "input_ids": ids + [0] * (t - length),
        "attention_mask": [1] * length + [0] * (t - length),
        "offset_mapping": [[i, i + 1] for i in range(length)] + [[0, 0]] * (t - length),
        "tokens": [f"t{i}" for i in ids] + ["<pad>"] * (t - length),
        "n_tokens": length,
        "truncated": False,
    }


def _next_token(rng: np.random.Generator, columns: Mapping[str, Any]) -> dict[str, Any]:
    position = max(columns["n_tokens"] - 2, -1)
    if position < 0:
        return {"next_pos": -1} | dict.fromkeys(_NEXT)
    logits = rng.normal(size=VOCAB) * 2
    probs = (np.exp(logits) / np.exp(logits).sum()).astype(np.float32)
    order, true = np.argsort(-logits), columns["input_ids"][position + 1]
    return {
        "next_pos": position,
        "next_true_id": true,
        "next_true_token": f"t{true}",
        "next_pred_id": int(order[0]),
        "next_pred_token": f"t{order[0]}",
        "next_correct": bool(order[0] == true),
        "next_true_prob": probs[true],
        "next_pred_prob": probs[order[0]],
        "next_entropy": np.float32(-(probs * np.log(probs)).sum()),
        "next_true_rank": int((logits > logits[true]).sum()) + 1,
        "next_margin": np.float32(logits[order[0]] - logits[order[1]]),
        "next_topk_ids": [int(i) for i in order[:3]],
        "next_topk_tokens": [f"t{i}" for i in order[:3]],
        "next_topk_probs": [float(p) for p in probs[order[:3]]],
    }


_NEXT = (
    "next_true_id",
    "next_true_token",
    "next_pred_id",
    "next_pred_token",
    "next_correct",
    "next_true_prob",
    "next_pred_prob",
    "next_entropy",
    "next_true_rank",
    "next_margin",
    "next_topk_ids",
    "next_topk_tokens",
    "next_topk_probs",
)


def _choice(rng: np.random.Generator, n_choices: int) -> dict[str, Any]:
    logits, label = rng.normal(size=n_choices), int(rng.integers(n_choices))
    probs, letters = np.exp(logits) / np.exp(logits).sum(), [chr(65 + i) for i in range(n_choices)]
    pred = int(logits.argmax())
    return {
        "question": "which one?",
        "choice_texts": [f"choice {letter}" for letter in letters],
        "answerKey": letters[label],
        "label_idx": label,
        "pred_idx": pred,
        "pred_label": letters[pred],
        "is_correct": pred == label,
        "choice_labels": letters,
        "choice_logits": [float(x) for x in logits],
        "choice_probs": [float(x) for x in probs],
    }


def build_run(
    folder: Path, run: TinyRun, alter: Callable[[dict[str, np.ndarray], pd.DataFrame], None] | None = None
) -> dict[str, np.ndarray]:
    """Write a run folder.

    Args:
        folder: Where; it must not exist.
        run: What it holds.
        alter: Changes the arrays and the token table in place before they are written; with `links=False`,
            or a linked layer would take the place of a changed one.

    Returns:
        The arrays as written, by name.
    """
    folder.mkdir(parents=True)
    arrays, table = random_arrays(run), _pandas_integers(token_table(run))
    if alter is not None:
        alter(arrays, table)
    for name, (group, key, axes) in layout_of(run).items():
        write_array(folder / group, key, arrays[name], axes, run)
    if run.links and run.layout == "sharded":
        _link(folder, run)
    table.to_parquet(folder / "tokens.parquet", write_page_checksum=True)
    write_meta(folder, run, arrays)
    return arrays


def _pandas_integers(table: pd.DataFrame) -> pd.DataFrame:
    """Keep integer columns integer where some rows are null."""
    whole = [c for c in ("next_true_id", "next_pred_id", "next_true_rank") if c in table]
    return table.astype(dict.fromkeys(whole, "Int32"))


def write_array(group: Path, key: str, values: np.ndarray, axes: tuple[str, ...], run: TinyRun) -> None:
    """Write one array in the layout the run asks for."""
    if run.layout == "v2":
        parent = zarr.open_group(group, mode="a", zarr_format=2)
        chunks = (1, *values.shape[1:])
        parent.create_array(key, shape=values.shape, chunks=chunks, dtype=run.dtype)[...] = values
        return
    parent = zarr.open_group(group, mode="a", zarr_format=3)
    if run.layout == "v3":
        chunks = tuple(max(1, (n + 1) // 2) for n in values.shape)
        parent.create_array(key, shape=values.shape, chunks=chunks, dtype=run.dtype)[...] = values
        return
    singles = {"example", "layer", "depth"}
    inner = tuple(1 if a in singles else n for a, n in zip(axes, values.shape, strict=True))
    shard = (run.block_rows, *inner[1:])
    stored = parent.create_array(
        key,
        shape=values.shape,
        dtype=run.dtype,
        chunks=shard,
        serializer=ShardingCodec(
            chunk_shape=inner,
            codecs=[BytesCodec(), ZstdCodec(level=1), Crc32cCodec()],
            index_codecs=[BytesCodec(), Crc32cCodec()],
        ),
        filters=None,
        compressors=None,
        fill_value=0,
        dimension_names=axes,
    )
    stored[...] = values


def _link(folder: Path, run: TinyRun) -> None:
    """Make pre_attn[l] and hidden[l] hard links of post_mlp[l-1]."""
    names = layout_of(run)
    prefix = "dec_" if run.n_choices is None else "enc_mc_"
    source = names.get(f"{prefix}res_post_mlp")
    if source is None:
        return
    for name in (f"{prefix}res_pre_attn", f"{prefix}hidden"):
        if name not in names:
            continue
        for layer in range(1, run.n_layers):
            for block in range(-(-len(run.lengths) // run.block_rows)):
                ends = _shard(run, names[name], block, layer), _shard(run, source, block, layer - 1)
                target, original = (folder / end for end in ends)
                if target.exists():
                    target.unlink()
                    os.link(original, target)


def _shard(run: TinyRun, place: tuple[str, str, tuple[str, ...]], block: int, layer: int) -> str:
    group, key, axes = place
    at = {"example": block, "layer": layer, "depth": layer}
    return f"{group}/{key}/c/" + "/".join(str(at.get(axis, 0)) for axis in axes)


def write_meta(folder: Path, run: TinyRun, arrays: Mapping[str, np.ndarray]) -> None:
    """Write meta.json, and for this package's own layout the manifest."""
    meta: dict[str, Any] = {
        "run_id": folder.name,
        "model": "tiny",
        "arch": "dec" if run.n_choices is None else "enc",
        "objective": "next_token" if run.n_choices is None else "multiple_choice",
        "dataset": "tiny",
        "split": "validation",
        "n_examples": len(run.lengths),
        "n_choices": run.n_choices,
        "max_seq_len": run.n_positions,
        "num_layers": run.n_layers,
        "num_heads": run.n_heads,
        "head_dim": run.d_head,
        "dtype": run.dtype,
        "capture": list(run.capture),
        "time": "2026-11-20T10:00:00+00:00",
    }
    if run.layout == "sharded":
        meta |= {
            "format_version": "1.0",
            "num_kv_heads": run.n_kv_heads,
            "d_model": run.d_model,
            "vocab_size": VOCAB,
            "arrays": {
                name: {
                    "shape": list(a.shape),
                    "max_abs": float(np.abs(a[np.isfinite(a)].astype(np.float64)).max(initial=0.0)),
                }
                for name, a in arrays.items()
            },
            "block_rows": run.block_rows,
        }
        seal(folder, meta)
    else:
        (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def seal(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write manifest.json and meta.json over the files as they now lie there."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in {"meta.json", "manifest.json", "index.json"}:
            raw = path.read_bytes()
            files[name] = [len(raw), f"{google_crc32c.value(raw):08x}"]
    manifest = _json({"files": files}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    body = {k: v for k, v in meta.items() if k not in {"digest", "manifest_crc32c"}}
    body["manifest_crc32c"] = f"{google_crc32c.value(manifest):08x}"
    body["digest"] = hashlib.sha256(_json(body).encode()).hexdigest()
    (folder / "meta.json").write_bytes(_json(body).encode())


def reseal(folder: Path) -> None:
    """Make manifest and digests right again after a change, so that only deeper checks can find it."""
    seal(folder, json.loads((folder / "meta.json").read_text(encoding="utf-8")))


def copy_run(source: Path, target: Path) -> Path:
    """Copy a run folder; hard links become files of their own."""
    return Path(shutil.copytree(source, target))


def _json(value: object) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
