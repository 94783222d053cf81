"""Next token: a decoder's prediction of the last token of a text, and of what would come after it."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from decision_traces.checks import CheckResult, rule
from decision_traces.format.arrays import TOKENS_FILE
from decision_traces.format.columns import TOKEN_COLUMNS, Column
from decision_traces.format.lists import rectangle
from decision_traces.tasks.decisions import NONE, Decisions, Kind, behind, names_of, numbers_or
from decision_traces.tasks.figures import Figure, column_figure
from decision_traces.tasks.task import ListRow, Prediction, Reading, Said, Task, Token, TokenTable, Verdict
from decision_traces.tasks.token_outcomes import OF_TRUTH, OUTCOME, SCALARS, check_outcomes, outcome_of, true_tokens

if TYPE_CHECKING:
    import pandas as pd

NEXT_TOKEN_COLUMNS: Final = (
    Column("next_pos", pa.int32(), "position of the prediction, n_tokens - 2; -1 where there is none"),
    *(Column(f"next_{c.name}", c.type, c.doc) for c in OUTCOME),
    # What comes after all that the model read; no truth is looked for, also not of a text that was cut. Not in runs
    # before format 1.2.
    Column("after_pos", pa.int32(), "position of the last token, n_tokens - 1; -1 where there is none", optional=True),
    *(Column(f"after_{c.name}", c.type, c.doc, optional=True) for c in OUTCOME if c.name not in OF_TRUTH),
)

_READ: Final = ("pos", "true_id", "pred_id", "true_prob", "pred_prob", "margin", "topk_ids")
_FIGURES: Final = ("next_pred_prob", "next_entropy", "next_margin")
_LISTED: Final = (
    ("correct", "correct", "right", ""),
    ("entropy", "entropy", "entropy", "nats"),
    ("margin", "margin", "margin, top 1 − top 2", "logits"),
    ("true_prob", "true_prob", "probability of the actual token", ""),
    ("pred_prob", "pred_prob", "probability of the predicted token", ""),
    ("true_rank", "rank", "rank of the actual token", ""),
)
_AFTER: Final = ("after_", "after the text: ")
"""Prefixes for the names and labels of what comes after the text, where that is not the run's own decision."""


def _check(rows: TokenTable) -> Iterator[CheckResult]:
    if rows.spans.start.ndim > 1:
        return
    yield from _check_next(rows)
    yield from _check_after(rows)


def _check_next(rows: TokenTable) -> Iterator[CheckResult]:
    """Check the `next_` columns against the tokens that were read."""
    table, spans, usable = rows.table, rows.spans, rows.usable
    if "next_pos" not in usable:
        return
    ids = table.column("example_id").to_pylist()
    position = pc.fill_null(table.column("next_pos"), -1).to_numpy()
    expected = np.where(spans.n_tokens >= 2, spans.stop - 2, -1)
    yield rule("next_pos", position != expected, ids, "next_pos is n_tokens − 2, or −1 below 2 tokens")
    valid = np.flatnonzero((position == expected) & (position >= 0))
    none = np.flatnonzero(expected < 0)
    names = [f"next_{c}" for c in SCALARS if f"next_{c}" in usable]
    filled = np.zeros(len(ids), dtype=bool)
    for name in names:
        null = np.asarray(pc.is_null(table.column(name)).to_numpy())
        filled[valid] |= null[valid]
        filled[none] |= ~null[none] if name == "next_true_id" else False
    yield rule("predictions where there is a next token", filled, ids, "null exactly where next_pos is −1")
    made = valid[~filled[valid]]
    part = table.take(pa.array(made))
    truth = true_tokens(table, made, position[made] + 1, rows.input_ids) if rows.input_ids in usable else None
    columns = {c: f"next_{c}" for c in (*SCALARS, "topk_ids", "topk_probs") if f"next_{c}" in usable}
    yield from check_outcomes(part, columns, truth, [ids[r] for r in made], rows.vocab_size, TOKENS_FILE)


def _check_after(rows: TokenTable) -> Iterator[CheckResult]:
    """Check the `after_` columns, where there are any."""
    table, spans, usable = rows.table, rows.spans, rows.usable
    if "after_pos" not in usable:
        return
    ids = table.column("example_id").to_pylist()
    expected = np.where(spans.n_tokens >= 1, spans.stop - 1, -1)
    position = pc.fill_null(table.column("after_pos"), -2).to_numpy()
    yield rule("after_pos", position != expected, ids, "after_pos is n_tokens − 1, or −1 without a token")
    columns = {c: f"after_{c}" for c in (*SCALARS, "topk_ids", "topk_probs") if f"after_{c}" in usable}
    made = np.flatnonzero(expected >= 0)
    part = table.take(pa.array(made))
    nulls = sum(part.column(name).null_count for name in columns.values())
    yield CheckResult("predictions after the text", nulls == 0, float(nulls), TOKENS_FILE, "none is null", TOKENS_FILE)
    yield from check_outcomes(part, columns, None, [ids[r] for r in made], rows.vocab_size, TOKENS_FILE)


