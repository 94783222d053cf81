"""What a small run for tests holds, and where its arrays lie: spelled out here, independently of the schema."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

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
        side: Whose arrays a run without choices has.
        objective: Of the run; by default the one that goes with choices, sources or neither.
        source_lengths: Tokens that the encoder reads of each example; makes an encoder-decoder, whose encoder has
            `n_source_layers` layers and `n_source` positions.
        layers, heads, positions: What is kept, as in `Dims`.
        attention_layers, mlp_layers: Layers that have attention or an MLP, in a hybrid model.
        d_value, d_mlp: Widths of a value head and of the MLP.
        missing: Arrays that the captures would give and this model cannot, with the reason.
        format_version: "1.3" as written today; "1.2", whose token columns are filled up to T; "1.1", which says by a
            sentence what `post_attn` is; or "1.0", which has no `sides` in its meta and calls the width of values
            d_head.
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
    side: Literal["dec", "enc"] = "dec"
    objective: str | None = None
    source_lengths: tuple[int, ...] | None = None
    n_source_layers: int = 2
    n_source: int = 7
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    positions: Literal["all", "next", "last"] | tuple[int, ...] = "all"
    attention_layers: tuple[int, ...] | None = None
    mlp_layers: tuple[int, ...] | None = None
    d_value: int | None = None
    d_mlp: int = 10
    missing: tuple[tuple[str, str], ...] = ()
    format_version: Literal["1.0", "1.1", "1.2", "1.3"] = "1.3"
    layout: Layout = "sharded"
    block_rows: int = 2
    links: bool = True
    seed: int = 0

    @property
    def tokens_filled(self) -> bool:
        """Whether token columns are filled up to T."""
        return self.layout != "sharded" or self.format_version != "1.3"

    @property
    def n_choices(self) -> int | None:
        """Choices per example, or None for a decoder run."""
        return len(self.lengths[0]) if isinstance(self.lengths[0], tuple) else None

    @property
    def task(self) -> str:
        """The objective."""
        if self.objective is not None:
            return self.objective
        return "multiple_choice" if self.n_choices else "target" if self.source_lengths else "next_token"

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What the names of the arrays begin with."""
        if self.n_choices:
            return ("enc_mc_",)
        return ("dec_", "enc_") if self.source_lengths else (f"{self.side}_",)

    @property
    def spread(self) -> np.ndarray:
        """Tokens per example, (N,) or (N, C)."""
        return np.asarray(self.lengths, dtype=np.int64)


DECODER = TinyRun(lengths=(5, 2, 1, 6, 3))
CHOICES = TinyRun(lengths=((5, 2), (3, 3), (1, 6)), n_layers=2)
SELECTED = TinyRun(n_layers=6, layers=(0, 3, 5), heads=(1, 3), positions=(0, 3))
HYBRID = TinyRun(n_layers=4, attention_layers=(1, 3), mlp_layers=(0, 1, 2))
ENCDEC = TinyRun(lengths=(5, 2, 1, 6, 3), source_lengths=(2, 7, 4, 1, 3))

VOCAB = 50
EXPERTS = 7
_HEAD, _KV, _STREAM = "layer head position", "layer kv_head position", "layer position d_model"
# name: (group, key, axes, capture); spelled out here so that a slip in the schema's table cannot hide.
_BODY: dict[str, tuple[str, str, str, str]] = {
    "self_attn": ("self_attn.zarr", "attn", "layer head query key", "attn"),
    "self_q": ("self_qkv.zarr", "q", f"{_HEAD} d_head", "qkv"),
    "self_k": ("self_qkv.zarr", "k", f"{_KV} d_head", "qkv"),
    "self_v": ("self_qkv.zarr", "v", f"{_KV} d_value", "qkv"),
    "hidden": ("hidden.zarr", "h", "depth position d_model", "hidden"),
    "res_embed": ("res_embed.zarr", "x", "position d_model", "resid"),
    "res_pre_attn": ("res_pre_attn.zarr", "x", _STREAM, "resid"),
    "res_post_attn": ("res_post_attn.zarr", "x", _STREAM, "resid"),
    "res_post_mlp": ("res_post_mlp.zarr", "x", _STREAM, "resid"),
    "attn_out": ("attn_out.zarr", "x", _STREAM, "attn_out"),
    "mlp_out": ("mlp_out.zarr", "x", _STREAM, "mlp_out"),
    "head_out": ("head_out.zarr", "x", f"{_HEAD} d_value", "head_out"),
    "mlp_act": ("mlp_act.zarr", "x", "layer position d_mlp", "mlp_act"),
    "router": ("router.zarr", "p", "layer position expert", "router"),
    "logits": ("logits.zarr", "x", "position vocab", "logits"),
}
_CROSS: dict[str, tuple[str, str, str, str]] = {
    "cross_attn": ("cross_attn.zarr", "attn", "layer head query key", "attn"),
    "cross_q": ("cross_qkv.zarr", "q", f"{_HEAD} d_head", "qkv"),
    "cross_k": ("cross_qkv.zarr", "k", "layer kv_head source d_head", "qkv"),
    "cross_v": ("cross_qkv.zarr", "v", "layer kv_head source d_value", "qkv"),
    "res_post_cross": ("res_post_cross.zarr", "x", _STREAM, "resid"),
    "cross_attn_out": ("cross_attn_out.zarr", "x", _STREAM, "attn_out"),
    "cross_head_out": ("cross_head_out.zarr", "x", f"{_HEAD} d_value", "head_out"),
}
ATTENTION_LAYERS_ONLY = ("self_attn", "self_q", "self_k", "self_v", "res_post_attn", "attn_out", "head_out")
MLP_LAYERS_ONLY = ("mlp_out", "mlp_act")

Place = tuple[str, str, tuple[str, ...]]
"""Group, key and axes of an array."""


def bodies(prefix: str, run: TinyRun) -> dict[str, tuple[str, str, str, str]]:
    """Return the arrays one side of a run could hold, by name without the prefix."""
    both = _BODY | (_CROSS if prefix == "dec_" and run.source_lengths else {})
    return {k: v for k, v in both.items() if not (prefix == "enc_mc_" and k == "logits")}


def full_name(prefix: str, body: str) -> str:
    """Return the name of an array, or of its group: `enc_mc` has no `self` in them."""
    return prefix + (body.removeprefix("self_") if prefix == "enc_mc_" else body)


def layout_of(run: TinyRun) -> dict[str, Place]:
    """Return name to (group, key, axes) of the arrays a run holds."""
    lead = ("example",) if run.n_choices is None else ("example", "choice")
    places: dict[str, Place] = {}
    for prefix in run.prefixes:
        for body, (group, key, axes, capture) in bodies(prefix, run).items():
            if capture in run.capture and full_name(prefix, body) not in dict(run.missing):
                places[full_name(prefix, body)] = full_name(prefix, group), key, (*lead, *axes.split())
    return places
