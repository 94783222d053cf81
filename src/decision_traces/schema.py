"""THE format of a run folder: axis names, arrays, columns and conventions. Nothing else knows a file name.

An array is one row of a table (`ARRAYS`); a column is one row of another. Readers, writers and checks are
driven by these tables, so that adding an array means adding a row here and a site in `capture`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

import pyarrow as pa

FORMAT_VERSION: Final = "1.0"

META_FILE: Final = "meta.json"
TOKENS_FILE: Final = "tokens.parquet"
OUTCOMES_FILE: Final = "token_outcomes.parquet"
INDEX_FILE: Final = "index.json"
MANIFEST_FILE: Final = "manifest.json"
ANALYSIS_DIR: Final = "analysis"
FINETUNE_FILE: Final = "finetune_meta.json"  # beside a checkpoint of our trainer

Capture = Literal["attn", "qkv", "hidden", "resid"]
CAPTURES: Final[tuple[Capture, ...]] = ("attn", "qkv", "hidden", "resid")
StorageDtype = Literal["float16", "float32"]

# Axis names: Zarr `dimension_names` and xarray dims.
EXAMPLE, CHOICE, LAYER, DEPTH = "example", "choice", "layer", "depth"
HEAD, KV_HEAD, POSITION, QUERY, KEY = "head", "kv_head", "position", "query", "key"
D_HEAD, D_MODEL = "d_head", "d_model"

# The distinct tensors of one forward pass; each is computed, copied and stored once.
EMBED, POST_ATTN, POST_MLP, FINAL = "embed", "post_attn", "post_mlp", "final"
ATTN_OUT: Final = "attn_out"  # what attention adds to the stream; seen by the certificate, not stored
Q, K, V, ATTN = "q", "k", "v", "attn"


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a run folder.

    Attributes:
        name: What `TraceStore.arrays()` calls it.
        group: The Zarr group's folder in the run.
        key: The array's name in that group.
        axes: Axis names in order.
        capture: The `--capture` word that adds it.
        stage: What of the forward pass it holds: attn, q, k, v, hidden, embed, pre_attn, post_attn, post_mlp.
    """

    name: str
    group: str
    key: str
    axes: tuple[str, ...]
    capture: Capture
    stage: str

    @property
    def path(self) -> str:
        """Where the array lies in the run folder, with forward slashes."""
        return f"{self.group}/{self.key}"

    @property
    def layer_axis(self) -> int | None:
        """Number of the layer or depth axis, None where there is none."""
        return next((i for i, axis in enumerate(self.axes) if axis in {LAYER, DEPTH}), None)

    def source(self, index: int, n_layers: int) -> tuple[str, int]:
        """Return which distinct tensor of the forward pass stands at one index of the layer (or depth) axis.

        `pre_attn[l]`, `post_mlp[l-1]` and `hidden[l]` are the same numbers: they have the same source, and
        the writer stores it once.

        Args:
            index: Index on the layer or depth axis; 0 for an array without one.
            n_layers: Number of layers of the model.

        Returns:
            The site and the layer it belongs to (0 for `embed` and `final`).
        """
        if self.stage == "hidden" and index == n_layers:
            return FINAL, 0
        if self.stage in {"hidden", "pre_attn"}:
            return (EMBED, 0) if index == 0 else (POST_MLP, index - 1)
        return self.stage, index


