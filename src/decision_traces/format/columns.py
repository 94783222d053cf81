"""The columns of a run's `tokens.parquet` that every run has; those of a kind of decision stand in `tasks`."""

from dataclasses import dataclass
from typing import Final

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
