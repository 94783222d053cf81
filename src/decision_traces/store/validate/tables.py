"""Checks of tokens.parquet: rows, lengths, masks; and that every row has the tokens its counts say."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from decision_traces.checks import CheckResult, rule
from decision_traces.errors import DamagedRunError
from decision_traces.format.arrays import TOKENS_FILE, Side
from decision_traces.format.columns import Column
from decision_traces.format.lists import list_levels, rectangle, unnested
from decision_traces.store.files.conform import conforms, twice
from decision_traces.store.reading.opened import OpenRun


def check_twice(table: pa.Table, file: str) -> tuple[list[CheckResult], pa.Table]:
    """Check that no two columns have one name; return the table without those that have."""
    if not (several := twice(table.schema)):
        return [], table
    result = CheckResult("columns", False, float(len(several)), file, f"several are called {', '.join(several)}", file)
    return [result], table.select([i for i, name in enumerate(table.column_names) if name not in several])


def check_columns(
    table: pa.Table, columns: Sequence[Column], *, all_of_them: bool, file: str = TOKENS_FILE
) -> tuple[CheckResult, set[str]]:
    """Check that columns are there and of their type; return the result and the names that may be used.

    Older tools write a column of nothing but nulls without a type: there is nothing in it to be checked.
    """
    there = [c for c in columns if c.name in table.column_names]
    missing = [c.name for c in columns if c not in there and not c.optional] if all_of_them else []
    wrong = [c.name for c in there if not conforms(table.schema.field(c.name).type, c)]
    empty = {c.name: c.optional for c in there if pa.types.is_null(table.schema.field(c.name).type)}
    wrong += [n for n, optional in empty.items() if all_of_them and not optional]
    said = [f"missing: {', '.join(missing)}"] if missing else []
    said += [f"{n} has type {table.schema.field(n).type}" for n in wrong]
    detail = "; ".join(said) or f"{table.num_columns} columns"
    result = CheckResult("columns", not said, float(len(said)), file, detail, file)
    return result, {c.name for c in there if c.name not in {*wrong, *empty}}


def check_tokens(table: pa.Table, store: OpenRun, usable: set[str]) -> Iterator[CheckResult]:
    """Check the rows and the token columns against the meta and one another.

    Args:
        table: tokens.parquet.
        store: The run.
        usable: Columns that are there with the right type.
    """
    wanted = table.num_rows if store.about.n_examples is None else store.about.n_examples
    detail = f"{table.num_rows} rows, n_examples is {wanted}"
    off = float(abs(table.num_rows - wanted))
    yield CheckResult("row count", off == 0, off, TOKENS_FILE, detail, TOKENS_FILE)
    if "example_id" not in usable:
        return
    ids = table.column("example_id").to_pylist()
    unique, first = np.unique([str(i) for i in ids], return_index=True)
    repeated = np.setdiff1d(np.arange(len(ids)), first)
    bad = np.isin(np.arange(len(ids)), repeated) | np.array([i is None for i in ids], dtype=bool)
    yield rule("example_id unique", bad, ids, f"{len(unique)} different ids")
    for side in ("enc", "dec") if {"dec_input_ids", "dec_attention_mask"} & usable else store.sides[:1]:
        yield from _token_lists(table, store, ids, usable, side)


def _token_lists(
    table: pa.Table, store: OpenRun, ids: list[Any], usable: set[str], side: Side
) -> Iterator[CheckResult]:
    """Check the token columns of one side; `dec_` stands before the decoder's where the encoder reads other tokens."""
    ours, prefix = store.about.ours, store.token_prefix(side)
    names = [prefix + n for n in ("input_ids", "attention_mask", "token_type_ids", "offset_mapping", "tokens")]
    lists = [n for n in names if n in usable]
    t = _positions(store, side)
    depth = 2 if store.about.n_choices else 1
    if not store.about.tokens_filled:
        if f"{prefix}n_tokens" in usable:  # else the columns' own check says so
            yield from _of_every_token(table, ids, lists, f"{prefix}n_tokens", by_choice=depth == 2)
        return
    for name in lists:
        sizes = list_levels(table.column(name))
        ok = sizes is not None and (t is None or not ids or not ours or sizes[depth - 1 : depth] == (t,))
        detail = f"lists of length {sizes}" if sizes else "lists of different lengths, or nulls"
        yield CheckResult(f"length of {name}", ok, where=TOKENS_FILE, detail=f"{detail}, T is {t}", array=TOKENS_FILE)
    mask = f"{prefix}attention_mask"
    if mask in lists and list_levels(table.column(mask)) is not None:
        yield from _masks(table, ids, usable, prefix, ours=ours)


