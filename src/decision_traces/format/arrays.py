"""THE format of a run folder: axis names, arrays, columns and conventions. Nothing else knows a file name.

An array is one row of a table (`ARRAYS`); a column of the Parquet tables is one row of another (`columns`). Readers,
writers and checks are driven by these tables, so that adding an array means adding a row here and a site in `capture`.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal

FORMAT_VERSION: Final = "1.3"

META_FILE: Final = "meta.json"
TOKENS_FILE: Final = "tokens.parquet"
OUTCOMES_FILE: Final = "token_outcomes.parquet"
INDEX_FILE: Final = "index.json"
MANIFEST_FILE: Final = "manifest.json"
ANALYSIS_DIR: Final = "analysis"
UNEMBED_DIR: Final = "unembed"
HEAD_CONFIG_FILE: Final = "config.json"
HEAD_WORDS_FILE: Final = "words.json"
UNEMBED_FILE: Final = "unembed.safetensors"
CHOICE_HEAD_FILE: Final = "choice_head.json"
CHOICE_WEIGHTS_FILE: Final = "choice_head.safetensors"
HEAD_FILES: Final = (HEAD_CONFIG_FILE, HEAD_WORDS_FILE, UNEMBED_FILE, CHOICE_HEAD_FILE, CHOICE_WEIGHTS_FILE)
"""What may lie in `unembed`: the way to logits, or the multiple-choice head, without the model."""
FINETUNE_FILE: Final = "finetune_meta.json"  # beside a checkpoint of our trainer

RECORD_FILE: Final = "record.json"
RESULTS: Final[Mapping[str, tuple[str, ...]]] = {
    "lens": (
        "lens.parquet", "depth.parquet", "choice_race.parquet", "lens.zarr", "words.parquet",
        "lens_trajectories.png", "choice_race.png",
    ),
    "attribution": ("attribution.parquet", "contributions.zarr", "words.parquet", "attribution.png"),
    "attention": ("attention_heads.parquet", "attention_heads.png"),
    "compare": (
        "compare.parquet", "attention_heads.parquet", "probe.parquet", "calibration.parquet",
        "compare.png", "attention_heads.png", "probe.png", "calibration.png",
    ),
    "compare_by": ("compare_by.parquet", "probe_by.parquet", "compare_by.png", "probe_by.png"),
}  # fmt: skip
"""Command to what its result, the folder `analysis/COMMAND`, may hold beside its `record.json`."""

Capture = Literal["attn", "qkv", "hidden", "resid", "attn_out", "mlp_out", "head_out", "mlp_act", "logits"]
CAPTURES: Final[tuple[Capture, ...]] = (
    "attn", "qkv", "hidden", "resid", "attn_out", "mlp_out", "head_out", "mlp_act", "logits",
)  # fmt: skip
StorageDtype = Literal["float16", "float32"]
Side = Literal["dec", "enc"]
"""Which stack of layers: the decoder's or the encoder's."""
Prefix = Literal["dec", "enc", "enc_mc"]
"""What array names begin with; `enc_mc` is an encoder that reads choices."""

Task = Literal["causal", "multiple_choice", "masked", "encode", "seq2seq"]
"""causal: a decoder with a language-modelling head. multiple_choice: an encoder that scores each choice. masked: an
encoder with a masked-language-modelling head. encode: an encoder without a head. seq2seq: an encoder-decoder."""

# Axis names: Zarr `dimension_names` and xarray dims.
EXAMPLE, CHOICE, LAYER, DEPTH = "example", "choice", "layer", "depth"
HEAD, KV_HEAD, POSITION, QUERY, KEY = "head", "kv_head", "position", "query", "key"
SOURCE: Final = "source"  # positions of the encoder, where a decoder attends to it
D_HEAD, D_VALUE, D_MODEL, D_MLP, VOCAB = "d_head", "d_value", "d_model", "d_mlp", "vocab"

# The distinct tensors of one forward pass; each is computed, copied and stored once. One side's stages:
EMBED, PRE_ATTN, POST_ATTN, POST_CROSS, POST_MLP = "embed", "pre_attn", "post_attn", "post_cross", "post_mlp"
HIDDEN, FINAL, LOGITS = "hidden", "final", "logits"
Q, K, V, ATTN, HEAD_OUT, ATTN_OUT = "q", "k", "v", "attn", "head_out", "attn_out"
CROSS_Q, CROSS_K, CROSS_V, CROSS_ATTN = "cross_q", "cross_k", "cross_v", "cross_attn"
CROSS_HEAD_OUT, CROSS_ATTN_OUT = "cross_head_out", "cross_attn_out"
MLP_OUT, MLP_ACT = "mlp_out", "mlp_act"

SELF_PARTS: Final = (Q, K, V, ATTN, HEAD_OUT)
"""What one call of self-attention sees and gives; `CROSS_PARTS` of cross-attention, in the same order."""
CROSS_PARTS: Final = (CROSS_Q, CROSS_K, CROSS_V, CROSS_ATTN, CROSS_HEAD_OUT)

SELF_STAGES: Final = frozenset({Q, K, V, ATTN, HEAD_OUT, ATTN_OUT, POST_ATTN})
"""Stages that only layers with self-attention have."""
CROSS_STAGES: Final = frozenset({CROSS_Q, CROSS_K, CROSS_V, CROSS_ATTN, CROSS_HEAD_OUT, CROSS_ATTN_OUT, POST_CROSS})
"""Stages that only layers with cross-attention have."""
MLP_STAGES: Final = frozenset({MLP_OUT, MLP_ACT})
"""Stages that only layers with an MLP have."""

Positions = Literal["all", "next", "last"] | tuple[int, ...]
"""Which token positions a run keeps: all, the one where the prediction is made, the last token, or these."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a run folder.

    Attributes:
        name: What `TraceStore.arrays()` calls it.
        group: The Zarr group's folder in the run.
        key: The array's name in that group.
        axes: Axis names in order.
        capture: The `--capture` word that adds it.
        stage: What of the forward pass it holds; one of the stage names above.
        side: Whose stack of layers it is about.
    """

    name: str
    group: str
    key: str
    axes: tuple[str, ...]
    capture: Capture
    stage: str
    side: Side

    @property
    def path(self) -> str:
        """Where the array lies in the run folder, with forward slashes."""
        return f"{self.group}/{self.key}"

    @property
    def layer_axis(self) -> int | None:
        """Number of the layer or depth axis, None where there is none."""
        return next((i for i, axis in enumerate(self.axes) if axis in {LAYER, DEPTH}), None)

    @property
    def position_axis(self) -> int:
        """Number of the axis of token positions; of the queries for attention."""
        return next(i for i, axis in enumerate(self.axes) if axis in {POSITION, QUERY, SOURCE})

    def source(self, number: int, n_layers: int) -> tuple[str, int]:
        """Return which distinct tensor of the forward pass stands at one number of the layer (or depth) axis.

        `pre_attn[l]`, `post_mlp[l-1]` and `hidden[l]` are the same numbers: they have the same source, and
        the writer stores it once.

        Args:
            number: The model's own number of the layer or depth; 0 for an array without one.
            n_layers: Number of layers of the model (of this side of it).

        Returns:
            The site (see `site`) and the layer it belongs to (0 for embed, final and logits).
        """
        if self.stage == HIDDEN and number == n_layers:
            return site(self.side, FINAL), 0
        if self.stage in {HIDDEN, PRE_ATTN}:
            return (site(self.side, EMBED), 0) if number == 0 else (site(self.side, POST_MLP), number - 1)
        return site(self.side, self.stage), number


Site = tuple[str, int]
"""A distinct tensor of the forward pass: its name (`site`) and the model's own number of its layer."""


