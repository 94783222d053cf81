"""Prompt choice: which answer to a question a decoder gives, read off its prediction at the end of the prompt."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Bool, Float32

from decision_traces.checks import CheckResult, rule
from decision_traces.errors import DataError
from decision_traces.format.arrays import TOKENS_FILE
from decision_traces.format.columns import TOKEN_COLUMNS, Column
from decision_traces.format.lists import list_levels, rectangle
from decision_traces.tasks import choices
from decision_traces.tasks.decisions import NONE, Choices, Decisions, Kind, names_of, numbers_or
from decision_traces.tasks.task import Note, Prediction, Reading, Task, TokenTable

# Of runs that score the choices' whole texts (`--answers text`).
ANSWER_TEXT_COLUMNS: Final = (
    Column("choice_text_ids", pa.list_(pa.list_(pa.int32())), "tokens of each choice behind the prompt", optional=True),
    Column(
        "choice_logprob_sum",
        pa.list_(pa.float32()),
        "log-probability of each choice behind the prompt, nats: the sum over its tokens, which is its score",
        optional=True,
    ),
    Column("choice_logprob_mean", pa.list_(pa.float32()), "the same a token: the sum over their number", optional=True),
    Column(
        "choice_token_logits",
        pa.list_(pa.float32()),
        "logit at answer_pos of the first token of each choice: what a lens sees of it",
        optional=True,
    ),
)

ANSWER_COLUMNS: Final = (
    Column("question", pa.string(), "the question without its choices"),
    Column("answerKey", pa.string(), "letter of the right choice; null without an answer"),
    Column("correct_idx", pa.int32(), "the right choice; -1 without an answer"),
    Column("csqa_choices", pa.list_(pa.string()), "the choices' texts"),
    Column("answer_pos", pa.int32(), "position whose logits are the scores: the last of the prompt, n_tokens - 1"),
    Column("choice_token_ids", pa.list_(pa.int32()), "token of each choice: its letter, or the first of its text"),
    Column("choice_mass", pa.float32(), "probability of all these tokens together among the whole vocabulary"),
    *choices.CHOICE_OUTCOME,
    *ANSWER_TEXT_COLUMNS,
)

FIRST_LOGITS: Final = "choice_token_logits"
_READ: Final = (
    "answer_pos", "choice_token_ids", "choice_labels", "choice_logits", "choice_probs", "correct_idx", "pred_idx",
    FIRST_LOGITS,
)  # fmt: skip
_SLACK: Final = 1e-4  # of float32 sums


def _check(rows: TokenTable) -> Iterator[CheckResult]:
    yield from choices.check_choices(rows, "correct_idx")
    if {"choice_logits", "choice_probs", "pred_idx", "example_id"} <= rows.usable and rows.table.num_rows:
        yield from _texts(rows.table, rows.table.column("example_id").to_pylist())


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
    is_scored = np.array([len(row) == sums.shape[1] and all(row) for row in texts])
    for i in np.flatnonzero(is_scored):
        count[i], begin[i] = (
            [len(text) for text in texts[i]],
            [text[0] for text in texts[i]],
        )
    yield rule("first tokens of answers", begin != first, ids, "choice_token_ids[i] == choice_text_ids[i][0]")
    bad = ~(np.abs(means * count - sums) <= _SLACK * np.maximum(1, np.abs(sums))) | ~(sums <= _SLACK)
    yield rule("log-probabilities of answers", bad, ids, "sum ≤ 0, and the mean times the number of tokens")
    yield rule("scores of answers", scores != sums, ids, "choice_logits == choice_logprob_sum")


def _decisions(table: pa.Table) -> Decisions:
    """Return the decisions between tokens; of whole texts between their first, where these differ (`_note`)."""
    rows = np.arange(table.num_rows)
    if FIRST_LOGITS in table.column_names:
        rows = np.flatnonzero(_begin_apart(table))
        table = table.take(pa.array(rows))
        if len(rows) == 0:
            raise DataError("In every question two answers begin with the same token: no lens tells them apart.")
        ids, logits = (rectangle(table.column(name)) for name in ("choice_token_ids", FIRST_LOGITS))
        probs = _softmax(logits)
    else:
        ids, logits, probs = (rectangle(table.column(f"choice_{name}")) for name in ("token_ids", "logits", "probs"))
    ids = ids.astype(np.int64)
    correct_idx, pred_idx = (numbers_or(table, name, NONE).astype(np.int64) for name in ("correct_idx", "pred_idx"))
    every, known = np.arange(len(ids)), correct_idx >= 0
    target = np.where(known, correct_idx, pred_idx)
    others = logits.astype(np.float64)
    others[every, target] = -np.inf
    competitor = others.argmax(1)
    return Decisions(
        example_id=names_of(table),
        row=rows,
        position=numbers_or(table, "answer_pos", NONE).astype(np.int64),
        true_id=np.where(known, ids[every, target], NONE),
        pred_id=ids[every, pred_idx],
        competitor_id=ids[every, competitor],
        correct=known & (correct_idx == pred_idx),
        pred_prob=probs[every, pred_idx].astype(np.float32),
        difference=(logits[every, target] - logits[every, competitor]).astype(np.float32),
        choices=Choices(
            labels=tuple(map(tuple, table.column("choice_labels").to_pylist())),
            token_ids=ids,
            correct_idx=correct_idx,
            pred_idx=pred_idx,
            logits=logits.astype(np.float32),
            probs=probs.astype(np.float32),
        ),
    )


def _note(table: pa.Table) -> str | None:
    """Return what a lens on answers of several tokens leaves out, in a sentence; None where it sees all of them."""
    if all(len(ids) == 1 for answers in table.column("choice_text_ids").to_pylist() for ids in answers):
        return None
    apart = _begin_apart(table)
    lead = rectangle(table.column(FIRST_LOGITS)).argmax(1) == table.column("pred_idx").to_numpy()
    return (
        "The answers were scored as whole texts. The activations end before them, so the figures here are about "
        f"their first tokens: of {apart.sum()} questions in which these differ, the answer given leads with its "
        f"own in {(apart & lead).sum()}; {(~apart).sum()} questions are left out."
    )


def _begin_apart(table: pa.Table) -> Bool[np.ndarray, " n"]:
    """Return in which rows no two answers begin with the same token."""
    ordered = np.sort(rectangle(table.column("choice_token_ids")), axis=1)
    apart: np.ndarray = (np.diff(ordered, axis=1) != 0).all(1)
    return apart


def _softmax(logits: Float32[np.ndarray, "n choice"]) -> Float32[np.ndarray, "n choice"]:
    weights = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    probs: np.ndarray = (weights / weights.sum(1, keepdims=True)).astype(np.float32)
    return probs


def _predictions(values: Mapping[str, Any], kinds: Sequence[Kind]) -> list[Prediction]:
    return choices.prediction(values, int(values.get("answer_pos", 0)))


PROMPT_CHOICE: Final = Task(
    objective="csqa_choice",
    run_word="csqa-dec",
    model="causal",
    prefixes=("dec",),
    columns=(*TOKEN_COLUMNS, *ANSWER_COLUMNS),
    known_by=("choice_token_ids",),
    together=choices.TOGETHER,
    decided_at="answer_pos",
    positions=("answer_pos",),
    check=_check,
    headline=choices.headline,
    decisions={"answer": Reading("choice_token_ids", _READ, _decisions)},
    verdict=choices.VERDICT,
    note=Note((FIRST_LOGITS, "choice_text_ids", "choice_token_ids", "pred_idx"), _note),
    choices="tokens",
    listed_from=lambda kinds: choices.LISTED,
    listed=choices.listed,
    list_row=choices.LIST_ROW,
    predictions=_predictions,
    options=partial(choices.options, texts="csqa_choices", right="correct_idx"),
)