def _family(prefix: str, lead: tuple[str, ...]) -> list[ArraySpec]:
    """Rows for one side of a model; `enc_mc` has no `self` in its names, as the seed document has it."""
    self_ = prefix if prefix == "enc_mc" else f"{prefix}_self"
    qkv, res = f"{self_}_qkv.zarr", f"{prefix}_res"
    rows = [ArraySpec(f"{self_}_attn", f"{self_}_attn.zarr", "attn", (*lead, LAYER, HEAD, QUERY, KEY), "attn", ATTN)]
    rows += [
        ArraySpec(f"{self_}_{which}", qkv, which, (*lead, LAYER, head, POSITION, D_HEAD), "qkv", which)
        for which, head in ((Q, HEAD), (K, KV_HEAD), (V, KV_HEAD))
    ]
    rows.append(
        ArraySpec(
            f"{prefix}_hidden",
            f"{prefix}_hidden.zarr",
            "h",
            (*lead, DEPTH, POSITION, D_MODEL),
            "hidden",
            "hidden",
        )
    )
    rows.append(ArraySpec(f"{res}_embed", f"{res}_embed.zarr", "x", (*lead, POSITION, D_MODEL), "resid", EMBED))
    rows += [
        ArraySpec(f"{res}_{stage}", f"{res}_{stage}.zarr", "x", (*lead, LAYER, POSITION, D_MODEL), "resid", stage)
        for stage in ("pre_attn", POST_ATTN, POST_MLP)
    ]
    return rows


ARRAYS: Final[Mapping[str, ArraySpec]] = {
    spec.name: spec
    for spec in (
        *_family("dec", (EXAMPLE,)),
        *_family("enc", (EXAMPLE,)),
        *_family("enc_mc", (EXAMPLE, CHOICE)),
    )
}


def arrays_for(prefix: Literal["dec", "enc", "enc_mc"], capture: tuple[Capture, ...]) -> tuple[ArraySpec, ...]:
    """Return the arrays a run of one side keeps for a choice of captures, in the table's order."""
    lead = (EXAMPLE, CHOICE) if prefix == "enc_mc" else (EXAMPLE,)
    return tuple(s for s in _family(prefix, lead) if s.capture in capture)


