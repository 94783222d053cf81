"""Sequence to sequence: what a decoder predicts of a target while it attends to a text that an encoder read."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import pyarrow as pa

from decision_traces.format.columns import TOKEN_COLUMNS, Column
from decision_traces.tasks.next_token import NEXT_TOKEN, NEXT_TOKEN_COLUMNS

# What an encoder-decoder's decoder read: its start token and the target, as in training.
TARGET_COLUMNS: Final = (
    Column("target_text", pa.string(), "the target as tokenised; null where there is none"),
    *(
        Column(f"dec_{c.name}", c.type, f"the decoder's: {c.doc}")
        for c in TOKEN_COLUMNS
        if c.name in {"input_ids", "attention_mask", "tokens", "n_tokens", "truncated"}
    ),
)


def _target(values: Mapping[str, Any], choice: int) -> tuple[str, ...]:
    """Return the target, whose tokens the decoder reads."""
    return (str(values.get("target_text") or ""),)


SEQUENCE_TO_SEQUENCE: Final = replace(
    NEXT_TOKEN,
    objective="target",
    run_word="seq2seq",
    model="seq2seq",
    prefixes=("enc", "dec"),
    columns=(*TOKEN_COLUMNS, *TARGET_COLUMNS, *NEXT_TOKEN_COLUMNS),
    known_by=("next_pos", "target_text"),
    texts=_target,
)
