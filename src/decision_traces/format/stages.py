"""What of a forward pass a run can hold: one row a stage (`STAGES`), from which all else about stages is derived.

A new stage is a row here, how it is found in a model (`model.discovery`), and its check (`tracing.self_check`). The
arrays of a run, their shapes, the room for them in memory, the words of `--capture`, what hooks copy, which checks are
made and which sentences stand in `meta.json` follow from the row.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Final, Literal, get_args

# Axis names: Zarr `dimension_names` and xarray dims.
EXAMPLE, CHOICE, LAYER, DEPTH = "example", "choice", "layer", "depth"
HEAD, KV_HEAD, POSITION, QUERY, KEY = "head", "kv_head", "position", "query", "key"
SOURCE: Final = "source"  # positions of the encoder, where a decoder attends to it
D_HEAD, D_VALUE, D_MODEL, D_MLP, VOCAB = "d_head", "d_value", "d_model", "d_mlp", "vocab"
EXPERT: Final = "expert"

# Names of the stages.
EMBED, PRE_ATTN, POST_ATTN, POST_CROSS, POST_MLP = "embed", "pre_attn", "post_attn", "post_cross", "post_mlp"
HIDDEN, FINAL, LOGITS = "hidden", "final", "logits"
Q, K, V, ATTN, HEAD_OUT, ATTN_OUT = "q", "k", "v", "attn", "head_out", "attn_out"
CROSS_Q, CROSS_K, CROSS_V, CROSS_ATTN = "cross_q", "cross_k", "cross_v", "cross_attn"
CROSS_HEAD_OUT, CROSS_ATTN_OUT = "cross_head_out", "cross_attn_out"
MLP_OUT, MLP_ACT = "mlp_out", "mlp_act"
ROUTER: Final = "router"

Capture = Literal["attn", "qkv", "hidden", "resid", "attn_out", "mlp_out", "head_out", "mlp_act", "router", "logits"]
CAPTURES: Final[tuple[Capture, ...]] = get_args(Capture)

Prefix = Literal["dec", "enc", "enc_mc"]
"""What array names begin with; `enc_mc` is an encoder that reads choices."""
_SELF_ATTENTION: Final[Mapping[Prefix, str]] = {"dec": "dec_self", "enc": "enc_self", "enc_mc": "enc_mc"}
"""How names of self-attention begin: `enc_mc` has no `self` in its own, as the seed document has it."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part that some layers of a model may lack, and with it some stages.

    Attributes:
        name: What `Dims` and `LayerPlan` know it by.
        words: What it is called in a sentence: only layers 1 and 3 have ….
    """

    name: str
    words: str


SELF: Final = Part("attention", "self-attention")
CROSS: Final = Part("cross", "cross-attention")
MLP: Final = Part("mlp", "an MLP")
EXPERTS: Final = Part(ROUTER, "a router of experts")

Check = Literal["stream", "state", "write", "neurons", "router", "attention"]
"""Which self-check a stage is held to. stream: the chain of layers, without which there is no trace. state, write: the
two ends of one half of a layer, which add up. neurons: the MLP's last matrix. router: its matrix and its state, once
more. attention: softmax(q·k)·v."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One kind of tensor that a forward pass makes.

    Attributes:
        name: What it is called inside: of a hook point, a check, a convention.
        order: Its rank in the order of computation: within a layer; `once` ones before (below 0) or behind it.
        axes: Axes of its array behind the example (and choice).
        capture: The word of `--capture` that adds its array; None where it has no array of its own.
        array, group: Name of the array, and of its Zarr group; `{side}` is `dec`, `enc` or `enc_mc`, `{self}` what
            the names of self-attention begin with there.
        key: The array's name in its group.
        prefixes: Where it can be.
        part: The part of a layer that it is about, which not all layers may have; None where every layer has it.
        made_of: Of an array that repeats others: the stage at its first index, the one at each index behind it
            (that of the layer before), and maybe the one at its last.
        bounds: The least and the largest value it can have; None where it can have any.
        needs_eager: Whether only eager attention computes it.
        check: Its self-check; None where those of other stages cover it.
        checked_with: Stages that its check needs to have recorded too.
        convention: What it is, in the `meta.json` of runs that hold it; empty where each model has its own sentence.
        always_told: Whether every run has that sentence.
    """

    name: str
    order: int
    axes: tuple[str, ...]
    capture: Capture | None
    array: str = ""
    group: str = ""
    key: str = "x"
    prefixes: tuple[Prefix, ...] = ("dec", "enc", "enc_mc")
    part: Part | None = None
    made_of: tuple[str, ...] = ()
    bounds: tuple[float, float] | None = None
    needs_eager: bool = False
    check: Check | None = None
    checked_with: tuple[str, ...] = ()
    convention: str = ""
    always_told: bool = False

    @property
    def once(self) -> bool:
        """Whether it is one tensor a forward pass, and not one a layer."""
        return LAYER not in self.axes and DEPTH not in self.axes

    @property
    def behind_layers(self) -> bool:
        """Whether it is made when all layers are done."""
        return self.once and self.order > 0

    @property
    def of_source(self) -> bool:
        """Whether its positions are the encoder's, though a decoder's layer has it."""
        return SOURCE in self.axes

    @property
    def by_key(self) -> bool:
        """Whether it has a number for every pair of a query and a key."""
        return KEY in self.axes

    @property
    def plane(self) -> tuple[str, ...]:
        """Axes of one example at one layer: (head, position, width) or (position, width)."""
        return tuple(axis for axis in self.axes if axis not in {LAYER, DEPTH})

    def names(self, prefix: Prefix) -> tuple[str, str]:
        """Return the names of its array and of the group that holds it, on one side."""
        named = {"side": prefix, "self": _SELF_ATTENTION[prefix]}
        array = self.array.format(**named)
        return array, self.group.format(**named) or array


_DEC: Final[tuple[Prefix, ...]] = ("dec",)
_STREAM: Final = (LAYER, POSITION, D_MODEL)
_QUERIES: Final = (LAYER, HEAD, POSITION, D_HEAD)
_HEADS: Final = (LAYER, HEAD, POSITION, D_VALUE)
_PAIRS: Final = (LAYER, HEAD, QUERY, KEY)

# In the order in which arrays are listed.
_ROWS: Final = (
    Stage(
        ATTN, 40, _PAIRS, "attn", "{self}_attn", key="attn",
        part=SELF, needs_eager=True, check="attention", checked_with=(V, HEAD_OUT),
        convention="attention probabilities, (query, key)", always_told=True,
    ),
    Stage(
        Q, 10, _QUERIES, "qkv", "{self}_q", "{self}_qkv", "q", part=SELF, check="attention",
        convention="as it enters the score: after rotary embedding and q/k norms, before attention_scale",
        always_told=True,
    ),
    Stage(
        K, 20, (LAYER, KV_HEAD, POSITION, D_HEAD), "qkv", "{self}_k", "{self}_qkv", "k", part=SELF, check="attention",
        convention="as it enters the score: after rotary embedding and q/k norms, before "
        "repetition for grouped queries",
        always_told=True,
    ),
    Stage(
        V, 30, (LAYER, KV_HEAD, POSITION, D_VALUE), "qkv", "{self}_v", "{self}_qkv", "v", part=SELF, check="attention",
        convention="before repetition for grouped queries", always_told=True,
    ),
    Stage(
        CROSS_ATTN, 110, _PAIRS, "attn", "dec_cross_attn", key="attn", prefixes=_DEC,
        part=CROSS, needs_eager=True, check="attention", checked_with=(CROSS_V, CROSS_HEAD_OUT),
        convention="cross-attention probabilities, (query in the decoder, key in the encoder)",
    ),
    Stage(
        CROSS_Q, 80, _QUERIES, "qkv", "dec_cross_q", "dec_cross_qkv", "q", _DEC, part=CROSS, check="attention",
    ),
    Stage(
        CROSS_K, 90, (LAYER, KV_HEAD, SOURCE, D_HEAD), "qkv", "dec_cross_k", "dec_cross_qkv", "k", _DEC,
        part=CROSS, check="attention",
    ),
    Stage(
        CROSS_V, 100, (LAYER, KV_HEAD, SOURCE, D_VALUE), "qkv", "dec_cross_v", "dec_cross_qkv", "v", _DEC,
        part=CROSS, check="attention",
    ),
    Stage(
        HIDDEN, 0, (DEPTH, POSITION, D_MODEL), "hidden", "{side}_hidden", key="h", made_of=(EMBED, POST_MLP, FINAL),
        convention="hidden[0] embedding output, hidden[l] input of layer l, hidden[L] last hidden state "
        "(after the final norm where there is one)",
        always_told=True,
    ),
    Stage(EMBED, -10, (POSITION, D_MODEL), "resid", "{side}_res_embed", check="stream"),
    Stage(
        PRE_ATTN, 0, _STREAM, "resid", "{side}_res_pre_attn", made_of=(EMBED, POST_MLP),
        convention="residual stream at the input of the layer; pre_attn[l+1] == post_mlp[l] == hidden[l+1] for l+1 < L",
        always_told=True,
    ),
    Stage(POST_ATTN, 70, _STREAM, "resid", "{side}_res_post_attn", part=SELF, check="state"),
    Stage(
        POST_CROSS, 140, _STREAM, "resid", "{side}_res_post_cross", prefixes=_DEC, part=CROSS, check="state",
        convention="decoder's stream after cross-attention has written: what the MLP half reads from",
    ),
    Stage(
        POST_MLP, 170, _STREAM, "resid", "{side}_res_post_mlp", check="stream",
        convention="residual stream at the output of the layer; post_mlp[L-1] is before the final norm",
        always_told=True,
    ),
    Stage(
        ATTN_OUT, 60, _STREAM, "attn_out", "{side}_attn_out", part=SELF, check="write",
        convention="what self-attention adds to the residual stream: after the output projection, and after whatever "
        "norm or factor the model puts between it and the stream",
    ),
    Stage(
        MLP_OUT, 160, _STREAM, "mlp_out", "{side}_mlp_out", part=MLP, check="write",
        convention="what the MLP (or mixture of experts) adds to the residual stream, likewise",
    ),
    Stage(
        HEAD_OUT, 50, _HEADS, "head_out", "{side}_head_out", part=SELF, check="attention",
        convention="attention probabilities times v, head by head, before the output projection",
    ),
    Stage(
        MLP_ACT, 150, (LAYER, POSITION, D_MLP), "mlp_act", "{side}_mlp_act", part=MLP, check="neurons",
        checked_with=(MLP_OUT,),
        convention="the MLP's hidden neurons: what its last matrix reads, after the activation (and gate)",
    ),
    Stage(
        ROUTER, 145, (LAYER, POSITION, EXPERT), "router", "{side}_router", key="p",
        part=EXPERTS, bounds=(0.0, 1.0), check="router",
        convention="router probabilities of all experts, before the choice of the top k: the softmax of the router's "
        "logits in float32, also where the model takes it of the chosen ones alone (of theirs it is the same but "
        "for a factor); each logit's sigmoid where the model scores experts so (rows then need not sum to 1)",
    ),
    Stage(
        CROSS_ATTN_OUT, 130, _STREAM, "attn_out", "dec_cross_attn_out", prefixes=_DEC, part=CROSS, check="write",
        convention="what cross-attention adds to the decoder's residual stream",
    ),
    Stage(
        CROSS_HEAD_OUT, 120, _HEADS, "head_out", "dec_cross_head_out", prefixes=_DEC, part=CROSS, check="attention",
        convention="cross-attention probabilities times v, head by head, before the output projection",
    ),
    Stage(
        LOGITS, 1010, (POSITION, VOCAB), "logits", "{side}_logits", prefixes=("dec", "enc"),
        convention="logits over the vocabulary, as the model returns them",
    ),
    Stage(FINAL, 1000, (POSITION, D_MODEL), None, check="stream"),
)  # fmt: skip

STAGES: Final[Mapping[str, Stage]] = {stage.name: stage for stage in _ROWS}
PARTS: Final = tuple(dict.fromkeys(stage.part for stage in _ROWS if stage.part is not None))


def checked_by(*checks: Check, part: Part | None = None) -> tuple[str, ...]:
    """Return the stages that these self-checks are about, check by check, in the order of computation.

    Args:
        checks: The checks.
        part: Only stages of this part of a layer; None for all.
    """
    rows = sorted(_ROWS, key=lambda stage: stage.order)
    return tuple(s.name for check in checks for s in rows if s.check == check and part in {None, s.part})


def stages_of(*parts: Part) -> tuple[str, ...]:
    """Return the stages that only layers with one of these parts have, part by part."""
    checks = dict.fromkeys(("attention", *get_args(Check)))
    return tuple(name for part in parts for name in checked_by(*checks, part=part))


SELF_PARTS: Final = checked_by("attention", part=SELF)
"""What one call of self-attention sees and gives: q, k, v, the probabilities, each head's output."""
CROSS_PARTS: Final = checked_by("attention", part=CROSS)
"""The same of cross-attention, in the same order."""
STREAM: Final = checked_by("stream")
"""Without these there is no trace."""
HALVES: Final = tuple(name for part in PARTS for name in checked_by("state", "write", part=part))
"""The halves of a layer: the state behind each, and what it writes."""
CHECKED: Final = tuple(dict.fromkeys((*STREAM, *HALVES, *checked_by(*get_args(Check)))))
"""Every stage that a check is about."""

