"""THE format of a run folder: axis names, arrays, columns and conventions. Nothing else knows a file name.

An array holds one stage of the forward pass (`stages`); a column of the Parquet tables is one row of a table
(`columns`). Readers, writers and checks are driven by these tables.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Final, Literal

from decision_traces.format.stages import (
    CAPTURES,
    CHOICE,
    CROSS,
    D_HEAD,
    D_MLP,
    D_MODEL,
    D_VALUE,
    DEPTH,
    EXAMPLE,
    HEAD,
    KEY,
    KV_HEAD,
    LAYER,
    MLP,
    POSITION,
    QUERY,
    SELF,
    SOURCE,
    STAGES,
    VOCAB,
    Capture,
    Part,
    Prefix,
    Stage,
)

FORMAT_VERSION: Final = "1.3"

META_FILE: Final = "meta.json"
TOKENS_FILE: Final = "tokens.parquet"
OUTCOMES_FILE: Final = "token_outcomes.parquet"
INDEX_FILE: Final = "index.json"
MANIFEST_FILE: Final = "manifest.json"
UNEMBED_DIR: Final = "unembed"
HEAD_CONFIG_FILE: Final = "config.json"
HEAD_WORDS_FILE: Final = "words.json"
UNEMBED_FILE: Final = "unembed.safetensors"
CHOICE_HEAD_FILE: Final = "choice_head.json"
CHOICE_WEIGHTS_FILE: Final = "choice_head.safetensors"
HEAD_FILES: Final = (HEAD_CONFIG_FILE, HEAD_WORDS_FILE, UNEMBED_FILE, CHOICE_HEAD_FILE, CHOICE_WEIGHTS_FILE)
"""What may lie in `unembed`: the way to logits, or the multiple-choice head, without the model."""
FINETUNE_FILE: Final = "finetune_meta.json"  # beside a checkpoint of our trainer

StorageDtype = Literal["float16", "float32"]
Side = Literal["dec", "enc"]
"""Which stack of layers: the decoder's or the encoder's."""
TextTask = Literal["causal", "masked", "encode", "seq2seq"]
"""What a model that reads texts is for."""
ModelTask = Literal[TextTask, "multiple_choice"]
"""causal: a decoder with a language-modelling head. multiple_choice: an encoder that scores each choice. masked: an
encoder with a masked-language-modelling head. encode: an encoder without a head. seq2seq: an encoder-decoder."""

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
        """Path of the array in the run folder, with forward slashes."""
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
        """Return which distinct tensor of the forward pass is at one number of the layer (or depth) axis.

        `pre_attn[l]`, `post_mlp[l-1]` and `hidden[l]` are the same numbers: they have the same source, and
        the writer stores it once.

        Args:
            number: The model's own number of the layer or depth; 0 for an array without one.
            n_layers: Number of layers of the model (of this side of it).

        Returns:
            The site (see `site`) and the layer it belongs to (0 for embed, final and logits).
        """
        made_of = STAGES[self.stage].made_of
        if not made_of:
            return site(self.side, self.stage), number
        first, between, *last = made_of
        if number == n_layers and last:
            return site(self.side, last[0]), 0
        return (site(self.side, first), 0) if number == 0 else (site(self.side, between), number - 1)

    @property
    def causal(self) -> bool:
        """Whether it is attention of which no query attends to a later key: a decoder's to itself."""
        return self.side == "dec" and STAGES[self.stage].by_key and not self.across

    @property
    def across(self) -> bool:
        """Whether it is of a decoder's cross-attention."""
        return STAGES[self.stage].part is CROSS


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


def _spec(prefix: Prefix, stage: Stage) -> ArraySpec:
    """Return the array that holds a stage on one side."""
    (name, group), capture = stage.names(prefix), stage.capture
    if capture is None:
        raise ValueError(f"{stage.name} has no array of its own")
    side: Side = "dec" if prefix == "dec" else "enc"
    return ArraySpec(name, f"{group}.zarr", stage.key, (*_LEADS[prefix], *stage.axes), capture, stage.name, side)


_LEADS: Final[Mapping[Prefix, tuple[str, ...]]] = {"dec": (EXAMPLE,), "enc": (EXAMPLE,), "enc_mc": (EXAMPLE, CHOICE)}


