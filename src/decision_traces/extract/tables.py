"""The rows of `tokens.parquet`: one example a row, token columns padded to T."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from decision_traces.columns import Column
from decision_traces.data.example import TARGET_FIELD, Example, FieldValue
from decision_traces.tokens import Encoding


def token_columns(
    examples: Sequence[Example], encodings: Sequence[Encoding], tokenizer: Any, pad: int, n_positions: int
) -> dict[str, Any]:
    """Return the token columns of some examples by name; those of tokens are lists of length T."""
    return _of_examples(examples) | _of_tokens(encodings, tokenizer, pad, n_positions)


def choice_token_columns(
    examples: Sequence[Example], encodings: Sequence[Encoding], tokenizer: Any, pad: int, n_positions: int
) -> dict[str, Any]:
    """Return the token columns of some examples with choices: as `token_columns`, with a level for the choices."""
    rows, choices = _of_tokens(encodings, tokenizer, pad, n_positions), len(encodings) // max(1, len(examples))
    return _of_examples(examples) | {name: _grouped(values, choices) for name, values in rows.items()}


def target_columns(
    examples: Sequence[Example], encodings: Sequence[Encoding], tokenizer: Any, pad: int, n_positions: int
) -> dict[str, Any]:
    """Return the columns of what the decoder of an encoder-decoder read, by name."""
    rows = _of_tokens([e.main for e in encodings], tokenizer, pad, n_positions)
    names = ("input_ids", "attention_mask", "tokens", "n_tokens", "truncated")
    columns: dict[str, Any] = {f"dec_{name}": rows[name] for name in names}
    return {"target_text": [e.fields.get(TARGET_FIELD) for e in examples], **columns}


def _of_examples(examples: Sequence[Example]) -> dict[str, Any]:
    return {"example_id": [e.example_id for e in examples], "text": [e.text for e in examples]}


def _of_tokens(encodings: Sequence[Encoding], tokenizer: Any, pad: int, n_positions: int) -> dict[str, pa.Array]:
    """Return the token columns of some encodings, filled up to T: whole columns at once, each token's text once."""
    shape = (len(encodings), n_positions)
    ids, mask = np.full(shape, pad, np.int32), np.zeros(shape, np.int8)
    offsets, sides, types = np.zeros((*shape, 2), np.int32), np.full(shape, -1, np.int8), np.zeros(shape, np.int8)
    for i, encoding in enumerate(encodings):
        n = encoding.n_tokens
        ids[i, :n], mask[i, :n], offsets[i, :n] = encoding.ids, 1, encoding.offsets
        if encoding.sequence_ids is not None:
            sides[i, :n] = encoding.sequence_ids
        if encoding.type_ids is not None:
            types[i, :n] = encoding.type_ids
    distinct, where = np.unique(ids, return_inverse=True)
    texts = pa.array(tokenizer.convert_ids_to_tokens(distinct.tolist()), pa.string()).take(pa.array(where.ravel()))
    columns = {
        "input_ids": _grouped(pa.array(ids.ravel()), n_positions),
        "attention_mask": _grouped(pa.array(mask.ravel()), n_positions),
        "offset_mapping": _grouped(pa.FixedSizeListArray.from_arrays(pa.array(offsets.ravel()), 2), n_positions),
        "tokens": _grouped(texts, n_positions),
        "n_tokens": pa.array([e.n_tokens for e in encodings], pa.int32()),
        "truncated": pa.array([e.truncated for e in encodings], pa.bool_()),
    }
    if any(e.sequence_ids is not None for e in encodings):
        columns["sequence_ids"] = _grouped(pa.array(sides.ravel()), n_positions)
    if any(e.type_ids is not None for e in encodings):
        columns["token_type_ids"] = _grouped(pa.array(types.ravel()), n_positions)
    return columns


def _grouped(values: pa.Array, size: int) -> pa.ListArray:
    """Return lists of `size` values each."""
    return pa.ListArray.from_arrays(pa.array(np.arange(0, len(values) + 1, size), pa.int32()), values)


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
    figures: dict[str, Any] = {"n_answers": len(known), "mean_choice_confidence": float(np.mean(sure))}
    return {**figures, "choice_accuracy": float(known.mean())} if len(known) else figures