CONVENTIONS: Final[Mapping[str, str]] = {
    "padding": "right; position p of an array is token p; padded slots, query rows and keys are "
    "zero; lists in tables have no padding",
    **{
        stage.name: stage.convention
        for stage in sorted(_ROWS, key=lambda stage: (stage.part is not None, stage.order))
        if stage.always_told
    },
}
"""Conventions in every run's `meta.json`: padding, the stream, then attention."""

PostAttn = Literal["stream", "derived", "post_norm"]
"""What `post_attn` is in a model; the sentences below say it to people."""
POST_ATTN_CONVENTIONS: Final[Mapping[PostAttn, str]] = {
    "stream": "residual stream after attention has written: what the MLP half reads from",
    "derived": "derived: pre_attn + attention output (the block adds attention and MLP in parallel)",
    "post_norm": "after the attention LayerNorm (post-LN family): what the MLP half reads from",
}


def further_conventions(kept_stages: Collection[str]) -> dict[str, str]:
    """Return what the stages are that not every run holds: those of cross-attention last, the stream's first.

    Args:
        kept_stages: The stages that a run holds.
    """
    rows = sorted(_ROWS, key=lambda stage: (stage.part is CROSS, stage.check != "state"))
    return {s.name: s.convention for s in rows if s.name in kept_stages and s.convention and not s.always_told}
