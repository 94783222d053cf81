"""The outcome of predicting one token: its columns, how they are checked, and the table with one at every position."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from decision_traces.checks import CheckResult, rule
from decision_traces.errors import DamagedRunError
from decision_traces.format.arrays import OUTCOMES_FILE
from decision_traces.format.columns import Column
from decision_traces.format.lists import Spans, entries_at, has_levels, rectangle

OUTCOME = (
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

OF_TRUTH: Final = frozenset({"true_id", "true_token", "correct", "true_prob", "true_rank"})


def outcome_of(record: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Return one prediction in a row of `tokens.parquet`, named as in `token_outcomes.parquet`; None what it lacks.

    Args:
        record: The row.
        kind: next, or after.
    """
    return {name: record.get(f"{kind}_{name}") for name in ("pos", *(column.name for column in OUTCOME))}


POSITION_COLUMNS: Final = (
    Column("row", pa.int32(), "row of the example in tokens.parquet"),
    Column("example_id", pa.string(), "the example"),
    Column("pos", pa.int32(), "position of the prediction; its truth is the token at pos + 1"),
    *OUTCOME,
)

SCALARS: Final = ("true_id", "pred_id", "correct", "true_prob", "pred_prob", "entropy", "true_rank", "margin")
# Float32 sums over a vocabulary; far below any difference that matters.
SLACK: Final = 1e-4


def true_tokens(table: pa.Table, rows: np.ndarray, positions: np.ndarray, input_ids: str) -> np.ndarray | None:
    """Return the tokens at some positions of some rows, None where the column of tokens is damaged."""
    try:
        return entries_at(table.column(input_ids), rows, positions)
    except DamagedRunError:
        return None  # the column's own check reports it


def check_positions(
    table: pa.Table,
    tokens: pa.Table,
    spans: Spans,
    usable: set[str],
    vocab_size: int | None,
    input_ids: str = "input_ids",
) -> Iterator[CheckResult]:
    """Check token_outcomes.parquet: one row per example and position that has a next token, in order."""
    if not {"row", "pos", "example_id"} <= usable or spans.start.ndim > 1:
        return
    row, pos = (table.column(n).to_numpy() for n in ("row", "pos"))
    counts = np.maximum(spans.n_tokens - 1, 0)
    want_row = np.repeat(np.arange(len(counts)), counts)
    want_pos = np.arange(len(want_row)) - np.repeat(np.cumsum(counts) - counts, counts) + spans.start[want_row]
    same = len(row) == len(want_row) and bool((row == want_row).all() and (pos == want_pos).all())
    detail = f"{len(row)} rows for {len(want_row)} positions that have a next token"
    yield CheckResult(
        "one row per position",
        same,
        float(abs(len(row) - len(want_row))),
        OUTCOMES_FILE,
        detail,
        OUTCOMES_FILE,
    )
    if not same:
        return
    ids, labels = tokens.column("example_id").to_pylist(), table.column("example_id").to_pylist()
    names = [f"{label} position {p}" for label, p in zip(labels, pos, strict=True)]
    wrong = np.array([label != ids[r] for label, r in zip(labels, row, strict=True)], dtype=bool)
    yield rule("example_id of each row", wrong, names, "the id of that row of tokens.parquet", table=OUTCOMES_FILE)
    columns: dict[str, str] = {c: c for c in (*SCALARS, "topk_ids", "topk_probs") if c in usable}
    yield from check_outcomes(
        table, columns, true_tokens(tokens, row, pos + 1, input_ids), names, vocab_size, OUTCOMES_FILE
    )


