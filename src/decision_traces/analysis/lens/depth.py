"""Decision depth: from which layer on a decision no longer changes."""

import numpy as np
from jaxtyping import Bool, Int

from decision_traces.analysis.results import DecisionDepth, LensByChoice, LensTrajectories
from decision_traces.errors import UsageError


def decision_depth(lens: LensTrajectories) -> DecisionDepth:
    """Return when the final prediction was on top for good, and the truth ahead of its competitor.

    The measure follows the "first layer where the prediction no longer changes" of early-exit work
    (Schuster et al. 2022, Confident Adaptive Language Modeling), read through the logit lens. On top means: of
    the whole vocabulary; for answers to a question see `depth_by_choice`.

    Args:
        lens: The trajectories of the stage "hidden", from the embedding to the end of the model.

    Raises:
        UsageError: The trajectories are of another stage.
    """
    if lens.stage != "hidden":
        raise UsageError(f"Decision depth goes from the embedding to the end: stage 'hidden', not {lens.stage!r}.")
    ahead = lens.true.logit > lens.competitor.logit
    ahead_from, lead_changes = _lead(ahead, lens.known)
    return DecisionDepth(
        example_id=lens.example_id,
        correct=lens.correct,
        known=lens.known,
        stable_from=_last_change(lens.top_id),
        flips=_changes(lens.top_id),
        ahead_from=ahead_from,
        lead_changes=lead_changes,
        n_layers=lens.n_layers,
    )


def depth_by_choice(by_choice: LensByChoice) -> DecisionDepth:
    """Return when the answer given was ahead of all others for good, and the right one ahead of its competitor.

    The competitor is the strongest other answer at the end, as for `Decisions`.
    """
    every, leader = np.arange(len(by_choice.example_id)), by_choice.logits.argmax(2)
    true = by_choice.logits[every, :, np.maximum(by_choice.correct_idx, 0)]
    others = by_choice.logits[:, -1].copy()
    others[every, np.maximum(by_choice.correct_idx, 0)] = -np.inf
    competitor = by_choice.logits[every, :, others.argmax(1)]
    ahead_from, lead_changes = _lead(true > competitor, by_choice.known)
    return DecisionDepth(
        example_id=by_choice.example_id,
        correct=by_choice.is_correct,
        known=by_choice.known,
        stable_from=_last_change(leader),
        flips=_changes(leader),
        ahead_from=ahead_from,
        lead_changes=lead_changes,
        n_layers=by_choice.n_layers,
    )


def _last_change(values: Int[np.ndarray, "n depth"] | Bool[np.ndarray, "n depth"]) -> Int[np.ndarray, " n"]:
    """Return the first depth from which a row keeps the value it ends with."""
    differs = values != values[:, -1:]
    # One past the last depth at which the value is another than in the end.
    last = np.where(differs.any(1), values.shape[1] - np.argmax(differs[:, ::-1], axis=1), 0)
    return last.astype(np.int32)


def _changes(values: Int[np.ndarray, "n depth"] | Bool[np.ndarray, "n depth"]) -> Int[np.ndarray, " n"]:
    changes: np.ndarray = (values[:, 1:] != values[:, :-1]).sum(1).astype(np.int32)
    return changes


def _lead(ahead: Bool[np.ndarray, "n depth"], known: Bool[np.ndarray, " n"]) -> tuple[np.ndarray, np.ndarray]:
    """Return from which depth on the lead is kept for good (-1: from none), and how often it changed (-1: unknown)."""
    ahead_from = np.where(known & ahead[:, -1], _last_change(ahead), -1)
    return ahead_from.astype(np.int32), np.where(known, _changes(ahead), -1).astype(np.int32)
