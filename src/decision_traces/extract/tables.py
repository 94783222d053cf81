"""The rows of `tokens.parquet`: one example a row, of token columns as many values as the example has tokens."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from decision_traces.data.example import TARGET_FIELD, Example, FieldValue
from decision_traces.format.columns import Column
from decision_traces.tokens import Encoding


def token_columns(examples: Sequence[Example], encodings: Sequence[Encoding], tokenizer: Any) -> dict[str, Any]:
    """Return the token columns of some examples by name; those of tokens are lists of `n_tokens`."""
    return _of_examples(examples) | _of_tokens(encodings, tokenizer)


def choice_token_columns(examples: Sequence[Example], encodings: Sequence[Encoding], tokenizer: Any) -> dict[str, Any]:
    """Return the token columns of some examples with choices: as `token_columns`, with a level for the choices."""
    rows, choices = _of_tokens(encodings, tokenizer), len(encodings) // max(1, len(examples))
    return _of_examples(examples) | {
        name: _lists(values, np.full(len(examples), choices)) for name, values in rows.items()
    }


def target_columns(examples: Sequence[Example], encodings: Sequence[Encoding], tokenizer: Any) -> dict[str, Any]:
    """Return the columns of what the decoder of an encoder-decoder read, by name."""
    rows = _of_tokens([e.main for e in encodings], tokenizer)
    names = ("input_ids", "attention_mask", "tokens", "n_tokens", "truncated")
    columns: dict[str, Any] = {f"dec_{name}": rows[name] for name in names}
    return {"target_text": [e.fields.get(TARGET_FIELD) for e in examples], **columns}


def _of_examples(examples: Sequence[Example]) -> dict[str, Any]:
    return {"example_id": [e.example_id for e in examples], "text": [e.text for e in examples]}


def _of_tokens(encodings: Sequence[Encoding], tokenizer: Any) -> dict[str, pa.Array]:
    """Return the token columns of some encodings: whole columns at once, each token's text once."""
    lengths = np.array([e.n_tokens for e in encodings], np.int32)
    ids = _joined([e.ids for e in encodings], np.int32)
    offsets = _joined([e.offsets for e in encodings], np.int32)
    distinct, where = np.unique(ids, return_inverse=True)
    texts = pa.array(tokenizer.convert_ids_to_tokens(distinct.tolist()), pa.string()).take(pa.array(where))
    columns = {
        "input_ids": _lists(pa.array(ids), lengths),
        "attention_mask": _lists(pa.array(np.ones(len(ids), np.int8)), lengths),
        "offset_mapping": _lists(pa.FixedSizeListArray.from_arrays(pa.array(offsets.ravel()), 2), lengths),
        "tokens": _lists(texts, lengths),
        "n_tokens": pa.array(lengths),
        "truncated": pa.array([e.truncated for e in encodings], pa.bool_()),
    }
    for name, of, missing in (("sequence_ids", "sequence_ids", -1), ("token_type_ids", "type_ids", 0)):
        values = [getattr(e, of) for e in encodings]
        if any(v is not None for v in values):
            filled = [np.full(n, missing) if v is None else v for v, n in zip(values, lengths, strict=True)]
            columns[name] = _lists(pa.array(_joined(filled, np.int8)), lengths)
    return columns


def _joined(values: Sequence[np.ndarray], dtype: type[np.generic]) -> np.ndarray:
    return np.concatenate(values).astype(dtype) if values else np.zeros(0, dtype)


def _lists(values: pa.Array, lengths: np.ndarray) -> pa.ListArray:
    """Return lists of these lengths."""
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), values)


def field_types(examples: Sequence[Example]) -> dict[str, pa.DataType]:
    """Return the Arrow type of each of the data set's own columns, from all its examples; they need not all have it."""
    names = dict.fromkeys(name for e in examples for name in e.fields)
    return {name: _field_type([e.fields.get(name) for e in examples]) for name in names}


def _field_type(values: Sequence[FieldValue]) -> pa.DataType:
    """Return the narrowest type that holds all values; text where they are of several kinds."""
    kinds = {type(v) for v in values if v is not None}
    if kinds == {list}:
        return pa.list_(pa.string())
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int32() if all(-(2**31) <= v < 2**31 for v in values if isinstance(v, int)) else pa.int64()
    return pa.float64() if kinds and kinds <= {int, float} else pa.string()


def field_columns(examples: Sequence[Example], types: Mapping[str, pa.DataType]) -> dict[str, pa.Array]:
    """Return the data set's own columns of some examples, null where an example has none."""
    return {name: _field_column([e.fields.get(name) for e in examples], kind) for name, kind in types.items()}


def _field_column(values: Sequence[FieldValue], kind: pa.DataType) -> pa.Array:
    if pa.types.is_string(kind):
        values = [v if v is None or isinstance(v, str) else json.dumps(v, ensure_ascii=False) for v in values]
    return pa.array(values, kind)


def to_table(specs: Sequence[Column], columns: Mapping[str, Any], extra: Mapping[str, pa.Array]) -> pa.Table:
    """Return a table with the columns of the schema in order, and then the data set's own."""
    arrays = {
        spec.name: value.cast(spec.type) if isinstance(value, pa.Array) else pa.array(value, spec.type)
        for spec, value in ((s, columns[s.name]) for s in specs if s.name in columns or not s.optional)
    }
    return pa.table({**arrays, **{name: values for name, values in extra.items() if name not in arrays}})


def choice_figures(tokens: pa.Table) -> dict[str, Any]:
    """Return how often the choice was right, and how sure the model was, for the meta of a run with choices."""
    known = tokens["is_correct"].drop_null().to_numpy()
    sure = [max(row) for row in tokens["choice_probs"].to_pylist()]
    accuracy = {"choice_accuracy": float(known.mean())} if len(known) else {}
    return {"n_answers": len(known), **accuracy, "mean_choice_confidence": float(np.mean(sure))}
