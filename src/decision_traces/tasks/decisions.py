"""Decisions as analyses take them: where each was made, what is true, what was predicted, the competitor."""

from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float32, Int64

from decision_traces.errors import DamagedRunError

Kind = Literal["next", "after", "answer"]
"""Which decision: about the text's last token, about what comes after the text, about the answer to a question."""

NONE: Final = -1
_SMALLEST_PROB: Final = 1e-30  # below it a float32 probability loses digits, and so would its logarithm


@dataclass(frozen=True, slots=True)
class Choices:
    """The answers that a multiple-choice decision is between, as the run's table has them.

    Attributes:
        labels: n tuples of C labels, as in the prompt ("A", "B", ...).
        token_ids: (n, C) the token of each answer; of an answer of several tokens the first.
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

    The competitor is the most probable other answer at the end of the model: other than the true one (token, or
    choice), and where the truth is not known, as of what comes after a text, other than the predicted one.

    Attributes:
        example_id: n examples; those without a decision are left out.
        row: (n,) row of `tokens.parquet` and of every array, ascending; a text with several masks has its row several
            times.
        position: (n,) where the prediction was made.
        true_id: (n,) the true token; -1 where it is not known.
        pred_id: (n,) the token the model chose.
        competitor_id: (n,) -1 where the table does not have it (see `analysis.lens.with_competitors`).
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


def names_of(table: pa.Table) -> tuple[str, ...]:
    """Return the example_ids of a table as texts.

    Raises:
        DamagedRunError: It has none.
    """
    if "example_id" not in table.column_names:
        raise DamagedRunError(
            "tokens.parquet has no column example_id. Restore it from a copy, or extract the run again."
        )
    return tuple(map(str, table.column("example_id").to_pylist()))


def numbers_or(table: pa.Table, name: str, missing: float | int) -> np.ndarray:
    """Return one column as float64 (exact for ids), with `missing` for nulls or where there is no such column."""
    if name not in table.column_names:
        return np.full(table.num_rows, missing, np.float64)
    column: Any = pc.fill_null(pc.cast(table.column(name), pa.float64(), safe=False), float(missing))
    numbers: np.ndarray = column.to_numpy()
    return numbers


def behind(true_prob: np.ndarray, pred_prob: np.ndarray) -> np.ndarray:
    """Return how far true tokens are behind the predicted ones, logits; NaN where a probability is too small."""
    lag: np.ndarray = np.log(np.where(true_prob > _SMALLEST_PROB, true_prob, np.nan)) - np.log(pred_prob)
    return lag
