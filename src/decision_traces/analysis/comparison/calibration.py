"""Calibration: whether answers given with probability p are right in a share p of cases."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Int64

from decision_traces.analysis.comparison.answers import final_answers
from decision_traces.analysis.moments import divide
from decision_traces.errors import DataError, UsageError
from decision_traces.store import TraceStore

_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Calibration:
    """Confidence against accuracy in bins of equal width (Guo et al. 2017, On Calibration of Modern Neural Networks).

    Attributes:
        edges: (bins + 1,) ends of the bins; each holds its upper end and not its lower one, the first both.
        n_examples: (bins,) answers in each.
        confidence: (bins,) their mean probability, NaN in an empty bin.
        accuracy: (bins,) share that is right, NaN in an empty bin.
        accuracy_low: (bins,) lower end of the 95 % interval of that share (Wilson 1927).
        accuracy_high: (bins,) upper end.
        ece: Expected calibration error: mean |accuracy - confidence| over bins, weighted by answers.
        brier: Mean squared difference between confidence and being right (1) or wrong (0) (Brier 1950).
        mean_confidence: Over all answers.
        mean_accuracy: Over all answers.
    """

    edges: Float64[np.ndarray, " edges"]
    n_examples: Int64[np.ndarray, " bins"]
    confidence: Float64[np.ndarray, " bins"]
    accuracy: Float64[np.ndarray, " bins"]
    accuracy_low: Float64[np.ndarray, " bins"]
    accuracy_high: Float64[np.ndarray, " bins"]
    ece: float
    brier: float
    mean_confidence: float
    mean_accuracy: float

    def __post_init__(self) -> None:
        """Check that all fields speak of the same bins."""
        bins = (self.n_examples, self.confidence, self.accuracy, self.accuracy_low, self.accuracy_high)
        if {len(b) for b in bins} != {len(self.edges) - 1}:
            raise ValueError(f"{len(self.edges)} edges need {len(self.edges) - 1} bins")

    def to_frame(self) -> pd.DataFrame:
        """Return one row per bin."""
        names = ("n_examples", "confidence", "accuracy", "accuracy_low", "accuracy_high")
        ends = {"bin_low": self.edges[:-1], "bin_high": self.edges[1:]}
        return pd.DataFrame(ends | {name: getattr(self, name) for name in names})


def calibrate(confidence: Float[np.ndarray, " n"], correct: Bool[np.ndarray, " n"], *, n_bins: int = 10) -> Calibration:
    """Compare confidence with accuracy.

    Args:
        confidence: (n,) probability of each answer given, 0 to 1.
        correct: (n,) whether it is right.
        n_bins: Bins of equal width between 0 and 1.

    Raises:
        UsageError: There are no answers, or not one confidence for each.
        DataError: A confidence is not a probability.
    """
    if n_bins < 1 or len(confidence) == 0 or confidence.shape != correct.shape:
        raise UsageError(f"Cannot put {confidence.shape} confidences of {correct.shape} answers into {n_bins} bins.")
    p, right = confidence.astype(np.float64), correct.astype(np.float64)
    if not ((p >= 0) & (p <= 1 + 1e-6)).all():
        raise DataError(f"Confidences must be from 0 to 1, got {p.min()} to {p.max()}.")
    edges = np.arange(n_bins + 1) / n_bins
    bin_index = np.clip(np.searchsorted(edges, p, side="left") - 1, 0, n_bins - 1)
    count, total, hits = (np.bincount(bin_index, weights=w, minlength=n_bins) for w in (None, p, right))
    low, high = _wilson(hits, count.astype(np.float64))
    return Calibration(
        edges=edges,
        n_examples=count.astype(np.int64),
        confidence=divide(total, count),
        accuracy=divide(hits, count),
        accuracy_low=low,
        accuracy_high=high,
        ece=float(np.abs(hits - total).sum() / len(p)),
        brier=float(((p - right) ** 2).mean()),
        mean_confidence=float(p.mean()),
        mean_accuracy=float(right.mean()),
    )


def calibration(store: TraceStore, *, n_bins: int = 10) -> Calibration:
    """Compare how sure a run's final answers are with how often they are right.

    The confidence is `next_pred_prob`, or the probability of the chosen answer among the choices. Examples whose
    answer is not known are left out.

    Args:
        store: A run with predictions.
        n_bins: Bins of equal width.

    Raises:
        UsageError: The run has no predictions whose truth is known.
    """
    answers = final_answers(store)
    return calibrate(answers.answer_prob, answers.correct, n_bins=n_bins)


def _wilson(
    hits: Float64[np.ndarray, " bins"], count: Float64[np.ndarray, " bins"]
) -> tuple[Float64[np.ndarray, " bins"], Float64[np.ndarray, " bins"]]:
    """Return the ends of the 95 % score interval of a share, NaN without members."""
    share, z2 = divide(hits, count), _Z95**2
    middle = divide(hits + z2 / 2, count + z2)
    half = _Z95 * divide(np.sqrt(np.maximum(count * share * (1 - share), 0) + z2 / 4), count + z2)
    return np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)
