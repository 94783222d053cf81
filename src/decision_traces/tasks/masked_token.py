"""Masked tokens: what an encoder predicts at its mask token."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from decision_traces.checks import CheckResult, rule
from decision_traces.errors import DamagedRunError
from decision_traces.format.analyses import LENS_TABLE
from decision_traces.format.arrays import TOKENS_FILE
from decision_traces.format.columns import TOKEN_COLUMNS, Column
from decision_traces.format.lists import entries_at
from decision_traces.tasks.decisions import NONE, Decisions, Kind, behind, names_of, numbers_or
from decision_traces.tasks.task import Prediction, Reading, Said, Task, Token, TokenTable, Words
from decision_traces.tasks.token_outcomes import check_outcomes

MASKED_COLUMNS: Final = (
    Column("masked_pos", pa.list_(pa.int32()), "positions of the mask token: put there, or in the text itself"),
    Column(
        "masked_true_ids",
        pa.list_(pa.int32()),
        "ids of the tokens that stood there; null, as are those below, for a mask of the text's own",
    ),
    Column("masked_true_tokens", pa.list_(pa.string()), "the same as text"),
    Column("masked_pred_ids", pa.list_(pa.int32()), "ids of the most probable tokens there"),
    Column("masked_pred_tokens", pa.list_(pa.string()), "the same as text"),
    Column("masked_true_probs", pa.list_(pa.float32()), "probability of the token that stood there"),
    Column("masked_pred_probs", pa.list_(pa.float32()), "probability of the predicted token"),
    Column("masked_entropies", pa.list_(pa.float32()), "entropy of the distribution, nats"),
    Column("masked_true_ranks", pa.list_(pa.int32()), "rank of the token that stood there, 1 = top"),
    Column("masked_correct", pa.list_(pa.bool_()), "masked_pred_ids == masked_true_ids"),
)

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
_READ: Final = ("masked_pos", "masked_true_ids", "masked_pred_ids", "masked_true_probs", "masked_pred_probs")


def _check(tokens: TokenTable) -> Iterator[CheckResult]:
    """Check the `masked_` columns: lists of one length each row, inside the text, and consistent."""
    table, spans, usable, vocab_size = tokens.table, tokens.spans, tokens.usable, tokens.vocab_size
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
        with suppress(DamagedRunError):  # the column's own check reports it
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


def _decisions(table: pa.Table) -> Decisions:
    """Return a decision for every masked token; the competitor is known only where the model was wrong."""
    each = pc.list_value_length(table.column("masked_pos").combine_chunks()).to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(table.num_rows), each)
    flat = pa.table({name: table.column(name).combine_chunks().flatten() for name in _READ})
    true, pred = (numbers_or(flat, f"masked_{which}_ids", NONE).astype(np.int64) for which in ("true", "pred"))
    true_prob, pred_prob = (numbers_or(flat, f"masked_{which}_probs", np.nan) for which in ("true", "pred"))
    known, correct = true >= 0, (true == pred) & (true >= 0)
    return Decisions(
        example_id=names_of(table.take(pa.array(row))),
        row=row,
        position=numbers_or(flat, "masked_pos", NONE).astype(np.int64),
        true_id=true,
        pred_id=pred,
        competitor_id=np.where(correct | ~known, NONE, pred),
        correct=correct,
        pred_prob=pred_prob.astype(np.float32),
        difference=np.where(correct | ~known, np.nan, behind(true_prob, pred_prob)).astype(np.float32),
    )


def _predictions(values: Mapping[str, Any], kinds: Sequence[Kind]) -> list[Prediction]:
    """Return what was predicted at every masked position, and what stood there."""
    names = ("pos", "correct", "true_ids", "true_tokens", "true_probs", "pred_ids", "pred_tokens", "pred_probs")
    columns = [values.get(f"masked_{name}") or [] for name in (*names, "entropies", "true_ranks")]
    predictions = []
    for pos, correct, *words, entropy, rank in zip(*columns, strict=True):
        true, pred = (
            None if token is None else Token(int(token), str(text), prob)
            for token, text, prob in (words[:3], words[3:])
        )
        top = (pred,) if correct or true is None else (pred, true)
        predictions.append(Prediction(int(pos), correct, true is not None, Said(true, pred, entropy, None, rank, top)))
    return predictions


def _headline(figures: Mapping[str, Any]) -> list[str]:
    own_masks = figures.get("n_own_masks")
    lines = [f"Masks of the texts' own, whose truth is not known: {own_masks}"] if own_masks else []
    if not figures.get("n_masked"):
        return lines
    return [
        f"Masked tokens: {figures['masked_accuracy']:.1%} right, mean NLL {figures['mean_masked_nll']:.3f} nats, "
        f"over {figures['n_masked']} masked tokens",
        *lines,
    ]


MASKED_TOKEN: Final = Task(
    objective="masked",
    run_word="masked",
    model="masked",
    prefixes=("enc",),
    columns=(*TOKEN_COLUMNS, *MASKED_COLUMNS),
    known_by=("masked_pos",),
    together=((tuple(c.name for c in MASKED_COLUMNS), ()),),
    position_lists=("masked_pos",),
    may_hold_nulls=_OF_TRUTH,
    check=_check,
    headline=_headline,
    many=Reading("masked_pos", _READ, _decisions, none="none of its tokens is masked"),
    fills_gaps=True,
    linear_head=False,
    predictions=_predictions,
    words=Words(
        where="for",
        truth="there stood",
        no_lens=f"The lens at masked tokens is a table, {LENS_TABLE}, which the command writes; it is not drawn here.",
    ),
)