def check_outcomes(
    table: pa.Table,
    columns: dict[str, str],
    truth: np.ndarray | None,
    ids: Sequence[Any],
    vocab_size: int | None,
    file: str,
) -> Iterator[CheckResult]:
    """Check predictions against one another, row by row.

    Args:
        table: Rows that all have a prediction.
        columns: Which of the outcome columns are there, and what they are called.
        truth: Token that really comes next, or None where unknown.
        ids: What to call each row.
        vocab_size: Tokens of the vocabulary, or None where unknown.
        file: The table's file.
    """
    nulls = {c: table.column(n).null_count for c, n in columns.items()}
    c = {k: np.asarray(table.column(n).to_numpy()) for k, n in columns.items() if k in SCALARS and not nulls[k]}
    if truth is not None and "true_id" in c:
        yield rule(
            "true_id is the next token",
            c["true_id"] != truth,
            ids,
            "true_id == input_ids[pos + 1]",
            table=file,
        )
    if {"correct", "pred_id", "true_id"} <= c.keys():
        bad = c["correct"].astype(bool) != (c["pred_id"] == c["true_id"])
        yield rule("correct", bad, ids, "correct == (pred_id == true_id)", table=file)
    for name in ("true_prob", "pred_prob"):
        if name in c:
            bad = ~((c[name] >= 0) & (c[name] <= 1 + SLACK))
            yield rule(f"{name} is a probability", bad, ids, "0 ≤ p ≤ 1", figures=c[name], table=file)
    if {"true_prob", "pred_prob"} <= c.keys():
        bad = ~(c["pred_prob"] >= c["true_prob"])
        yield rule("probabilities in order", bad, ids, "pred_prob ≥ true_prob", table=file)
    if "entropy" in c:
        top = math.log(vocab_size) if vocab_size else math.inf
        bad = ~((c["entropy"] >= -SLACK) & (c["entropy"] <= top + SLACK))
        yield rule("entropy in range", bad, ids, f"0 ≤ entropy ≤ {top:.4g} nats", figures=c["entropy"], table=file)
    if "margin" in c:
        yield rule("margin", ~(c["margin"] >= 0), ids, "top-1 minus top-2 logit ≥ 0", table=file)
    yield from _ranks(c, ids, file)
    if all(k in columns and not nulls[k] for k in ("topk_ids", "topk_probs")):
        yield from _top_k(table, columns, c, ids, file)


def _ranks(c: dict[str, np.ndarray], ids: Sequence[Any], file: str) -> Iterator[CheckResult]:
    if "true_rank" not in c:
        return
    bad = ~(c["true_rank"] >= 1)
    if {"correct", "true_prob", "pred_prob"} <= c.keys():
        # Where two tokens tie for the top, either may count as predicted.
        tie = c["true_prob"] == c["pred_prob"]
        bad |= ((c["true_rank"] == 1) != c["correct"].astype(bool)) & ~tie
    yield rule("rank", bad, ids, "rank ≥ 1, and 1 exactly where correct", figures=c["true_rank"], table=file)


def _top_k(
    table: pa.Table, columns: dict[str, str], c: dict[str, np.ndarray], ids: Sequence[Any], file: str
) -> Iterator[CheckResult]:
    lists = [table.column(columns[k]) for k in ("topk_ids", "topk_probs")]
    if not len(ids) or not all(has_levels(x, 1) for x in lists):
        ok = not len(ids)
        yield CheckResult("top-k", ok, detail="lists of one length, no nulls", array=file, where=file)
        return
    top, probs = (rectangle(x) for x in lists)
    bad = np.diff(probs, axis=1).max(axis=1, initial=0.0) > 0
    bad |= ~((probs >= 0) & (probs <= 1 + SLACK)).all(axis=1) | (probs.sum(axis=1) > 1 + 1e-2)
    yield rule("top-k probabilities in order", bad, ids, "descending, between 0 and 1, sum at most 1", table=file)
    if top.shape[1] and {"pred_id", "pred_prob"} <= c.keys():
        bad = (top[:, 0] != c["pred_id"]) | (probs[:, 0].astype(np.float32) != c["pred_prob"].astype(np.float32))
        yield rule(
            "top-k starts with the prediction",
            bad,
            ids,
            "topk_ids[0] == pred_id",
            table=file,
        )
