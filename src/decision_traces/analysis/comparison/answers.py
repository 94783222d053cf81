"""The model's final answers and whether they are right: what every comparison of right and wrong starts from."""

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64

from decision_traces.analysis.columns import read_columns
from decision_traces.errors import UsageError
from decision_traces.store import TraceStore
from decision_traces.tasks.task import Verdict

FINAL_FIGURES: Final = ("answer_prob", "answer_entropy", "answer_margin")


@dataclass(frozen=True, slots=True)
class FinalAnswers:
    """The answers of a run of which it is known whether they are right.

    Attributes:
        row: (n,) row of the example in `tokens.parquet` and on the first axis of every array.
        example_id: (n,) the examples.
        correct: (n,) whether the answer is right.
        answer_prob: (n,) probability of the answer given: the model's confidence. NaN where the table has none.
        answer_entropy: (n,) entropy over all tokens, or over the choices, nats.
        answer_margin: (n,) best minus second-best logit.
    """

    row: Int64[np.ndarray, " n"]
    example_id: tuple[str, ...]
    correct: Bool[np.ndarray, " n"]
    answer_prob: Float64[np.ndarray, " n"]
    answer_entropy: Float64[np.ndarray, " n"]
    answer_margin: Float64[np.ndarray, " n"]

    def __post_init__(self) -> None:
        """Check that all fields speak of the same examples."""
        sizes = {len(self.row), len(self.example_id), len(self.correct)}
        if len(sizes | {len(getattr(self, name)) for name in FINAL_FIGURES}) != 1:
            raise ValueError(f"all fields need {len(self.row)} entries")

    def to_frame(self) -> pd.DataFrame:
        """Return one row per example."""
        named = {"row": self.row, "example_id": list(self.example_id), "correct": self.correct}
        return pd.DataFrame(named | {name: getattr(self, name) for name in FINAL_FIGURES})


def final_answers(store: TraceStore) -> FinalAnswers:
    """Return the final answer of every example whose correctness is known.

    Its kind of decision names the column for it (`Task.verdict`). Examples without an answer key, or too short
    for a prediction, are left out.

    Args:
        store: Any run with predictions.

    Raises:
        UsageError: The run has no predictions, or not one whose truth is known.
    """
    answers = all_answers(store)
    answered = answers[answers["correct"].notna()]
    if len(answered) == 0:
        column = _verdict(store).column
        raise UsageError(f"{store.run_dir} has no example of which the right answer is known ({column} is all null).")
    return FinalAnswers(
        row=answered.index.to_numpy(dtype=np.int64),
        example_id=tuple(map(str, answered["example_id"])),
        correct=answered["correct"].to_numpy(dtype=bool),
        **{name: answered[name].to_numpy(dtype=np.float64) for name in FINAL_FIGURES},
    )


def all_answers(store: TraceStore) -> pd.DataFrame:
    """Return the final answer of every example, one row each: `example_id`, `correct` (null: unknown), the figures.

    Raises:
        UsageError: The run has no predictions.
    """
    verdict = _verdict(store)
    table = read_columns(store, ("example_id", verdict.column, *verdict.columns)).to_pandas()
    named = {"example_id": table["example_id"], "correct": table[verdict.column].astype("boolean")}
    return pd.DataFrame(named | dict(zip(FINAL_FIGURES, verdict.figures(table), strict=True)))


def _verdict(store: TraceStore) -> Verdict:
    """Return the column that holds whether an answer is right."""
    verdict = store.task.verdict
    if verdict is None or verdict.column not in store.columns:
        raise UsageError(f"{store.run_dir} has no predictions: neither next_correct nor is_correct is in its table.")
    return verdict
