"""The columns of a run's Parquet tables, by the run's objective; the other half of the format (see `schema`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table in the run folder."""

    name: str
    type: pa.DataType
    doc: str
    optional: bool = False
    """Whether only some runs have it."""


TOKEN_COLUMNS: Final = (
    Column("example_id", pa.string(), "stable over runs: data set, split, row and text"),
    Column("text", pa.string(), "the text as tokenised"),
    Column("input_ids", pa.list_(pa.int32()), "token ids; lists of tokens are filled up to T before format 1.3"),
    Column("attention_mask", pa.list_(pa.int8()), "1 for each token, 0 for padding"),
    Column(
        "offset_mapping",
        pa.list_(pa.list_(pa.int32(), 2)),
        "character span of each token",
    ),
    Column("tokens", pa.list_(pa.string()), "token strings"),
    Column("n_tokens", pa.int32(), "tokens that are not padding"),
    Column("truncated", pa.bool_(), "whether the text was longer than T tokens"),
    Column(
        "token_type_ids",
        pa.list_(pa.int8()),
        "which segment a token is of, as the tokenizer says and the model was told",
        optional=True,
    ),
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

_OF_TRUTH: Final = frozenset({"true_id", "true_token", "correct", "true_prob", "true_rank"})

NEXT_TOKEN_COLUMNS: Final = (
    Column("next_pos", pa.int32(), "position of the prediction, n_tokens - 2; -1 where there is none"),
    *(Column(f"next_{c.name}", c.type, c.doc) for c in _OUTCOME),
    # What comes after all that the model read; no truth is looked for, also not of a text that was cut. Not in runs
    # before format 1.2.
    Column("after_pos", pa.int32(), "position of the last token, n_tokens - 1; -1 where there is none", optional=True),
    *(Column(f"after_{c.name}", c.type, c.doc, optional=True) for c in _OUTCOME if c.name not in _OF_TRUTH),
)


def outcome_of(record: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return one prediction in a row of `tokens.parquet`, named as in `token_outcomes.parquet`; None what it lacks.

    Args:
        record: The row.
        kind: next, or after.
    """
    return {name: record.get(f"{kind}_{name}") for name in ("pos", *(column.name for column in _OUTCOME))}


POSITION_COLUMNS: Final = (
    Column("row", pa.int32(), "row of the example in tokens.parquet"),
    Column("example_id", pa.string(), "the example"),
    Column("pos", pa.int32(), "position of the prediction; its truth is the token at pos + 1"),
    *_OUTCOME,
)

# Token columns of runs with choices: every choice is tokenised by itself, so they have a level more.
CHOICE_TOKEN_COLUMNS: Final = (
    *(
        c if c.name in {"example_id", "text"} else Column(c.name, pa.list_(c.type), c.doc, c.optional)
        for c in TOKEN_COLUMNS
    ),
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

# Of runs that score the choices' whole texts (`--answers text`).
ANSWER_TEXT_COLUMNS: Final = (
    Column("choice_text_ids", pa.list_(pa.list_(pa.int32())), "tokens of each choice behind the prompt", optional=True),
    Column(
        "choice_logprob_sum",
        pa.list_(pa.float32()),
        "log-probability of each choice behind the prompt, nats: the sum over its tokens, which is its score",
        optional=True,
    ),
    Column("choice_logprob_mean", pa.list_(pa.float32()), "the same a token: the sum over their number", optional=True),
    Column(
        "choice_token_logits",
        pa.list_(pa.float32()),
        "logit at answer_pos of the first token of each choice: what a lens sees of it",
        optional=True,
    ),
)

ANSWER_COLUMNS: Final = (
    Column("question", pa.string(), "the question without its choices"),
    Column("answerKey", pa.string(), "letter of the right choice; null without an answer"),
    Column("correct_idx", pa.int32(), "the right choice; -1 without an answer"),
    Column("csqa_choices", pa.list_(pa.string()), "the choices' texts"),
    Column("answer_pos", pa.int32(), "position whose logits are the scores: the last of the prompt, n_tokens - 1"),
    Column("choice_token_ids", pa.list_(pa.int32()), "token of each choice: its letter, or the first of its text"),
    Column("choice_mass", pa.float32(), "probability of all these tokens together among the whole vocabulary"),
    *_CHOICE_OUTCOME,
    *ANSWER_TEXT_COLUMNS,
)

CHOICE_COLUMNS: Final = (
    Column("question", pa.string(), "the question"),
    Column("answerKey", pa.string(), "letter of the right choice; null without an answer"),
    Column("label_idx", pa.int32(), "the right choice; -1 without an answer"),
    Column("choice_texts", pa.list_(pa.string()), "the choices' texts"),
    *_CHOICE_OUTCOME,
)

# What an encoder-decoder's decoder read: its start token and the target, as in training.
TARGET_COLUMNS: Final = (
    Column("target_text", pa.string(), "the target as tokenised; null where there is none"),
    *(
        Column(f"dec_{c.name}", c.type, f"the decoder's: {c.doc}")
        for c in TOKEN_COLUMNS
        if c.name in {"input_ids", "attention_mask", "tokens", "n_tokens", "truncated"}
    ),
)

MASKED_COLUMNS: Final = (
    Column("masked_pos", pa.list_(pa.int32()), "positions of the mask token: put there, or in the text itself"),
    Column(
        "masked_true_ids",
        pa.list_(pa.int32()),
        "ids of the tokens that stood there; null, as are those below, for a mask of the text's own",
    ),
    Column("masked_true_tokens", pa.list_(pa.string()), "the same as text"),
    Column("masked_pred_ids", pa.list_(pa.int32()), "ids of the most probable tokens there"),
    Column("masked_pred_tokens", pa.list_(pa.string()), "the same as text"),
    Column("masked_true_probs", pa.list_(pa.float32()), "probability of the token that stood there"),
    Column("masked_pred_probs", pa.list_(pa.float32()), "probability of the predicted token"),
    Column("masked_entropies", pa.list_(pa.float32()), "entropy of the distribution, nats"),
    Column("masked_true_ranks", pa.list_(pa.int32()), "rank of the token that stood there, 1 = top"),
    Column("masked_correct", pa.list_(pa.bool_()), "masked_pred_ids == masked_true_ids"),
)

RUN_COLUMNS: Final[Mapping[str, tuple[Column, ...]]] = {
    "next_token": (*TOKEN_COLUMNS, *NEXT_TOKEN_COLUMNS),
    "target": (*TOKEN_COLUMNS, *TARGET_COLUMNS, *NEXT_TOKEN_COLUMNS),
    "masked": (*TOKEN_COLUMNS, *MASKED_COLUMNS),
    "encode": TOKEN_COLUMNS,
    "csqa_choice": (*TOKEN_COLUMNS, *ANSWER_COLUMNS),
    "multiple_choice": (*CHOICE_TOKEN_COLUMNS, *CHOICE_COLUMNS),
}
"""Columns of `tokens.parquet` by the run's objective; the data set's own follow."""
