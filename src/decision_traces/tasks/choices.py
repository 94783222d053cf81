"""Deciding between choices: what prompts with answers and multiple choice have in common."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import Float64

from decision_traces.checks import CheckResult, rule
from decision_traces.errors import DamagedRunError
from decision_traces.format.arrays import TOKENS_FILE
from decision_traces.format.columns import Column
from decision_traces.format.lists import list_levels, rectangle
from decision_traces.tasks.decisions import Kind
from decision_traces.tasks.figures import Figure, column_figure
from decision_traces.tasks.task import ListRow, Option, Prediction, TokenTable, Verdict

if TYPE_CHECKING:
    import pandas as pd

CHOICE_OUTCOME: Final = (
    Column("choice_labels", pa.list_(pa.string()), "letters of the choices"),
    Column("choice_logits", pa.list_(pa.float32()), "score of each choice"),
    Column("choice_probs", pa.list_(pa.float32()), "softmax of the scores over the choices"),
    Column("pred_idx", pa.int32(), "choice with the highest score"),
    Column("pred_label", pa.string(), "its letter"),
    Column("is_correct", pa.bool_(), "whether it is the right one; null without an answer"),
)

TOGETHER: Final = (
    (("choice_labels", "choice_logits", "choice_probs"), ("choice_texts", "csqa_choices", "choice_token_ids")),
)
LISTED: Final = ("is_correct", "choice_probs", "choice_logits", "choice_logprob_sum", "pred_idx")
_FIGURES: Final = ("pred_idx", "choice_probs", "choice_logits")
_OF_TEXTS: Final = ("logprob_sum", "logprob_mean")


def check_choices(rows: TokenTable, label: str) -> Iterator[CheckResult]:
    """Check the choice columns that are there: probabilities, prediction, whether it is right.

    Args:
        rows: The table.
        label: Column of the right choice.
    """
    table, names = rows.table, rows.usable
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
    if {label, "is_correct"} <= names:
        truth, stored = (table.column(n).to_pylist() for n in (label, "is_correct"))
        known = [t is not None and t >= 0 for t in truth]
        right = [bool(p == t) if k else None for p, t, k in zip(pred, truth, known, strict=True)]
        wrong = np.array([s != r for s, r in zip(stored, right, strict=True)], dtype=bool)
        yield rule("is_correct", wrong, ids, f"is_correct == (pred_idx == {label}), null without an answer")


def _figures(table: "pd.DataFrame") -> Sequence[np.ndarray]:
    """Return probability, entropy and margin of the choices; a choice of probability 0 adds no entropy."""
    if not set(_FIGURES) <= set(table.columns):  # older tools kept only the verdict
        return [np.full(len(table), np.nan)] * 3
    probs, logits = (np.stack(table[c].to_list()).astype(np.float64) for c in ("choice_probs", "choice_logits"))
    chosen = np.take_along_axis(probs, table["pred_idx"].to_numpy(dtype=np.int64)[:, None], axis=1)[:, 0]
    return [chosen, _entropy(probs), _lead(logits)]


def _entropy(probs: Float64[np.ndarray, "n choices"]) -> Float64[np.ndarray, " n"]:
    logs = np.log(probs, out=np.zeros_like(probs), where=probs > 0)
    entropy: np.ndarray = -(probs * logs).sum(1)
    return entropy


def _lead(logits: Float64[np.ndarray, "n choices"]) -> Float64[np.ndarray, " n"]:
    best = np.sort(logits, axis=1)
    lead: np.ndarray = best[:, -1] - best[:, -2]
    return lead


def listed(table: pa.Table, kinds: Sequence[Kind]) -> list[Figure]:
    """Return the figures of the example list."""
    if "choice_probs" not in table.column_names or not table.num_rows:
        return []
    probs, logits = (_by_choice(table, f"choice_{quantity}") for quantity in ("probs", "logits"))
    right = [column_figure(table, "is_correct", "correct", "right")] if "is_correct" in table.column_names else []
    unit = "nats" if "choice_logprob_sum" in table.column_names else "logits"
    return [
        *right,
        Figure("entropy", "entropy over the choices", "nats", _entropy(probs).astype(np.float32)),
        Figure("margin", "margin, best − second", unit, _lead(logits).astype(np.float32)),
        Figure("pred_prob", "probability of the answer given", "", probs.max(1).astype(np.float32)),
    ]


def _by_choice(table: pa.Table, name: str) -> Float64[np.ndarray, "n choices"]:
    """Return a figure of every choice.

    Raises:
        DamagedRunError: Questions have no choices, or not as many as one another.
    """
    if name not in table.column_names or list_levels(table.column(name)) in {None, (), (0,), (1,)}:
        raise DamagedRunError(f"{TOKENS_FILE} is damaged: {name} has not the same number of choices in every row.")
    values: np.ndarray = rectangle(table.column(name)).astype(np.float64)
    return values


def options(values: Mapping[str, Any], texts: str, right: str) -> list[Option] | None:
    """Return the choices of a question with their scores; None where the run does not have them.

    Args:
        values: Its row.
        texts: Column of the choices' texts.
        right: Column of the right choice.
    """
    if values.get("choice_probs") is None:
        return None
    named, ids = values.get(texts) or [], values.get("choice_token_ids") or []
    return [
        Option(
            label=str(label),
            text=str(named[i]) if i < len(named) else "",
            id=int(ids[i]) if i < len(ids) else i,
            logit=values["choice_logits"][i],
            prob=values["choice_probs"][i],
            right=values.get(right) == i,
            given=values.get("pred_idx") == i,
            more={name: values[f"choice_{name}"][i] for name in _OF_TEXTS if values.get(f"choice_{name}")},
        )
        for i, label in enumerate(values["choice_labels"])
    ]


def prediction(values: Mapping[str, Any], position: int | None) -> list[Prediction]:
    """Return the one decision of a question; none where the run does not have it."""
    if values.get("choice_probs") is None:
        return []
    correct = values.get("is_correct")
    return [Prediction(position, correct, correct is not None)]


def headline(figures: Mapping[str, Any]) -> list[str]:
    """Return how many answers were right, and how sure the model was."""
    if figures.get("n_answers") is None:
        return []
    sure = f"mean probability of the chosen answer {figures['mean_choice_confidence']:.3f}"
    known = figures["n_answers"]
    right = f"{figures['choice_accuracy']:.1%} of {known} right" if known else "no answers known"
    mass = figures.get("mean_choice_mass")
    among = "" if mass is None else f", of all five tokens among the vocabulary {mass:.3f}"
    return [f"Choices: {right}, {sure}{among}"]


VERDICT: Final = Verdict("is_correct", _FIGURES, _figures)
LIST_ROW: Final = ListRow(text="question", from_end=False, target="answerKey", said="pred_label")