def site(side: Side, stage: str) -> str:
    """Return the name of a distinct tensor: side and stage."""
    return f"{side}.{stage}"


def stage_of(name: str) -> str:
    """Return the stage of a site."""
    return name.split(".", 1)[1]


def side_of(name: str) -> Side:
    """Return the side of a site."""
    return "dec" if name.startswith("dec.") else "enc"


def _family(prefix: Prefix, lead: tuple[str, ...]) -> list[ArraySpec]:
    """Rows for one side of a model; `enc_mc` has no `self` in its names, as the seed document has it."""
    side: Side = "dec" if prefix == "dec" else "enc"
    stream = (*lead, LAYER, POSITION, D_MODEL)

    def row(name: str, group: str, key: str, axes: tuple[str, ...], capture: Capture, stage: str) -> ArraySpec:
        return ArraySpec(name, f"{group}.zarr", key, axes, capture, stage, side)

    def attention(name: str, stages: tuple[str, ...], source: str) -> list[ArraySpec]:
        attn, q, k, v = stages
        by_head = {q: (HEAD, POSITION, D_HEAD), k: (KV_HEAD, source, D_HEAD), v: (KV_HEAD, source, D_VALUE)}
        rows = [row(f"{name}_attn", f"{name}_attn", "attn", (*lead, LAYER, HEAD, QUERY, KEY), "attn", attn)]
        for stage, axes in by_head.items():
            key = stage[-1]
            rows.append(row(f"{name}_{key}", f"{name}_qkv", key, (*lead, LAYER, *axes), "qkv", stage))
        return rows

    def whole(word: str, axes: tuple[str, ...], capture: Capture, stage: str, key: str = "x") -> ArraySpec:
        return row(f"{prefix}_{word}", f"{prefix}_{word}", key, axes, capture, stage)

    by_head = (*lead, LAYER, HEAD, POSITION, D_VALUE)
    rows = attention(prefix if prefix == "enc_mc" else f"{prefix}_self", (ATTN, Q, K, V), POSITION)
    if prefix == "dec":
        rows += attention("dec_cross", (CROSS_ATTN, CROSS_Q, CROSS_K, CROSS_V), SOURCE)
    rows.append(whole("hidden", (*lead, DEPTH, POSITION, D_MODEL), "hidden", HIDDEN, "h"))
    rows.append(whole("res_embed", (*lead, POSITION, D_MODEL), "resid", EMBED))
    stages = (PRE_ATTN, POST_ATTN, *((POST_CROSS,) if prefix == "dec" else ()), POST_MLP)
    rows += [whole(f"res_{stage}", stream, "resid", stage) for stage in stages]
    rows += [whole("attn_out", stream, "attn_out", ATTN_OUT), whole("mlp_out", stream, "mlp_out", MLP_OUT)]
    rows += [whole("head_out", by_head, "head_out", HEAD_OUT)]
    rows += [whole("mlp_act", (*lead, LAYER, POSITION, D_MLP), "mlp_act", MLP_ACT)]
    if prefix == "dec":
        rows += [
            whole("cross_attn_out", stream, "attn_out", CROSS_ATTN_OUT),
            whole("cross_head_out", by_head, "head_out", CROSS_HEAD_OUT),
        ]
    if prefix != "enc_mc":
        rows.append(whole("logits", (*lead, POSITION, VOCAB), "logits", LOGITS))
    return rows


