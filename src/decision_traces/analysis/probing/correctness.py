"""Does a layer know whether the answer will be right? A linear probe per depth, beside one on shuffled labels."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Int, Int64

from decision_traces.analysis.comparison.answers import final_answers
from decision_traces.analysis.probing.states import answer_states
from decision_traces.errors import UsageError
from decision_traces.store import TraceStore

# Strong L2 on standardised features: with more dimensions than examples a weak one separates any labels, and the
# optimum lies far out. It also lets L-BFGS converge in tens of steps.
_INVERSE_L2: Final = 1e-3
_MOST_STEPS: Final = 2000
_PENALTIES: Final = tuple(10.0**power for power in range(-1, 7))
SCORES: Final = ("auroc", "balanced_accuracy", "control_auroc", "control_balanced_accuracy")


@dataclass(frozen=True, slots=True)
class FoldScores:
    """How well one probe predicts on examples it was not fitted to.

    Attributes:
        auroc: (fold,) area under the ROC curve.
        balanced_accuracy: (fold,) mean of the shares found among the right and among the wrong.
    """

    auroc: Float64[np.ndarray, " fold"]
    balanced_accuracy: Float64[np.ndarray, " fold"]


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """How well correctness can be read from each depth: 0 is the embedding, l the output of layer l.

    The control is the same probe on shuffled labels (after the control tasks of Hewitt & Liang 2019): how far its
    scores lie from 0.5 is luck and capacity, not knowledge.

    Attributes:
        auroc: (depth, fold) on the left-out fold.
        balanced_accuracy: (depth, fold).
        control_auroc: (depth, control) with shuffled labels: all folds of the first shuffle, of the second, ...
        control_balanced_accuracy: (depth, control) with shuffled labels.
        n_right: Right examples used.
        n_wrong: Wrong examples used.
    """

    auroc: Float64[np.ndarray, "depth fold"]
    balanced_accuracy: Float64[np.ndarray, "depth fold"]
    control_auroc: Float64[np.ndarray, "depth control"]
    control_balanced_accuracy: Float64[np.ndarray, "depth control"]
    n_right: int
    n_wrong: int

    def __post_init__(self) -> None:
        """Check that all fields speak of the same depths and folds."""
        shapes = [getattr(self, name).shape for name in SCORES]
        if shapes[0] != shapes[1] or shapes[2] != shapes[3] or shapes[0][0] != shapes[2][0]:
            raise ValueError(f"scores and controls need one shape each and the same depths, got {shapes}")

    def mean(self, score: str) -> Float64[np.ndarray, " depth"]:
        """Return the mean of one of `SCORES` over folds, and over shuffles for a control."""
        values: np.ndarray = getattr(self, score).mean(1)
        return values

    def sd(self, score: str) -> Float64[np.ndarray, " depth"]:
        """Return the standard deviation (n - 1) of one of `SCORES` over what its mean is over."""
        values: np.ndarray = getattr(self, score).std(1, ddof=1)
        return values

    def to_frame(self) -> pd.DataFrame:
        """Return one row per depth: mean and SD of each score."""
        columns: dict[str, object] = {"depth": np.arange(len(self.auroc))}
        for score in SCORES:
            columns |= {score: self.mean(score), f"{score}_sd": self.sd(score)}
        columns |= {"folds": self.auroc.shape[1], "n_right": self.n_right, "n_wrong": self.n_wrong}
        return pd.DataFrame(columns)


def probe_correctness(
    store: TraceStore,
    *,
    folds: int = 5,
    max_examples: int | None = None,
    shuffles: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> ProbeResult:
    """Predict from the hidden state at each depth whether the answer is right.

    The state is taken where the answer is given; see `answer_states`. Memory: one vector per example and depth at a
    time, in float64 for the examples used.

    Args:
        store: A run that captured `hidden` or `resid` and has predictions.
        folds: Of the stratified cross-validation.
        max_examples: Use no more than these, as evenly from right and wrong as there are; all where left out.
        shuffles: Of the labels, for the control.
        seed: Of folds, subsample and shuffles.
        progress: Called with (depths done, of how many).

    Raises:
        NotCapturedError: The run captured neither `hidden` nor `resid`.
        UsageError: Right or wrong examples are fewer than folds (the message has the numbers), the run
            has no predictions, a number makes no sense, or the run does not keep all layers.
        SelectionError: The run does not keep the position at which some answer is given.
    """
    if shuffles < 1 or (max_examples is not None and max_examples < 1):
        raise UsageError(f"shuffles and max_examples must be 1 or more, got {shuffles} and {max_examples}.")
    answers, states = final_answers(store), answer_states(store)
    usable = np.flatnonzero(states.is_there[answers.row])
    chosen = usable[even_subsample((~answers.correct[usable]).astype(np.int64), max_examples, seed)]
    rows, correct = answers.row[chosen], answers.correct[chosen]
    check_folds(correct, folds)
    scores = []
    for depth in range(len(states)):
        scores.append(_scores(states.at(depth, rows), correct, folds, shuffles, seed))
        if progress is not None:
            progress(depth + 1, len(states))
    stacked = {score: np.stack([s[score] for s in scores]) for score in SCORES}
    return ProbeResult(n_right=int(correct.sum()), n_wrong=int((~correct).sum()), **stacked)


def cross_validate(
    features: Float[np.ndarray, "n d"],
    labels: Bool[np.ndarray, " n"] | Int[np.ndarray, " n"],
    *,
    folds: int = 5,
    seed: int = 0,
) -> FoldScores:
    """Fit a linear probe on all folds but one and score it on that one, for each fold.

    Logistic regression with L2 on features standardised on the fitting folds, classes weighted to count alike. Of
    more than two classes the AUROC is the mean over each of them against the rest.

    Args:
        features: (n, d).
        labels: (n,) true or false, or the number of a class.
        folds: Stratified and shuffled.
        seed: Of the shuffle.

    Raises:
        UsageError: A class has fewer members than folds.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score, roc_auc_score
    from sklearn.model_selection import StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    check_folds(labels, folds)
    auroc, balanced = [], []
    for fitted, held_out in StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, labels):
        model = LogisticRegression(C=_INVERSE_L2, class_weight="balanced", max_iter=_MOST_STEPS)
        probe = make_pipeline(StandardScaler(), model).fit(features[fitted], labels[fitted])
        margin = probe.decision_function(features[held_out])
        one_each = [margin] if margin.ndim == 1 else margin.T
        classes = probe.classes_[-len(one_each) :]
        areas = [roc_auc_score(labels[held_out] == c, m) for c, m in zip(classes, one_each, strict=True)]
        auroc.append(np.mean(areas))
        balanced.append(balanced_accuracy_score(labels[held_out], probe.predict(features[held_out])))
    return FoldScores(np.array(auroc, np.float64), np.array(balanced, np.float64))


