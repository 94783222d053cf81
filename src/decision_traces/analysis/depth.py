"""Decision depth: at which layer a decision stands."""

import numpy as np

from decision_traces.analysis.results import DecisionDepth, LensTrajectories


def decision_depth(lens: LensTrajectories) -> DecisionDepth:
    """Return the first depth from which the final prediction stays on top, and the changes on the way.

    The measure follows the "first layer where the prediction no longer changes" of early-exit work
    (Schuster et al. 2022, Confident Adaptive Language Modeling), read through the logit lens.
    """
    top = lens.top_id
    differs = top != top[:, -1:]
    # One past the last depth at which the top token is another than in the end.
    stable = np.where(differs.any(1), top.shape[1] - np.argmax(differs[:, ::-1], axis=1), 0)
    return DecisionDepth(
        example_id=lens.example_id,
        correct=lens.correct,
        stable_from=stable.astype(np.int32),
        flips=(top[:, 1:] != top[:, :-1]).sum(1).astype(np.int32),
        n_layers=lens.n_layers,
    )