def _of_every_token(
    table: pa.Table, ids: list[Any], lists: Sequence[str], n_tokens: str, *, by_choice: bool
) -> Iterator[CheckResult]:
    """Check that every text has as many values in each token column as it has tokens, and ones in its mask."""
    for name in lists:
        try:
            rows, counts = _each_text(table.column(n_tokens), by_choice=by_choice)
            own, texts = _each_text(table.column(name), by_choice=by_choice)
            lengths, values = unnested(texts)
            _refuse_lists(n_tokens, counts.type)
            if name.endswith("attention_mask"):
                _refuse_lists(name, values.type)
        except DamagedRunError as error:
            yield CheckResult(f"length of {name}", False, where=TOKENS_FILE, detail=str(error), array=TOKENS_FILE)
            continue
        same = np.array_equal(own, rows)  # or it has not as many choices
        other = lengths != pc.fill_null(counts, -1).to_numpy() if same else np.ones(len(own), bool)
        yield rule(f"length of {name}", _any_of(own, other, len(ids)), ids, f"a value for each token ({n_tokens})")
        if name.endswith("attention_mask"):
            blank = values.to_numpy(zero_copy_only=False) != 1
            yield rule(f"{name} is 1", _any_of(np.repeat(own, lengths), blank, len(ids)), ids, "1 for each token")


def _refuse_lists(name: str, there: pa.DataType) -> None:
    """Raise if a column has lists where it has numbers in a run that has choices, or has none, as the meta says."""
    if not pa.types.is_integer(there):
        raise DamagedRunError(f"{name} holds {there} where a number belongs")


def _each_text(column: pa.ChunkedArray, *, by_choice: bool) -> tuple[np.ndarray, pa.ChunkedArray]:
    """Return the row of every text, and what a column holds of it: of each choice, where there are choices."""
    if not by_choice:
        return np.arange(len(column)), column
    lengths, flat = unnested(column)
    return np.repeat(np.arange(len(lengths)), lengths), pa.chunked_array([flat])


def _any_of(rows: np.ndarray, bad: np.ndarray, n: int) -> np.ndarray:
    """Return which of n rows have anything bad."""
    found: np.ndarray = np.bincount(rows[bad], minlength=n) > 0
    return found


def _positions(store: OpenRun, side: Side) -> int | None:
    """Return T of a side; of the main side in older runs; None for one that no array is about."""
    told = store.about.sides
    return store.about.max_seq_len if not told else told[side].n_positions if side in told else None


def _masks(table: pa.Table, ids: list[Any], usable: set[str], prefix: str, *, ours: bool) -> Iterator[CheckResult]:
    mask = rectangle(table.column(f"{prefix}attention_mask"))
    about = f" ({prefix}attention_mask)" if prefix else ""
    yield rule(f"mask is 0 or 1{about}", (mask != 0) & (mask != 1), ids, f"{prefix}attention_mask is 0 or 1")
    rising = np.diff((mask != 0).astype(np.int8), axis=-1) > 0
    if ours or not rising.any():
        yield rule(f"padding on the right{about}", rising, ids, "no token after padding")
    else:
        detail = f"older tool: {int(rising.any(axis=tuple(range(1, rising.ndim))).sum())} rows padded on the left"
        yield CheckResult("padding on the right", True, detail=detail, array=TOKENS_FILE)
    name = f"{prefix}n_tokens"
    if name in usable and list_levels(table.column(name)) is not None:
        counts = rectangle(table.column(name))
        sums = (mask != 0).sum(axis=-1)
        bad = counts != sums if counts.shape == sums.shape else np.ones(len(sums), dtype=bool)
        yield rule(f"{name} agrees with the mask", bad, ids, f"{name} is the sum of {prefix}attention_mask")
