"""Checks of the predictions: of the next token in either table, and of the choices."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from decision_traces.checks import CheckResult, rule
from decision_traces.errors import DamagedRunError
from decision_traces.format.arrays import OUTCOMES_FILE, TOKENS_FILE
from decision_traces.format.lists import Spans, entries_at, has_levels, list_levels, rectangle

_SCALARS = ("true_id", "pred_id", "correct", "true_prob", "pred_prob", "entropy", "true_rank", "margin")
# Float32 sums over a vocabulary; far below any difference that matters.
_SLACK = 1e-4


def check_next_token(
    table: pa.Table, spans: Spans, usable: set[str], vocab_size: int | None, input_ids: str = "input_ids"
) -> Iterator[CheckResult]:
    """Check the `next_` columns of tokens.parquet against the tokens in the column `input_ids`."""
    if "next_pos" not in usable or spans.start.ndim > 1:
        return
    ids = table.column("example_id").to_pylist()
    position = pc.fill_null(table.column("next_pos"), -1).to_numpy()
    wanted = np.where(spans.n_tokens >= 2, spans.stop - 2, -1)
    yield rule("next_pos", position != wanted, ids, "next_pos is n_tokens − 2, or −1 below 2 tokens")
    valid = np.flatnonzero((position == wanted) & (position >= 0))
    none = np.flatnonzero(wanted < 0)
    names = [f"next_{c}" for c in _SCALARS if f"next_{c}" in usable]
    filled = np.zeros(len(ids), dtype=bool)
    for name in names:
        null = np.asarray(pc.is_null(table.column(name)).to_numpy())
        filled[valid] |= null[valid]
        filled[none] |= ~null[none] if name == "next_true_id" else False
    yield rule("predictions where there is a next token", filled, ids, "null exactly where next_pos is −1")
    rows = valid[~filled[valid]]
    part = table.take(pa.array(rows))
    truth = _truth(table, rows, position[rows] + 1, input_ids) if input_ids in usable else None
    columns = {c: f"next_{c}" for c in (*_SCALARS, "topk_ids", "topk_probs") if f"next_{c}" in usable}
    yield from check_outcomes(part, columns, truth, [ids[r] for r in rows], vocab_size, TOKENS_FILE)


def check_after(table: pa.Table, spans: Spans, usable: set[str], vocab_size: int | None) -> Iterator[CheckResult]:
    """Check the `after_` columns of tokens.parquet, where there are any."""
    if "after_pos" not in usable or spans.start.ndim > 1:
        return
    ids = table.column("example_id").to_pylist()
    wanted = np.where(spans.n_tokens >= 1, spans.stop - 1, -1)
    position = pc.fill_null(table.column("after_pos"), -2).to_numpy()
    yield rule("after_pos", position != wanted, ids, "after_pos is n_tokens − 1, or −1 without a token")
    columns = {c: f"after_{c}" for c in (*_SCALARS, "topk_ids", "topk_probs") if f"after_{c}" in usable}
    rows = np.flatnonzero(wanted >= 0)
    part = table.take(pa.array(rows))
    nulls = sum(part.column(name).null_count for name in columns.values())
    yield CheckResult("predictions after the text", nulls == 0, float(nulls), TOKENS_FILE, "none is null", TOKENS_FILE)
    yield from check_outcomes(part, columns, None, [ids[r] for r in rows], vocab_size, TOKENS_FILE)


def _truth(table: pa.Table, rows: np.ndarray, positions: np.ndarray, input_ids: str) -> np.ndarray | None:
    try:
        return entries_at(table.column(input_ids), rows, positions)
    except DamagedRunError:
        return None  # the column's own check says so


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
    columns = {c: c for c in (*_SCALARS, "topk_ids", "topk_probs") if c in usable}
    yield from check_outcomes(table, columns, _truth(tokens, row, pos + 1, input_ids), names, vocab_size, OUTCOMES_FILE)


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
    c = {k: np.asarray(table.column(n).to_numpy()) for k, n in columns.items() if k in _SCALARS and not nulls[k]}
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
            bad = ~((c[name] >= 0) & (c[name] <= 1 + _SLACK))
            yield rule(f"{name} is a probability", bad, ids, "0 ≤ p ≤ 1", figures=c[name], table=file)
    if {"true_prob", "pred_prob"} <= c.keys():
        bad = ~(c["pred_prob"] >= c["true_prob"])
        yield rule("probabilities in order", bad, ids, "pred_prob ≥ true_prob", table=file)
    if "entropy" in c:
        top = math.log(vocab_size) if vocab_size else math.inf
        bad = ~((c["entropy"] >= -_SLACK) & (c["entropy"] <= top + _SLACK))
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
    bad |= ~((probs >= 0) & (probs <= 1 + _SLACK)).all(axis=1) | (probs.sum(axis=1) > 1 + 1e-2)
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


def check_choices(table: pa.Table, names: set[str]) -> Iterator[CheckResult]:
    """Check the choice columns, those of `names` that are there: probabilities, prediction, whether it is right."""
    if not {"choice_logits", "choice_probs", "pred_idx", "example_id"} <= names or not table.num_rows:
        return
    ids = table.column("example_id").to_pylist()
    levels = {list_levels(table.column(n)) for n in ("choice_logits", "choice_probs")}
    if len(levels) > 1 or levels & {None, (), (0,)}:
        yield CheckResult(
            "choices",
            False,
            where=TOKENS_FILE,
            detail="lists of different lengths, or nulls",
            array=TOKENS_FILE,
        )
        return
    logits, probs = (rectangle(table.column(n)).astype(np.float64) for n in ("choice_logits", "choice_probs"))
    pred = table.column("pred_idx").to_numpy()
    off = np.abs(probs.sum(axis=1) - 1)
    bad = ~((probs >= 0).all(axis=1) & (off <= 1e-3))
    yield rule("choice probabilities sum to 1", bad, ids, "|sum − 1| ≤ 0.001, none negative", figures=off)
    inside = (pred >= 0) & (pred < logits.shape[1])
    chosen = np.take_along_axis(logits, np.where(inside, pred, 0).astype(np.int64)[:, None], axis=1)[:, 0]
    yield rule("pred_idx", ~inside | ~(chosen == logits.max(axis=1)), ids, "pred_idx has the largest choice_logit")
    yield from _texts(table, ids)
    label = next((n for n in ("label_idx", "correct_idx") if n in names), None)
    if label and "is_correct" in names:
        truth, said = (table.column(n).to_pylist() for n in (label, "is_correct"))
        known = [t is not None and t >= 0 for t in truth]
        right = [bool(p == t) if k else None for p, t, k in zip(pred, truth, known, strict=True)]
        wrong = np.array([s != r for s, r in zip(said, right, strict=True)], dtype=bool)
        yield rule("is_correct", wrong, ids, f"is_correct == (pred_idx == {label}), null without an answer")


def _texts(table: pa.Table, ids: Sequence[Any]) -> Iterator[CheckResult]:
    """Check the scores of whole answers against one another, where a run has them."""
    names = ("choice_text_ids", "choice_token_ids", "choice_logits", "choice_logprob_sum", "choice_logprob_mean")
    if not set(names) <= set(table.column_names):
        return
    if table.column(names[0]).null_count or any(list_levels(table.column(n)) is None for n in names[1:]):
        yield CheckResult("answers' texts", False, where=TOKENS_FILE, detail="nulls, or lists of different lengths")
        return
    first, scores, sums, means = (rectangle(table.column(n)) for n in names[1:])
    texts = table.column("choice_text_ids").to_pylist()
    count, begin = np.zeros(sums.shape), np.full(sums.shape, -1)
    whole = np.array([len(row) == sums.shape[1] and all(row) for row in texts])
    for i in np.flatnonzero(whole):
        count[i], begin[i] = [len(own) for own in texts[i]], [own[0] for own in texts[i]]
    yield rule("first tokens of answers", begin != first, ids, "choice_token_ids[i] == choice_text_ids[i][0]")
    bad = ~(np.abs(means * count - sums) <= _SLACK * np.maximum(1, np.abs(sums))) | ~(sums <= _SLACK)
    yield rule("log-probabilities of answers", bad, ids, "sum ≤ 0, and the mean times the number of tokens")
    yield rule("scores of answers", scores != sums, ids, "choice_logits == choice_logprob_sum")
