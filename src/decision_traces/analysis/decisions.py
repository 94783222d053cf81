"""Which decision each example of a run is about: where it was made, what is true, what was said, the closest rival."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int64

from decision_traces.analysis.columns import read_columns
from decision_traces.analysis.requirements import what_works
from decision_traces.errors import DataError, UsageError
from decision_traces.format.arrays import Positions
from decision_traces.format.lists import rectangle
from decision_traces.store import TraceStore

Kind = Literal["next", "after", "answer"]
"""Which decision: about the text's last token, about what comes after the text, about the answer to a question."""

NONE: Final = -1
FIRST_LOGITS: Final = "choice_token_logits"
_SMALLEST_PROB: Final = 1e-30  # below it a float32 probability loses digits, and so would its logarithm


@dataclass(frozen=True, slots=True)
class Choices:
    """The answers that a multiple-choice decision is between, as the run's table has them.

    Attributes:
        labels: n tuples of C labels, as in the prompt ("A", "B", ...).
        token_ids: (n, C) the token that says each answer; of an answer of several tokens the first.
        correct_idx: (n,) the right answer; -1 where it is not known.
        pred_idx: (n,) the answer the model gave.
        logits: (n, C) the model's logits of these tokens.
        probs: (n, C) softmax of these.
    """

    labels: tuple[tuple[str, ...], ...]
    token_ids: Int64[np.ndarray, "n choice"]
    correct_idx: Int64[np.ndarray, " n"]
    pred_idx: Int64[np.ndarray, " n"]
    logits: Float32[np.ndarray, "n choice"]
    probs: Float32[np.ndarray, "n choice"]

    def __post_init__(self) -> None:
        """Check that all fields speak of the same examples and answers."""
        shape = self.token_ids.shape
        if not self.logits.shape == self.probs.shape == shape:
            raise ValueError(f"token_ids, logits and probs need one shape, got {shape}")
        if {len(self.labels), len(self.correct_idx), len(self.pred_idx)} != {shape[0]}:
            raise ValueError(f"labels, correct_idx and pred_idx need {shape[0]} entries")


@dataclass(frozen=True, slots=True)
class Decisions:
    """One decision an example, all of one kind.

    The competitor is the most probable token other than the true one at the end of the model (of multiple-choice
    runs: the strongest other choice). Where the truth is not known, as of what comes after a text, it is the runner-up
    of the predicted token.

    Attributes:
        example_id: n examples; those without a decision are left out.
        row: (n,) row of `tokens.parquet` and of every array, ascending; several times that of a text with masks.
        position: (n,) where the prediction was made.
        true_id: (n,) the true token; -1 where it is not known.
        pred_id: (n,) the token the model chose.
        competitor_id: (n,) -1 where the table does not tell it (see `analysis.lens.with_competitors`).
        correct: (n,) whether the choice is right; False where the truth is not known.
        pred_prob: (n,) stored probability of the choice, over the vocabulary or over the answers; NaN: not stored.
        difference: (n,) logit of `target_id` minus that of the competitor as the model had it; NaN: not stored.
        choices: The answers, for multiple-choice runs.
    """

    example_id: tuple[str, ...]
    row: Int64[np.ndarray, " n"]
    position: Int64[np.ndarray, " n"]
    true_id: Int64[np.ndarray, " n"]
    pred_id: Int64[np.ndarray, " n"]
    competitor_id: Int64[np.ndarray, " n"]
    correct: Bool[np.ndarray, " n"]
    pred_prob: Float32[np.ndarray, " n"]
    difference: Float32[np.ndarray, " n"]
    choices: Choices | None = None

    def __post_init__(self) -> None:
        """Check that all fields speak of the same examples, in the order of the run."""
        n = len(self.example_id)
        fields = (self.row, self.position, self.true_id, self.pred_id, self.competitor_id, self.correct)
        if any(len(values) != n for values in (*fields, self.pred_prob, self.difference)):
            raise ValueError(f"all fields need {n} entries")
        if n > 1 and (np.diff(self.row) < 0).any():
            raise ValueError("rows need to ascend")

    def __len__(self) -> int:
        """Return the number of decisions."""
        return len(self.example_id)

    @property
    def target_id(self) -> Int64[np.ndarray, " n"]:
        """The token whose lead over the competitor is explained: the true one, else the predicted one."""
        target: np.ndarray = np.where(self.true_id >= 0, self.true_id, self.pred_id)
        return target


