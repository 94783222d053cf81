"""Can a layer tell what an example is? A linear probe per depth for any label, beside one on shuffled labels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float64

from decision_traces.analysis.probing.correctness import (
    check_counts,
    cross_validate,
    cross_validate_number,
    even_subsample,
)
from decision_traces.analysis.probing.labels import Labels
from decision_traces.analysis.probing.states import answer_states
from decision_traces.store import TraceStore


@dataclass(frozen=True, slots=True)
class LabelProbe:
    """How well a label can be read from each depth: 0 is the embedding, l the output of layer l.

    Attributes:
        label: The column.
        measure: "balanced accuracy" of classes, "R²" of numbers.
        chance: What the measure is by chance: that of always saying the commonest class, or the mean.
        score: (depth, fold) on the left-out fold.
        control: (depth, control) with shuffled labels: all folds of the first shuffle, of the second, ...
        sizes: Examples used of each class; of numbers, all under `examples`.
    """

    label: str
    measure: str
    chance: float
    score: Float64[np.ndarray, "depth fold"]
    control: Float64[np.ndarray, "depth control"]
    sizes: Mapping[str, int]

    def __post_init__(self) -> None:
        """Check that score and control speak of the same depths."""
        if len(self.score) != len(self.control):
            raise ValueError(f"score and control need the same depths, got {len(self.score)} and {len(self.control)}")

    def to_frame(self) -> pd.DataFrame:
        """Return one row per depth: mean and SD (n - 1) of score and control."""
        return pd.DataFrame(
            {
                "depth": np.arange(len(self.score)),
                "label": self.label,
                "measure": self.measure,
                "score": self.score.mean(1),
                "score_sd": self.score.std(1, ddof=1),
                "control": self.control.mean(1),
                "control_sd": self.control.std(1, ddof=1),
                "chance": self.chance,
                "folds": self.score.shape[1],
                "n_examples": sum(self.sizes.values()),
            }
        )


def probe_label(
    store: TraceStore,
    labels: Labels,
    *,
    folds: int = 5,
    max_examples: int | None = None,
    shuffles: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> LabelProbe:
    """Predict a label from the state at each depth, where the answer is given; see `answer_states`.

    Args:
        store: A run that captured `hidden` or `resid`.
        labels: What to predict.
        folds: Of the cross-validation.
        max_examples: Use no more than these, as evenly from all classes as there are; all where left out.
        shuffles: Of the labels, for the control.
        seed: Of folds, subsample and shuffles.
        progress: Called with (depths done, of how many).

    Raises:
        NotCapturedError: The run captured neither `hidden` nor `resid`.
        UsageError: A class has fewer examples than folds (the message has the numbers).
        SelectionError: The run does not keep the position at which some answer is given.
    """
    states = answer_states(store)
    usable = np.flatnonzero(states.is_there[labels.row])
    used = usable[even_subsample(labels.code[usable], max_examples, seed)]
    if labels.classes:
        sizes = {name: int((labels.code[used] == i).sum()) for i, name in enumerate(labels.classes)}
    else:
        sizes = {"examples": len(used)}
    check_counts(sizes, folds)

    def scores(features: np.ndarray, order: np.ndarray) -> Float64[np.ndarray, " fold"]:
        if labels.classes:
            return cross_validate(features, labels.code[used][order], folds=folds, seed=seed).balanced_accuracy
        return cross_validate_number(features, labels.value[used][order], folds=folds, seed=seed)

    score, control = [], []
    for depth in range(len(states)):
        features, rng = states.at(depth, labels.row[used]), np.random.default_rng([seed, 1])
        score.append(scores(features, np.arange(len(used))))
        control.append(np.concatenate([scores(features, rng.permutation(len(used))) for _ in range(shuffles)]))
        if progress is not None:
            progress(depth + 1, len(states))
    measure, chance = ("balanced accuracy", 1 / len(labels.classes)) if labels.classes else ("R²", 0.0)
    return LabelProbe(labels.name, measure, chance, np.stack(score), np.stack(control), sizes)