def cross_validate_number(
    features: Float[np.ndarray, "n d"], values: Float[np.ndarray, " n"], *, folds: int = 5, seed: int = 0
) -> Float64[np.ndarray, " fold"]:
    """Fit a linear probe of a number on all folds but one; return its R² on that one, for each fold.

    Ridge regression on features standardised on the fitting folds, its penalty chosen on these only.

    Args:
        features: (n, d).
        values: (n,) the numbers.
        folds: Shuffled.
        seed: Of the shuffle.

    Raises:
        UsageError: There are fewer than two examples a fold.
    """
    from sklearn.linear_model import RidgeCV
    from sklearn.metrics import r2_score
    from sklearn.model_selection import KFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(values) < 2 * folds:
        raise UsageError(f"A probe of a number in {folds} folds needs {2 * folds} examples; there are {len(values)}.")
    scores = []
    for fitted, held_out in KFold(folds, shuffle=True, random_state=seed).split(features):
        probe = make_pipeline(StandardScaler(), RidgeCV(_PENALTIES)).fit(features[fitted], values[fitted])
        scores.append(r2_score(values[held_out], probe.predict(features[held_out])))
    return np.array(scores, np.float64)


def check_folds(labels: Bool[np.ndarray, " n"] | Int[np.ndarray, " n"], folds: int) -> None:
    """Refuse a cross-validation whose folds cannot all hold all classes; see `check_counts`."""
    if labels.dtype == bool:
        check_counts({"right": int(labels.sum()), "wrong": int((~labels).sum())}, folds)
    else:
        check_counts({f"of class {c}": int((labels == c).sum()) for c in np.unique(labels)}, folds)


def check_counts(sizes: Mapping[str, int], folds: int) -> None:
    """Refuse a cross-validation whose folds cannot all hold all classes.

    Args:
        sizes: Members of each class.
        folds: How many folds.

    Raises:
        UsageError: A class has fewer members than folds, or folds are fewer than two.
    """
    if folds < 2:
        raise UsageError(f"A cross-validation needs 2 folds or more, got {folds}.")
    if min(sizes.values()) < folds:
        counts = [f"{n} {name}" for name, n in sizes.items()]
        raise UsageError(
            f"A probe in {folds} folds needs {folds} examples of each class; there are {', '.join(counts[:-1])} and "
            f"{counts[-1]}. Take fewer folds, or a run with more examples."
        )


def _scores(
    states: Float64[np.ndarray, "n d"], correct: Bool[np.ndarray, " n"], folds: int, shuffles: int, seed: int
) -> dict[str, Float64[np.ndarray, " k"]]:
    """Score the probe and its control; the shuffles are the same at all depths."""
    rng = np.random.default_rng([seed, 1])
    real = cross_validate(states, correct, folds=folds, seed=seed)
    control = [cross_validate(states, rng.permutation(correct), folds=folds, seed=seed) for _ in range(shuffles)]
    return {
        "auroc": real.auroc,
        "balanced_accuracy": real.balanced_accuracy,
        "control_auroc": np.concatenate([c.auroc for c in control]),
        "control_balanced_accuracy": np.concatenate([c.balanced_accuracy for c in control]),
    }


def even_subsample(codes: Int64[np.ndarray, " n"], most: int | None, seed: int) -> Int64[np.ndarray, " k"]:
    """Return which examples to use: even classes serve a probe best, and its scores do not depend on their shares.

    Args:
        codes: (n,) class of each, from 0 on.
        most: How many to use; all where left out.
        seed: Of the choice.
    """
    if most is None or len(codes) <= most:
        return np.arange(len(codes))
    rng = np.random.default_rng([seed, 0])
    members = [rng.permutation(np.flatnonzero(codes == code)) for code in range(int(codes.max()) + 1)]
    chosen: list[np.ndarray] = []
    # The rarest first: what they leave, the others share.
    for done, rank in enumerate(sorted(range(len(members)), key=lambda code: len(members[code]))):
        share = -(-(most - sum(map(len, chosen))) // (len(members) - done))
        chosen.append(members[rank][:share])
    return np.sort(np.concatenate(chosen))