def decisions(table: pa.Table, kind: Kind) -> Decisions:
    """Return the decisions about the text's last token, or about what comes after it."""
    position = numbers_or(table, f"{kind}_pos", NONE).astype(np.int64)
    rows = np.flatnonzero(position >= 0)
    table = table.take(pa.array(rows))
    true, pred = (numbers_or(table, f"{kind}_{which}_id", NONE).astype(np.int64) for which in ("true", "pred"))
    known, topk = true >= 0, f"{kind}_topk_ids"
    correct = (true == pred) & known
    top = rectangle(table.column(topk)) if topk in table.column_names else pred[:, None]
    second_id = top[:, 1] if top.shape[1] > 1 else np.full(len(rows), NONE)
    true_prob, pred_prob = (numbers_or(table, f"{kind}_{which}_prob", np.nan) for which in ("true", "pred"))
    margin = numbers_or(table, f"{kind}_margin", np.nan)
    return Decisions(
        example_id=names_of(table),
        row=rows,
        position=position[rows],
        true_id=true,
        pred_id=pred,
        competitor_id=np.where(correct | ~known, second_id, pred).astype(np.int64),
        correct=correct,
        pred_prob=pred_prob.astype(np.float32),
        difference=np.where(correct | ~known, margin, behind(true_prob, pred_prob)).astype(np.float32),
    )


def _figures(table: "pd.DataFrame") -> list[np.ndarray]:
    missing = np.full(len(table), np.nan)  # older tools wrote no margin
    return [table[c].to_numpy(dtype=np.float64, na_value=np.nan) if c in table else missing for c in _FIGURES]


def _listed(table: pa.Table, kinds: Sequence[Kind]) -> list[Figure]:
    return [column_figure(table, *one) for one in _named(kinds) if one[0] in table.column_names]


def _named(kinds: Sequence[Kind]) -> Iterator[tuple[str, str, str, str]]:
    """Yield column, name, label and unit of every figure that decisions about tokens may have."""
    for kind in kinds:
        before, label_before = ("", "") if kind == kinds[0] else _AFTER
        yield from (
            (f"{kind}_{column}", before + name, label_before + label, unit) for column, name, label, unit in _LISTED
        )


def _predictions(values: Mapping[str, Any], kinds: Sequence[Kind]) -> list[Prediction]:
    made = (outcome_of(values, kind) for kind in kinds)
    return [_prediction(outcome) for outcome in made if outcome["pos"] is not None and outcome["pos"] >= 0]


def _prediction(outcome: Mapping[str, Any]) -> Prediction:
    top = zip(*(outcome[f"topk_{column}"] or [] for column in ("ids", "tokens", "probs")), strict=True)
    known = outcome["true_id"] is not None
    answer = Said(
        _token(outcome, "true") if known else None,
        _token(outcome, "pred"),
        outcome["entropy"],
        outcome["margin"],
        outcome["true_rank"],
        tuple(Token(int(i), str(text), prob) for i, text, prob in top),
    )
    return Prediction(int(outcome["pos"]), outcome["correct"] if known else None, known, answer)


def _headline(figures: Mapping[str, Any]) -> list[str]:
    if not figures.get("n_predictions"):
        return []
    return [
        f"Next token: {figures['next_accuracy']:.1%} right, mean NLL {figures['mean_next_nll']:.3f} nats, "
        f"mean entropy {figures['mean_next_entropy']:.3f} nats, over {figures['n_predictions']} predictions"
    ]


def _reading(kind: Kind, *kept: str) -> Reading:
    columns = tuple(f"{kind}_{name}" for name in _READ)
    return Reading(f"{kind}_pos", columns, partial(decisions, kind=kind), frozenset(kept))


NEXT_TOKEN: Final = Task(
    objective="next_token",
    run_word="nexttok",
    model="causal",
    prefixes=("dec",),
    columns=(*TOKEN_COLUMNS, *NEXT_TOKEN_COLUMNS),
    known_by=("next_pos",),
    together=tuple((tuple(f"{kind}_topk_{of}" for of in ("ids", "tokens", "probs")), ()) for kind in ("next", "after")),
    decided_at="next_pos",
    positions=("next_pos", "after_pos"),
    check=_check,
    headline=_headline,
    decisions={"next": _reading("next", "all", "next", "some"), "after": _reading("after", "all", "last")},
    verdict=Verdict("next_correct", _FIGURES, _figures),
    listed_from=lambda kinds: tuple(column for column, *_ in _named(kinds)),
    listed=_listed,
    list_row=ListRow(target="{kind}_true_token", said="{kind}_pred_token"),
    predictions=_predictions,
)


def _token(outcome: Mapping[str, Any], which: str) -> Token:
    return Token(outcome[f"{which}_id"], str(outcome[f"{which}_token"]), outcome[f"{which}_prob"])
