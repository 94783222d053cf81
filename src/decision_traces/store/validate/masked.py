"""Checks of the predictions at masked positions: lists of one length each row, inside the text, and consistent."""

from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from decision_traces.checks import CheckResult, rule
from decision_traces.errors import DamagedRunError
from decision_traces.format.arrays import TOKENS_FILE
from decision_traces.format.columns import MASKED_COLUMNS
from decision_traces.format.lists import Spans, entries_at
from decision_traces.store.validate.outcomes import check_outcomes

_OUTCOMES: Final = {
    "true_id": "masked_true_ids",
    "pred_id": "masked_pred_ids",
    "correct": "masked_correct",
    "true_prob": "masked_true_probs",
    "pred_prob": "masked_pred_probs",
    "entropy": "masked_entropies",
    "true_rank": "masked_true_ranks",
}


_OF_TRUTH: Final = frozenset(
    {"masked_true_ids", "masked_true_tokens", "masked_true_probs", "masked_true_ranks", "masked_correct"}
)


def check_masked(table: pa.Table, spans: Spans, usable: set[str], vocab_size: int | None) -> Iterator[CheckResult]:
    """Check the `masked_` columns of tokens.parquet."""
    names = [c.name for c in MASKED_COLUMNS if c.name in usable]
    if "masked_pos" not in names or spans.start.ndim > 1:
        return
    if empty := [n for n in names if pa.types.is_null(table.schema.field(n).type)]:
        detail = f"{', '.join(empty)} hold nothing but nulls"
        yield CheckResult("masked lists of one length", False, where=TOKENS_FILE, detail=detail, array=TOKENS_FILE)
        return
    ids = table.column("example_id").to_pylist()
    lengths = np.stack([pc.fill_null(pc.list_value_length(table.column(n)), -1).to_numpy() for n in names])
    uneven = (lengths != lengths[0]).any(axis=0) | (lengths[0] < 0)
    yield rule("masked lists of one length", uneven, ids, f"{', '.join(names)} are of one length, and not null")
    rows = np.flatnonzero(~uneven)
    part, counts = table.take(pa.array(rows)), lengths[0][rows]
    flat = {name: _flat(part, name) for name in names}
    known = ~_nulls(flat["masked_true_ids"]) if "masked_true_ids" in flat else np.ones(int(counts.sum()), bool)
    if any((_nulls(values) != (~known if name in _OF_TRUTH else False)).any() for name, values in flat.items()):
        detail = "null stands where the truth is not known, in all columns about it, and nowhere else"
        yield CheckResult("masked lists without nulls", False, where=TOKENS_FILE, detail=detail, array=TOKENS_FILE)
        return
    row, pos = np.repeat(rows, counts), flat["masked_pos"].to_numpy()
    labels = [f"{ids[r]} position {p}" for r, p in zip(row, pos, strict=True)]
    outside = (pos < spans.start[row]) | (pos >= spans.stop[row])
    repeated = (np.diff(row, prepend=-1) == 0) & (np.diff(pos, prepend=-1) <= 0)
    yield rule("masked_pos", outside | repeated, labels, "masked positions are tokens of the text, in ascending order")
    if not outside.any() and "input_ids" in usable:
        with suppress(DamagedRunError):  # the column's own check says so
            yield _replaced(entries_at(table.column("input_ids"), row, pos), flat, known, labels)
    for name in ("masked_true_ids", "masked_pred_ids"):
        if name in flat and vocab_size:
            values = pc.fill_null(flat[name], 0).to_numpy()
            yield rule(name, (values < 0) | (values >= vocab_size), labels, f"ids from 0 to {vocab_size - 1}")
    if "masked_pred_probs" in flat:
        probs = flat["masked_pred_probs"].to_numpy()
        yield rule("masked_pred_probs", ~(probs > 0), labels, "the most probable token has a probability above 0")
    columns = {kind: name for kind, name in _OUTCOMES.items() if name in flat}
    some = pa.table(flat).filter(pa.array(known))
    yield from check_outcomes(
        some, columns, None, [n for n, k in zip(labels, known, strict=True) if k], vocab_size, TOKENS_FILE
    )


def _nulls(values: pa.Array) -> np.ndarray:
    nulls: np.ndarray = values.is_null().to_numpy(zero_copy_only=False)
    return nulls


def _flat(table: pa.Table, name: str) -> pa.Array:
    return pc.list_flatten(table.column(name).combine_chunks())


def _replaced(read: np.ndarray, flat: dict[str, pa.Array], known: np.ndarray, labels: list[str]) -> CheckResult:
    """Check that input_ids at the masked positions are the true tokens, or all of them one mask token."""
    true = np.where(known, pc.fill_null(flat["masked_true_ids"], 0), read) if "masked_true_ids" in flat else read
    mask = int(np.bincount(read.astype(np.int64)).argmax()) if len(read) and read.min() >= 0 else -1
    bad = read != true if np.array_equal(read, true) else read != mask
    return rule("masked tokens in input_ids", bad, labels, "input_ids has one mask token at the masked positions")