def arrays_for(prefix: Prefix, capture: Collection[str]) -> tuple[ArraySpec, ...]:
    """Return the arrays that a choice of captures can give on one side, in the table's order.

    Which of them a run has depends on the model too: only encoder-decoders have the `dec_cross_` ones.
    """
    return tuple(_spec(prefix, s) for s in STAGES.values() if prefix in s.prefixes and s.capture in capture)


ARRAYS: Final[Mapping[str, ArraySpec]] = {spec.name: spec for prefix in _LEADS for spec in arrays_for(prefix, CAPTURES)}


_FIRST_PARTS: Final = {SELF: "attention_layers", CROSS: "cross_layers", MLP: "mlp_layers"}
"""Parts that have a field of their own in `Dims`, and a key of their own in `meta.json`."""


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
        widths: Lengths of further axes, by their name; 0 where they are left out.
        parts: Numbers of the layers that have a further part, by its name; left out where all have.
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
    widths: Mapping[str, int] = field(default_factory=dict)
    parts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    def numbers(self, spec: ArraySpec) -> dict[str, tuple[int, ...]]:
        """Return the model's own numbers along an array's layer (or depth) and head axes, in order.

        Of the depths, those in front of and behind a kept layer are kept; of the key-value heads, those that a kept
        query head reads from.
        """
        numbers: dict[str, tuple[int, ...]] = {}
        if LAYER in spec.axes:
            numbers[LAYER] = self.layers_of(spec.stage)
        if DEPTH in spec.axes:
            layers = range(self.n_layers) if self.layers is None else self.layers
            numbers[DEPTH] = tuple(sorted({d for layer in layers for d in (layer, layer + 1)}))
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
        part = STAGES[stage].part
        having = None if part is None else self.having(part)
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

    def with_parts(self, having: Mapping[Part, tuple[int, ...] | None]) -> "Dims":
        """Return the same with the numbers of the layers that have each part; None where all have."""
        further = {p.name: layers for p, layers in having.items() if p not in _FIRST_PARTS and layers is not None}
        first = {field: having.get(part) for part, field in _FIRST_PARTS.items()}
        return replace(self, parts=further, **first)  # type: ignore[arg-type]

    def having(self, part: Part) -> tuple[int, ...] | None:
        """Return the numbers of the layers that have a part; None where all have."""
        if part not in _FIRST_PARTS:
            return self.parts.get(part.name)
        numbers: tuple[int, ...] | None = getattr(self, _FIRST_PARTS[part])
        return numbers

    def shape(self, spec: ArraySpec) -> tuple[int, ...]:
        """Return the shape of an array."""
        numbers, sizes = self.numbers(spec), self._sizes(STAGES[spec.stage])
        return tuple(len(numbers[a]) if a in numbers else sizes.get(a, 0) for a in spec.axes)

    def plane(self, stage: str) -> tuple[int, ...]:
        """Return the shape of one example of a stage at one layer: kept heads and position slots only."""
        row = STAGES[stage]
        sizes = self._sizes(row) | {HEAD: len(self.kept_heads), KV_HEAD: len(self.kept_kv_heads)}
        return tuple(sizes.get(axis, 0) for axis in row.plane)

    def _sizes(self, stage: Stage) -> dict[str, int]:
        """Return the lengths of the axes that the layers and heads kept do not tell."""
        return {
            EXAMPLE: self.n_examples,
            CHOICE: self.n_choices,
            POSITION: self.slots(POSITION),
            QUERY: self.slots(QUERY),
            KEY: self.n_source if stage.part is CROSS else self.n_positions,
            SOURCE: self.n_source,
            D_HEAD: self.d_head,
            D_VALUE: self.d_head if self.d_value is None else self.d_value,
            D_MODEL: self.d_model,
            D_MLP: self.d_mlp,
            VOCAB: self.vocab_size,
            **self.widths,
        }


NEXT_TOKEN_CONVENTIONS: Final[Mapping[str, str]] = {
    "next_pos": "n_tokens - 2; the prediction is made there, its truth is the token at next_pos + 1",
    "after_pos": "n_tokens - 1; the prediction of what comes after the text, whose truth is not known",
    "entropy": "nats",
}
