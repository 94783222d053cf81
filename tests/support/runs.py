"""Small run folders of random numbers, written with plain Zarr and pandas: independent of the run writer.

What is written is returned beside the folder, so that tests compare the reader with NumPy and nothing else.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import zarr
from crc32c import crc32c
from zarr.codecs import BytesCodec, Crc32cCodec, ShardingCodec, ZstdCodec

from support.run_arrays import keeps_all_positions, kept_numbers, random_arrays, whole_arrays
from support.run_tables import token_table
from support.tiny_run import (
    CHOICES,
    DECODER,
    ENCDEC,
    EXPERTS,
    HYBRID,
    SELECTED,
    VOCAB,
    Layout,
    Place,
    TinyRun,
    layout_of,
)

__all__ = [
    "CHOICES",
    "DECODER",
    "ENCDEC",
    "HYBRID",
    "SELECTED",
    "VOCAB",
    "Layout",
    "TinyRun",
    "build_run",
    "copy_run",
    "random_arrays",
    "reseal",
    "seal",
    "token_table",
    "whole_arrays",
]


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
        if run.layout == "sharded":
            _write_coordinates(folder / group, name, axes, run)
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
    if run.format_version == "1.0":
        axes = tuple("d_head" if axis == "d_value" else axis for axis in axes)
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


def _write_coordinates(group: Path, name: str, axes: tuple[str, ...], run: TinyRun) -> None:
    """Write the numbers along the axes that are not whole."""
    numbers = kept_numbers(name, axes, run)
    whole = kept_numbers(name, axes, replace(run, layers=None, heads=None, attention_layers=None, mlp_layers=None))
    coordinates = {axis: kept for axis, kept in numbers.items() if kept != whole[axis]}
    if isinstance(run.positions, tuple) and not keeps_all_positions(name, run):
        coordinates |= {axis: list(run.positions) for axis in ("position", "query") if axis in axes}
    parent = zarr.open_group(group, mode="a", zarr_format=3)
    for axis, kept in coordinates.items():
        if axis not in parent:
            data = np.asarray(kept, dtype=np.int32)
            parent.create_array(axis, data=data, fill_value=-1, dimension_names=(axis,))


def _link(folder: Path, run: TinyRun) -> None:
    """Make pre_attn[l] and hidden[l] hard links of post_mlp[l-1]."""
    names = layout_of(run)
    for prefix in run.prefixes:
        source = names.get(f"{prefix}res_post_mlp")
        if source is None or run.layers is not None:
            continue
        for name in (f"{prefix}res_pre_attn", f"{prefix}hidden"):
            if name in names:
                _link_layers(folder, run, names[name], source)


def _link_layers(folder: Path, run: TinyRun, place: Place, source: Place) -> None:
    encoder = place[0].startswith("enc_") and run.source_lengths is not None
    n_layers = run.n_source_layers if encoder else run.n_layers
    for layer in range(1, n_layers):
        for block in range(-(-len(run.lengths) // run.block_rows)):
            target, original = (folder / _shard(run, p, block, at) for p, at in ((place, layer), (source, layer - 1)))
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
        "arch": "encdec" if run.source_lengths else "enc" if run.n_choices else run.side,
        "objective": run.task,
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
            "format_version": run.format_version,
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
        if run.format_version != "1.0":
            meta |= {"sides": _sides(run), "missing": dict(run.missing)}
        if run.format_version in {"1.2", "1.3"}:
            meta |= {"post_attn": "stream"}
        if not run.tokens_filled:
            meta |= {"pad_id": 0, "pad_token": "<pad>"}
        seal(folder, meta)
    else:
        (folder / "meta.json").write_text(json.dumps(meta), encoding="utf-8")


def _selection(run: TinyRun) -> dict[str, Any]:
    return {k: list(v) if isinstance(v := getattr(run, k), tuple) else v for k in ("layers", "heads", "positions")}


def _sides(run: TinyRun) -> dict[str, dict[str, Any]]:
    """Return the sizes of each side, by the names that the meta has for them."""
    sizes: dict[str, Any] = {
        "n_examples": len(run.lengths),
        "n_layers": run.n_layers,
        "n_heads": run.n_heads,
        "n_kv_heads": run.n_kv_heads,
        "d_head": run.d_head,
        "d_model": run.d_model,
        "n_positions": run.n_positions,
        "n_choices": run.n_choices or 1,
        "d_value": run.d_value,
        "d_mlp": run.d_mlp,
        "n_source": run.n_source if run.source_lengths else 0,
        "vocab_size": VOCAB,
        "attention_layers": run.attention_layers,
        "cross_layers": None,
        "mlp_layers": run.mlp_layers,
        **({"widths": {"expert": EXPERTS}} if "router" in run.capture else {}),
        **_selection(run),
    }
    lists = {k: list(v) if isinstance(v, tuple) else v for k, v in sizes.items()}
    if not run.source_lengths:
        return {run.prefixes[0].split("_")[0]: lists}
    own = {"n_layers": run.n_source_layers, "n_positions": run.n_source, "n_source": 0, "positions": "all"}
    kept = None if run.layers is None else [i for i in run.layers if i < run.n_source_layers]
    return {"dec": lists, "enc": lists | own | {"layers": kept}}


def seal(folder: Path, meta: Mapping[str, Any]) -> None:
    """Write manifest.json and meta.json over the files as they now lie there."""
    files = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and name not in {"meta.json", "manifest.json", "index.json"}:
            raw = path.read_bytes()
            files[name] = [len(raw), f"{crc32c(raw):08x}"]
    manifest = _json({"files": files}).encode()
    (folder / "manifest.json").write_bytes(manifest)
    body = {k: v for k, v in meta.items() if k not in {"digest", "manifest_crc32c"}}
    body["manifest_crc32c"] = f"{crc32c(manifest):08x}"
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