_LEADS: Final[Mapping[Prefix, tuple[str, ...]]] = {"dec": (EXAMPLE,), "enc": (EXAMPLE,), "enc_mc": (EXAMPLE, CHOICE)}

ARRAYS: Final[Mapping[str, ArraySpec]] = {
    spec.name: spec for prefix, lead in _LEADS.items() for spec in _family(prefix, lead)
}


def arrays_for(prefix: Prefix, capture: Collection[str]) -> tuple[ArraySpec, ...]:
    """Return the arrays that a choice of captures can give on one side, in the table's order.

    Which of them a run has depends on the model too: only encoder-decoders have the `dec_cross_` ones.
    """
    return tuple(s for s in _family(prefix, _LEADS[prefix]) if s.capture in capture)


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes of one side of a run, and which of its layers, heads and positions are kept.

    Attributes:
        n_examples: Rows of the run.
        n_layers, n_heads, n_kv_heads, d_head, d_model: Sizes of the model (of this side), whatever is kept. Where
            layers differ in their heads, the largest; smaller ones are filled up with zeros.
        n_positions: T of this side, in tokens.
        n_choices: Choices of an example.
        d_value: Width of a value head; None where it is `d_head`.
        d_mlp: Width of the MLP's hidden layer; 0 where there is none of one width.
        n_source: T of the encoder, where a decoder attends to it.
        vocab_size: Width of the logits.
        attention_layers, cross_layers, mlp_layers: Numbers of the layers that have self-attention, cross-attention,
            an MLP; None where all have.
        layers: Numbers of the layers kept, ascending; None for all.
        heads: Numbers of the query heads kept, ascending; None for all.
        positions: Which token positions are kept.
    """

    n_examples: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    n_positions: int
    n_choices: int = 1
    d_value: int | None = None
    d_mlp: int = 0
    n_source: int = 0
    vocab_size: int = 0
    attention_layers: tuple[int, ...] | None = None
    cross_layers: tuple[int, ...] | None = None
    mlp_layers: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    heads: tuple[int, ...] | None = None
    positions: Positions = "all"

    def numbers(self, spec: ArraySpec) -> dict[str, tuple[int, ...]]:
        """Return the model's own numbers along an array's layer (or depth) and head axes, in order.

        Of the depths, those in front of and behind a kept layer are kept; of the key-value heads, those that a kept
        query head reads from.
        """
        numbers: dict[str, tuple[int, ...]] = {}
        if LAYER in spec.axes:
            numbers[LAYER] = self.layers_of(spec.stage)
        if DEPTH in spec.axes:
            kept = range(self.n_layers) if self.layers is None else self.layers
            numbers[DEPTH] = tuple(sorted({d for layer in kept for d in (layer, layer + 1)}))
        if HEAD in spec.axes:
            numbers[HEAD] = self.kept_heads
        if KV_HEAD in spec.axes:
            numbers[KV_HEAD] = self.kept_kv_heads
        return numbers

    @property
    def kept_heads(self) -> tuple[int, ...]:
        """Numbers of the query heads kept."""
        return tuple(range(self.n_heads)) if self.heads is None else self.heads

    @property
    def kept_kv_heads(self) -> tuple[int, ...]:
        """Numbers of the key-value heads that a kept query head reads from."""
        group = max(1, self.n_heads // max(1, self.n_kv_heads))
        return tuple(sorted({head // group for head in self.kept_heads}))

    def layers_of(self, stage: str) -> tuple[int, ...]:
        """Return the numbers of the kept layers that have a stage."""
        having = {
            **dict.fromkeys(SELF_STAGES, self.attention_layers),
            **dict.fromkeys(CROSS_STAGES, self.cross_layers),
            **dict.fromkeys(MLP_STAGES, self.mlp_layers),
        }.get(stage)
        return tuple(
            layer
            for layer in (range(self.n_layers) if self.layers is None else self.layers)
            if having is None or layer in having
        )

    def slots(self, axis: str) -> int:
        """Return the length of a position, query, key or source axis."""
        if axis == SOURCE:
            return self.n_source
        if axis == KEY or self.positions == "all":
            return self.n_positions
        return 1 if isinstance(self.positions, str) else len(self.positions)

    def shape(self, spec: ArraySpec) -> tuple[int, ...]:
        """Return the shape of an array."""
        numbers = self.numbers(spec)
        sizes = {
            EXAMPLE: self.n_examples,
            CHOICE: self.n_choices,
            POSITION: self.slots(POSITION),
            QUERY: self.slots(QUERY),
            KEY: self.n_source if spec.stage == CROSS_ATTN else self.n_positions,
            SOURCE: self.n_source,
            D_HEAD: self.d_head,
            D_VALUE: self.d_head if self.d_value is None else self.d_value,
            D_MODEL: self.d_model,
            D_MLP: self.d_mlp,
            VOCAB: self.vocab_size,
        }
        return tuple(len(numbers[a]) if a in numbers else sizes[a] for a in spec.axes)


CONVENTIONS: Final[Mapping[str, str]] = {
    "padding": "right; position p of an array is token p; padded slots, query rows and keys are "
    "zero; lists in tables have no padding",
    "hidden": "hidden[0] embedding output, hidden[l] input of layer l, hidden[L] last hidden state "
    "(after the final norm where there is one)",
    "pre_attn": "residual stream at the input of the layer; pre_attn[l+1] == post_mlp[l] == hidden[l+1] for l+1 < L",
    "post_mlp": "residual stream at the output of the layer; post_mlp[L-1] is before the final norm",
    "q": "as it enters the score: after rotary embedding and q/k norms, before attention_scale",
    "k": "as it enters the score: after rotary embedding and q/k norms, before repetition for grouped queries",
    "v": "before repetition for grouped queries",
    "attn": "attention probabilities, (query, key)",
}
NEXT_TOKEN_CONVENTIONS: Final[Mapping[str, str]] = {
    "next_pos": "n_tokens - 2; the prediction is made there, its truth is the token at next_pos + 1",
    "after_pos": "n_tokens - 1; the prediction of what comes after the text, whose truth is not known",
    "entropy": "nats",
}
STAGE_CONVENTIONS: Final[Mapping[str, str]] = {
    ATTN_OUT: "what self-attention adds to the residual stream: after the output projection, and after whatever norm "
    "or factor the model puts between it and the stream",
    MLP_OUT: "what the MLP (or mixture of experts) adds to the residual stream, likewise",
    HEAD_OUT: "attention probabilities times v, head by head, before the output projection",
    MLP_ACT: "the MLP's hidden neurons: what its last matrix reads, after the activation (and gate)",
    LOGITS: "logits over the vocabulary, as the model returns them",
    POST_CROSS: "decoder's stream after cross-attention has written: what the MLP half reads from",
    CROSS_ATTN: "cross-attention probabilities, (query in the decoder, key in the encoder)",
    CROSS_ATTN_OUT: "what cross-attention adds to the decoder's residual stream",
    CROSS_HEAD_OUT: "cross-attention probabilities times v, head by head, before the output projection",
}
"""What arrays hold that not every run has."""

PostAttn = Literal["stream", "derived", "post_norm"]
"""What `post_attn` is in a model; the sentences below say it to people."""
POST_ATTN_CONVENTIONS: Final[Mapping[PostAttn, str]] = {
    "stream": "residual stream after attention has written: what the MLP half reads from",
    "derived": "derived: pre_attn + attention output (the block adds attention and MLP in parallel)",
    "post_norm": "after the attention LayerNorm (post-LN family): what the MLP half reads from",
}
