"""Does a layer know whether the answer will be right? A linear probe per depth, beside one on shuffled labels."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Float64, Int64

from decision_traces.analysis.answers import final_answers
from decision_traces.analysis.columns import read_columns
from decision_traces.analysis.requirements import need_whole
from decision_traces.errors import UsageError
from decision_traces.schema import DEPTH
from decision_traces.store.reader import TraceStore

# Strong L2 on standardised features: with more dimensions than examples a weak one separates any labels, and the
# optimum lies far out. It also lets L-BFGS converge in tens of steps.
_INVERSE_L2: Final = 1e-3
_MOST_STEPS: Final = 2000
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

    The state is taken where the answer is given: at `next_pos`, or `answer_pos` in decoder runs over multiple
    choice; in encoder runs at the first token of the choice that was picked. Memory: one vector per example and
    depth at a time, in float64 for the examples used.

    Args:
        store: A run that captured `hidden` and has predictions.
        folds: Of the stratified cross-validation.
        max_examples: Use no more than these, as evenly from right and wrong as there are; all where left out.
        shuffles: Of the labels, for the control.
        seed: Of folds, subsample and shuffles.
        progress: Called with (depths done, of how many).

    Raises:
        NotCapturedError: The run did not capture `hidden`.
        UsageError: Right or wrong examples are fewer than folds (the message says how many there are), the run
            has no predictions, a number makes no sense, or the run does not keep all layers.
        SelectionError: The run does not keep the position at which some answer is given.
    """
    if shuffles < 1 or (max_examples is not None and max_examples < 1):
        raise UsageError(f"shuffles and max_examples must be 1 or more, got {shuffles} and {max_examples}.")
    answers = final_answers(store)
    of_encoder = (a for a in ("enc_mc_hidden", "enc_hidden") if store.has(a) and store.sides[0] == "enc")
    name = next(of_encoder, "dec_hidden")  # an encoder-decoder answers in its decoder
    array, place = store.array(name), _place(store, name)
    need_whole(array, "a probe at every depth")
    usable = place.is_there[answers.row]
    chosen = np.flatnonzero(usable)[_subsample(answers.correct[usable], max_examples, seed)]
    rows, correct = answers.row[chosen], answers.correct[chosen]
    check_folds(correct, folds)
    depths, scores = array.size(DEPTH), []
    for depth in range(depths):
        states = store.gather(name, layer=depth, position=place.position)[rows]
        if place.choice is not None:
            states = states[np.arange(len(rows)), place.choice[rows]]
        scores.append(_scores(states.astype(np.float64), correct, folds, shuffles, seed))
        if progress is not None:
            progress(depth + 1, depths)
    stacked = {score: np.stack([s[score] for s in scores]) for score in SCORES}
    return ProbeResult(n_right=int(correct.sum()), n_wrong=int((~correct).sum()), **stacked)


def cross_validate(
    features: Float[np.ndarray, "n d"], labels: Bool[np.ndarray, " n"], *, folds: int = 5, seed: int = 0
) -> FoldScores:
    """Fit a linear probe on all folds but one and score it on that one, for each fold.

    Logistic regression with L2 on features standardised on the fitting folds, classes weighted to count alike.

    Args:
        features: (n, d).
        labels: (n,).
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
    for fitted, held in StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, labels):
        model = LogisticRegression(C=_INVERSE_L2, class_weight="balanced", max_iter=_MOST_STEPS)
        probe = make_pipeline(StandardScaler(), model).fit(features[fitted], labels[fitted])
        margin = probe.decision_function(features[held])
        auroc.append(roc_auc_score(labels[held], margin))
        balanced.append(balanced_accuracy_score(labels[held], margin > 0))
    return FoldScores(np.array(auroc, np.float64), np.array(balanced, np.float64))


def check_folds(labels: Bool[np.ndarray, " n"], folds: int) -> None:
    """Refuse a cross-validation whose folds cannot all hold both classes.

    Raises:
        UsageError: A class has fewer members than folds, or folds are fewer than two.
    """
    right, wrong = int(labels.sum()), int((~labels).sum())
    if folds < 2:
        raise UsageError(f"A cross-validation needs 2 folds or more, got {folds}.")
    if min(right, wrong) < folds:
        raise UsageError(
            f"A probe in {folds} folds needs {folds} right and {folds} wrong examples; there are {right} right and "
            f"{wrong} wrong. Take fewer folds, or a run with more examples."
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


@dataclass(frozen=True, slots=True)
class _Place:
    """Where each example's answer is given: the position, and the choice where a run has choices."""

    position: Int64[np.ndarray, "n ..."]
    is_there: Bool[np.ndarray, " n"]
    choice: Int64[np.ndarray, " n"] | None = None


def _place(store: TraceStore, name: str) -> _Place:
    def whole(column: str) -> np.ndarray:
        values: np.ndarray = read_columns(store, (column,)).to_pandas()[column].to_numpy(np.int64, na_value=-1)
        return values

    if name.startswith("enc_"):
        choice = whole("pred_idx") if name == "enc_mc_hidden" else None
        return _Place(store.spans.start, np.ones(store.n, bool) if choice is None else choice >= 0, choice)
    column = next((c for c in ("answer_pos", "next_pos") if c in store.columns), None)
    if column is None:
        raise UsageError(f"{store.run_dir} does not say at which token it answers: no answer_pos and no next_pos.")
    position = whole(column)
    return _Place(position, position >= 0)


def _subsample(correct: Bool[np.ndarray, " n"], most: int | None, seed: int) -> Int64[np.ndarray, " k"]:
    """Return which examples to use: even classes serve a probe best, and its scores do not depend on their shares."""
    if most is None or len(correct) <= most:
        return np.arange(len(correct))
    rng = np.random.default_rng([seed, 0])
    right, wrong = (rng.permutation(np.flatnonzero(correct == truth)) for truth in (True, False))
    take_wrong = min(len(wrong), max(most // 2, most - len(right)))
    return np.sort(np.concatenate([right[: most - take_wrong], wrong[:take_wrong]]))
