"""The rows of `tokens.parquet`: one example a row, token columns padded to T."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from decision_traces.columns import Column
from decision_traces.data.example import TARGET_FIELD, Example
from decision_traces.tokens import Encoding


def token_columns(
    examples: Sequence[Example], encodings: Sequence[Encoding], tokenizer: Any, pad: int, n_positions: int
) -> dict[str, Any]:
    """Return the token columns of some examples, by name, as lists of length T."""
    pad_token = tokenizer.convert_ids_to_tokens(pad)
    rows = [_token_row(e, tokenizer, pad, pad_token, n_positions) for e in encodings]
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in (rows[0] if rows else ())}
    return {"example_id": [e.example_id for e in examples], "text": [e.text for e in examples], **columns}


def choice_token_columns(
    examples: Sequence[Example], encodings: Sequence[Encoding], tokenizer: Any, pad: int, n_positions: int
) -> dict[str, Any]:
    """Return the token columns of some examples with choices: as `token_columns`, with a level for the choices."""
    pad_token, choices = tokenizer.convert_ids_to_tokens(pad), len(encodings) // max(1, len(examples))
    rows = [_token_row(e, tokenizer, pad, pad_token, n_positions) for e in encodings]
    columns: dict[str, Any] = {
        name: [[row[name] for row in rows[i : i + choices]] for i in range(0, len(rows), choices)]
        for name in (rows[0] if rows else ())
    }
    return {"example_id": [e.example_id for e in examples], "text": [e.text for e in examples], **columns}


def target_columns(
    examples: Sequence[Example], encodings: Sequence[Encoding], tokenizer: Any, pad: int, n_positions: int
) -> dict[str, Any]:
    """Return the columns of what the decoder of an encoder-decoder read, by name."""
    pad_token = tokenizer.convert_ids_to_tokens(pad)
    rows = [_token_row(e.main, tokenizer, pad, pad_token, n_positions) for e in encodings]
    names = ("input_ids", "attention_mask", "tokens", "n_tokens", "truncated")
    columns: dict[str, Any] = {f"dec_{name}": [row[name] for row in rows] for name in names}
    return {"target_text": [e.fields.get(TARGET_FIELD) for e in examples], **columns}


def _token_row(encoding: Encoding, tokenizer: Any, pad: int, pad_token: str, n_positions: int) -> dict[str, Any]:
    """Return one encoding's token columns, filled up to T."""
    missing = n_positions - encoding.n_tokens
    row = {
        "input_ids": np.pad(encoding.ids, (0, missing), constant_values=pad),
        "attention_mask": np.pad(np.ones(encoding.n_tokens, np.int8), (0, missing)),
        "offset_mapping": np.pad(encoding.offsets, ((0, missing), (0, 0))).tolist(),
        "tokens": [*tokenizer.convert_ids_to_tokens(encoding.ids.tolist()), *[pad_token] * missing],
        "n_tokens": encoding.n_tokens,
        "truncated": encoding.truncated,
    }
    if encoding.sequence_ids is not None:
        row["sequence_ids"] = np.pad(encoding.sequence_ids, (0, missing), constant_values=-1)
    return row


def field_types(examples: Sequence[Example]) -> dict[str, pa.DataType]:
    """Return the Arrow type of each of the data set's own columns, from all its examples."""
    return {name: _field_type([e.fields[name] for e in examples]) for name in examples[0].fields}


def _field_type(values: list[Any]) -> pa.DataType:
    example = next((v for v in values if v is not None), "")
    if isinstance(example, list):
        return pa.list_(pa.string())
    return pa.int32() if isinstance(example, int) else pa.string()


def field_columns(examples: Sequence[Example], types: Mapping[str, pa.DataType]) -> dict[str, pa.Array]:
    """Return the data set's own columns of some examples."""
    return {name: pa.array([e.fields[name] for e in examples], kind) for name, kind in types.items()}


def to_table(specs: Sequence[Column], columns: Mapping[str, Any], extra: Mapping[str, pa.Array]) -> pa.Table:
    """Return a table with the columns of the schema in order, and then the data set's own."""
    arrays = {spec.name: pa.array(columns[spec.name], spec.type) for spec in specs}
    return pa.table({**arrays, **{name: values for name, values in extra.items() if name not in arrays}})


def choice_figures(tokens: pa.Table) -> dict[str, Any]:
    """Return how often the choice was right, and how sure the model was, for the meta of a run with choices."""
    known = tokens["is_correct"].drop_null().to_numpy()
    sure = [max(row) for row in tokens["choice_probs"].to_pylist()]
    figures: dict[str, Any] = {"n_answers": len(known), "mean_choice_confidence": float(np.mean(sure))}
    return {**figures, "choice_accuracy": float(known.mean())} if len(known) else figures
