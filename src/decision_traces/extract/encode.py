"""Encoders without a head: their inner path over any texts, and no prediction."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from decision_traces.extract.job import Job, Prepared, encode_texts
from decision_traces.extract.next_token import text_source
from decision_traces.extract.tables import field_columns, field_types, to_table, token_columns
from decision_traces.format.arrays import TOKENS_FILE
from decision_traces.model.load import LoadedModel
from decision_traces.tasks import ENCODE
from decision_traces.tokens import TokenBatch
from decision_traces.tracing.self_check.evidence import logits_of

if TYPE_CHECKING:
    from decision_traces.extract.texts import TextConfig


def encode_job(config: "TextConfig") -> Job:
    """Return the job of an encoder without a head."""
    return Job(
        task=ENCODE,
        model=config.model_source(),
        data=text_source(config),
        config=config,
        decisive=("add_special_tokens",),
        workflow=EncodeWorkflow,
        next_position=None,
        encode=partial(encode_texts, special=config.add_special_tokens),
    )


class EncodeWorkflow:
    """Keeps nothing but the tokens: an encoder without a head predicts nothing."""

    def __init__(self, prepared: Prepared) -> None:
        self._prepared, self._field_types = prepared, field_types(prepared.examples)

    def forward(self, loaded: LoadedModel, batch: TokenBatch, first_row: int) -> None:
        """Run the model."""
        logits_of(loaded, batch)

    def tables(self, rows: range) -> Mapping[str, pa.Table]:
        """Return the rows of `tokens.parquet`."""
        prepared = self._prepared
        examples = prepared.examples[rows.start : rows.stop]
        encodings = prepared.encodings[rows.start : rows.stop]
        columns = token_columns(examples, encodings, prepared.loaded.tokenizer)
        extra = field_columns(examples, self._field_types)
        return {TOKENS_FILE: to_table(ENCODE.columns, columns, extra)}

    def conventions(self) -> Mapping[str, str]:
        """Return nothing: there are no outcome columns."""
        return {}

    def figures(self, tokens: pa.Table) -> dict[str, Any]:
        """Return nothing: there are no outcomes."""
        return {}