def kinds_of(store: TraceStore) -> tuple[Kind, ...]:
    """Return which decisions can be looked at in a decoder run, its own first.

    Multiple-choice runs have the columns `answer_pos` and `choice_token_ids`, next-token runs `next_pos` and
    `after_pos`; of these two a run of `--positions next` or `last` keeps one.

    Raises:
        UsageError: The run has no decision that could be read at one position.
        DataError: No example of the run has a prediction.
    """
    if "choice_token_ids" in store.columns:
        return ("answer",)
    table = store.table(f"{kind}_pos" for kind in _OF_TOKENS)
    if table.num_columns == 0:
        raise UsageError(
            f"{store.run_dir} has no decision at one position of a decoder: neither next_pos nor choice_token_ids "
            f"is in its table. {what_works(store)}"
        )
    there = [kind for kind in _OF_TOKENS if (_numbers(table, f"{kind}_pos", NONE) >= 0).any()]
    if not there:
        raise DataError(f"{store.run_dir} holds no prediction: its texts are too short.")
    kept: Mapping[Positions, tuple[Kind, ...]] = {"all": _OF_TOKENS, "last": ("after",)}
    wanted = kept.get(store.dims("dec").positions, ("next",))
    return tuple(kind for kind in there if kind in wanted) or tuple(there[:1])


def decisions_of(store: TraceStore, kind: Kind | None = None) -> Decisions:
    """Return the decisions of a decoder run, or of a masked run those at its masked tokens.

    Args:
        store: The run. Only the columns needed are read.
        kind: Which ones; the run's own where left out: the answers, or the next tokens, or what comes after the texts
            where only their last positions are kept.

    Raises:
        UsageError: The run has no such decision.
        DataError: No example of the run has a prediction.
    """
    if "masked_pos" in store.columns:
        return _masked(read_columns(store, ("example_id", *_MASKED_COLUMNS)), store)
    kinds = kinds_of(store)
    kind = kinds[0] if kind is None else kind
    if kind not in kinds:
        raise UsageError(f"{store.run_dir} has no decision {kind!r} to look at, only {', '.join(map(repr, kinds))}.")
    if kind == "answer":
        return _answers(read_columns(store, _ANSWER_COLUMNS))
    return _tokens(read_columns(store, ("example_id", *(f"{kind}_{name}" for name in _TOKEN_COLUMNS))), kind)


_OF_TOKENS: Final[tuple[Kind, ...]] = ("next", "after")
_TOKEN_COLUMNS: Final = ("pos", "true_id", "pred_id", "true_prob", "pred_prob", "margin", "topk_ids")
_MASKED_COLUMNS: Final = (
    "masked_pos", "masked_true_ids", "masked_pred_ids", "masked_true_probs", "masked_pred_probs",
)  # fmt: skip
_ANSWER_COLUMNS: Final = (
    "example_id", "answer_pos", "choice_token_ids", "choice_labels", "choice_logits", "choice_probs",
    "correct_idx", "pred_idx", FIRST_LOGITS,
)  # fmt: skip


def _tokens(table: pa.Table, kind: Kind) -> Decisions:
    position = _numbers(table, f"{kind}_pos", NONE).astype(np.int64)
    rows = np.flatnonzero(position >= 0)
    table = table.take(pa.array(rows))
    true, pred = (_numbers(table, f"{kind}_{which}_id", NONE).astype(np.int64) for which in ("true", "pred"))
    known, topk = true >= 0, f"{kind}_topk_ids"
    correct = (true == pred) & known
    top = rectangle(table.column(topk)) if topk in table.column_names else pred[:, None]
    runner_up = top[:, 1] if top.shape[1] > 1 else np.full(len(rows), NONE)
    true_prob, pred_prob = (_numbers(table, f"{kind}_{which}_prob", np.nan) for which in ("true", "pred"))
    margin = _numbers(table, f"{kind}_margin", np.nan)
    return Decisions(
        example_id=_names(table),
        row=rows,
        position=position[rows],
        true_id=true,
        pred_id=pred,
        competitor_id=np.where(correct | ~known, runner_up, pred).astype(np.int64),
        correct=correct,
        pred_prob=pred_prob.astype(np.float32),
        difference=np.where(correct | ~known, margin, _behind(true_prob, pred_prob)).astype(np.float32),
    )