@dataclass(frozen=True, slots=True)
class Dims:
    """The sizes a run's axes have; with an `ArraySpec` they give a shape."""

    n_examples: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    d_head: int
    d_model: int
    n_positions: int
    n_choices: int = 1

    def shape(self, axes: tuple[str, ...]) -> tuple[int, ...]:
        """Return the shape of an array with these axes."""
        sizes = {
            EXAMPLE: self.n_examples,
            CHOICE: self.n_choices,
            LAYER: self.n_layers,
            DEPTH: self.n_layers + 1,
            HEAD: self.n_heads,
            KV_HEAD: self.n_kv_heads,
            POSITION: self.n_positions,
            QUERY: self.n_positions,
            KEY: self.n_positions,
            D_HEAD: self.d_head,
            D_MODEL: self.d_model,
        }
        return tuple(sizes[a] for a in axes)


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table in the run folder."""

    name: str
    type: pa.DataType
    doc: str


TOKEN_COLUMNS: Final = (
    Column("example_id", pa.string(), "stable over runs: data set, split, row and text"),
    Column("text", pa.string(), "the text as tokenised"),
    Column("input_ids", pa.list_(pa.int32()), "token ids, padded on the right to T"),
    Column("attention_mask", pa.list_(pa.int8()), "1 for tokens, 0 for padding"),
    Column(
        "offset_mapping",
        pa.list_(pa.list_(pa.int32(), 2)),
        "character span of each token, (0, 0) for padding",
    ),
    Column("tokens", pa.list_(pa.string()), "token strings, padded with the pad token"),
    Column("n_tokens", pa.int32(), "tokens that are not padding"),
    Column("truncated", pa.bool_(), "whether the text was longer than T tokens"),
)

# The outcome of predicting one token; with a `next_` prefix in tokens.parquet, bare in token_outcomes.parquet.
_OUTCOME = (
    Column("true_id", pa.int32(), "id of the actual next token"),
    Column("true_token", pa.string(), "the actual next token as text"),
    Column("pred_id", pa.int32(), "id of the most probable token"),
    Column("pred_token", pa.string(), "the most probable token as text"),
    Column("correct", pa.bool_(), "pred_id == true_id"),
    Column("true_prob", pa.float32(), "probability of the actual token"),
    Column("pred_prob", pa.float32(), "probability of the predicted token"),
    Column("entropy", pa.float32(), "entropy of the distribution, nats"),
    Column("true_rank", pa.int32(), "rank of the actual token, 1 = top"),
    Column("margin", pa.float32(), "top-1 minus top-2 logit"),
    Column("topk_ids", pa.list_(pa.int32()), "ids of the k most probable tokens, best first"),
    Column("topk_tokens", pa.list_(pa.string()), "the same as text"),
    Column("topk_probs", pa.list_(pa.float32()), "their probabilities"),
)

NEXT_TOKEN_COLUMNS: Final = (
    Column("next_pos", pa.int32(), "position of the prediction, n_tokens - 2; -1 where there is none"),
    *(Column(f"next_{c.name}", c.type, c.doc) for c in _OUTCOME),
)

POSITION_COLUMNS: Final = (
    Column("row", pa.int32(), "row of the example in tokens.parquet"),
    Column("example_id", pa.string(), "the example"),
    Column("pos", pa.int32(), "position of the prediction; its truth is the token at pos + 1"),
    *_OUTCOME,
)

# Token columns of runs with choices: every choice is tokenised by itself, so they have a level more.
CHOICE_TOKEN_COLUMNS: Final = (
    *(c if c.name in {"example_id", "text"} else Column(c.name, pa.list_(c.type), c.doc) for c in TOKEN_COLUMNS),
    Column(
        "sequence_ids",
        pa.list_(pa.list_(pa.int8())),
        "which text a token (and its offset) belongs to: 0 the question, 1 the choice, -1 neither",
    ),
)

# The outcome of choosing between answers.
_CHOICE_OUTCOME = (
    Column("choice_labels", pa.list_(pa.string()), "letters of the choices"),
    Column("choice_logits", pa.list_(pa.float32()), "score of each choice"),
    Column("choice_probs", pa.list_(pa.float32()), "softmax of the scores over the choices"),
    Column("pred_idx", pa.int32(), "choice with the highest score"),
    Column("pred_label", pa.string(), "its letter"),
    Column("is_correct", pa.bool_(), "whether it is the right one; null without an answer"),
)

ANSWER_COLUMNS: Final = (
    Column("question", pa.string(), "the question without its choices"),
    Column("answerKey", pa.string(), "letter of the right choice; null without an answer"),
    Column("correct_idx", pa.int32(), "the right choice; -1 without an answer"),
    Column("csqa_choices", pa.list_(pa.string()), "the choices' texts"),
    Column("answer_pos", pa.int32(), "position whose logits are the scores: the last of the prompt, n_tokens - 1"),
    Column("choice_token_ids", pa.list_(pa.int32()), "token whose logit is the score of each choice"),
    Column("choice_mass", pa.float32(), "probability of all these tokens together among the whole vocabulary"),
    *_CHOICE_OUTCOME,
)

CHOICE_COLUMNS: Final = (
    Column("question", pa.string(), "the question"),
    Column("answerKey", pa.string(), "letter of the right choice; null without an answer"),
    Column("label_idx", pa.int32(), "the right choice; -1 without an answer"),
    Column("choice_texts", pa.list_(pa.string()), "the choices' texts"),
    *_CHOICE_OUTCOME,
)

RUN_COLUMNS: Final[Mapping[str, tuple[Column, ...]]] = {
    "next_token": (*TOKEN_COLUMNS, *NEXT_TOKEN_COLUMNS),
    "csqa_choice": (*TOKEN_COLUMNS, *ANSWER_COLUMNS),
    "multiple_choice": (*CHOICE_TOKEN_COLUMNS, *CHOICE_COLUMNS),
}
"""Columns of `tokens.parquet` by the run's objective; the data set's own follow."""

CONVENTIONS: Final[Mapping[str, str]] = {
    "padding": "right; position p of an array is token p; padded slots, query rows and keys are zero",
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
    "entropy": "nats",
}
POST_ATTN_CONVENTIONS: Final[Mapping[str, str]] = {
    "stream": "residual stream after attention has written: what the MLP half reads from",
    "derived": "derived: pre_attn + attention output (the block adds attention and MLP in parallel)",
    "post_norm": "after the attention LayerNorm (post-LN family): what the MLP half reads from",
}