def _behind(true_prob: np.ndarray, pred_prob: np.ndarray) -> np.ndarray:
    """Return how far true tokens are behind the predicted ones, logits; NaN where a probability is too small."""
    behind: np.ndarray = np.log(np.where(true_prob > _SMALLEST_PROB, true_prob, np.nan)) - np.log(pred_prob)
    return behind


def _masked(table: pa.Table, store: TraceStore) -> Decisions:
    """Return a decision for every masked token; a competitor is told only where the model was wrong."""
    each = pc.list_value_length(table.column("masked_pos").combine_chunks()).to_numpy(zero_copy_only=False)
    row = np.repeat(np.arange(table.num_rows), each)
    if len(row) == 0:
        raise DataError(f"{store.run_dir} holds no prediction: none of its tokens is masked.")
    flat = pa.table({name: table.column(name).combine_chunks().flatten() for name in _MASKED_COLUMNS})
    true, pred = (_numbers(flat, f"masked_{which}_ids", NONE).astype(np.int64) for which in ("true", "pred"))
    true_prob, pred_prob = (_numbers(flat, f"masked_{which}_probs", np.nan) for which in ("true", "pred"))
    known, correct = true >= 0, (true == pred) & (true >= 0)
    return Decisions(
        example_id=_names(table.take(pa.array(row))),
        row=row,
        position=_numbers(flat, "masked_pos", NONE).astype(np.int64),
        true_id=true,
        pred_id=pred,
        competitor_id=np.where(correct | ~known, NONE, pred),
        correct=correct,
        pred_prob=pred_prob.astype(np.float32),
        difference=np.where(correct | ~known, np.nan, _behind(true_prob, pred_prob)).astype(np.float32),
    )


def _answers(table: pa.Table) -> Decisions:
    """Return the decisions between tokens; of whole texts between their first, where these differ (`text_note`)."""
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
    correct_idx, pred_idx = (_numbers(table, name, NONE).astype(np.int64) for name in ("correct_idx", "pred_idx"))
    every, known = np.arange(len(ids)), correct_idx >= 0
    target = np.where(known, correct_idx, pred_idx)
    others = logits.astype(np.float64)
    others[every, target] = -np.inf
    rival = others.argmax(1)
    return Decisions(
        example_id=_names(table),
        row=rows,
        position=_numbers(table, "answer_pos", NONE).astype(np.int64),
        true_id=np.where(known, ids[every, target], NONE),
        pred_id=ids[every, pred_idx],
        competitor_id=ids[every, rival],
        correct=known & (correct_idx == pred_idx),
        pred_prob=probs[every, pred_idx].astype(np.float32),
        difference=(logits[every, target] - logits[every, rival]).astype(np.float32),
        choices=Choices(
            labels=tuple(map(tuple, table.column("choice_labels").to_pylist())),
            token_ids=ids,
            correct_idx=correct_idx,
            pred_idx=pred_idx,
            logits=logits.astype(np.float32),
            probs=probs.astype(np.float32),
        ),
    )


def text_note(store: TraceStore) -> str | None:
    """Return what a lens on answers of several tokens leaves out, in a sentence; None where it sees all of them."""
    if FIRST_LOGITS not in store.columns:
        return None
    table = read_columns(store, ("choice_text_ids", "choice_token_ids", FIRST_LOGITS, "pred_idx"))
    if all(len(ids) == 1 for answers in table.column("choice_text_ids").to_pylist() for ids in answers):
        return None
    apart = _begin_apart(table)
    lead = rectangle(table.column(FIRST_LOGITS)).argmax(1) == table.column("pred_idx").to_numpy()
    return (
        "The answers were scored as whole texts. The model's inner path ends before them, so what is said of it is "
        f"about their first tokens: of {apart.sum()} questions in which these differ, the answer given leads with its "
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


def _names(table: pa.Table) -> tuple[str, ...]:
    return tuple(map(str, table.column("example_id").to_pylist()))


def _numbers(table: pa.Table, name: str, missing: float | int) -> np.ndarray:
    """Return one column as float64 (exact for ids), with `missing` for nulls or where there is no such column."""
    if name not in table.column_names:
        return np.full(table.num_rows, missing, np.float64)
    column: Any = pc.fill_null(pc.cast(table.column(name), pa.float64(), safe=False), float(missing))
    numbers: np.ndarray = column.to_numpy()
    return numbers
