"""Decision depth of hand-made trajectories, token by token and answer by answer."""

import numpy as np
import pytest

from decision_traces.analysis.lens.depth import decision_depth, depth_by_choice
from decision_traces.analysis.results import LensByChoice, LensTrajectories, TokenPath
from decision_traces.errors import UsageError


def _path(logit: list[list[float]]) -> TokenPath:
    values = np.asarray(logit, np.float32)
    return TokenPath(values, np.zeros_like(values), np.ones(values.shape, np.int32))


def _lens(top: list[list[int]], lead: list[list[float]] | None = None, stage: str = "hidden") -> LensTrajectories:
    ids = np.asarray(top, np.int32)
    n, flat = len(ids), np.zeros(ids.shape, np.float32)
    zero, one = _path(flat.tolist()), np.ones(n, np.int32)
    true = zero if lead is None else _path(lead)
    known = ~np.isnan(true.logit[:, 0])
    right, true_id = known & (true.logit[:, -1] > 0), np.where(known, 1, -1).astype(np.int32)
    return LensTrajectories(
        stage, tuple(f"e{i}" for i in range(n)), right, true_id, one, one, true,
        zero, zero, ids[:, :, None],
        flat[:, :, None], flat, flat, flat, 0.0,
    )  # fmt: skip


def test_when_the_top_no_longer_changes() -> None:
    depth = decision_depth(_lens([[5, 5, 5, 5], [1, 5, 5, 5], [5, 1, 5, 5], [5, 5, 1, 5], [1, 2, 3, 4]]))
    assert depth.stable_from.tolist() == [0, 1, 2, 3, 3]
    assert depth.flips.tolist() == [0, 1, 2, 2, 3]
    assert depth.n_layers == 3
    assert depth.to_frame()["stable_from"].tolist() == [0, 1, 2, 3, 3]


def test_when_the_truth_is_ahead_for_good() -> None:
    nan = float("nan")
    lead = [[1, 2, 1, 3], [-1, 1, -1, 2], [-1, -2, 0, 1], [1, 1, 1, -1], [nan, nan, nan, nan]]
    depth = decision_depth(_lens([[1, 1, 1, 1]] * 5, lead))
    assert depth.ahead_from.tolist() == [0, 3, 3, -1, -1]
    assert depth.lead_changes.tolist() == [0, 3, 1, 1, -1]
    assert depth.known.tolist() == [True] * 4 + [False]
    frame = depth.to_frame()
    assert frame["ahead_from"].isna().tolist() == [False, False, False, True, True]
    assert frame["lead_changes"].isna().tolist() == [False] * 4 + [True]
    assert frame["correct"].isna().tolist() == [False] * 4 + [True]
    assert frame["correct"].tolist()[:4] == [True, True, True, False]


def test_other_stages_have_no_decision_depth() -> None:
    with pytest.raises(UsageError, match="post_attn"):
        decision_depth(_lens([[1, 1, 1]], stage="post_attn"))


def test_a_race_between_answers() -> None:
    logits = np.asarray(
        [
            [[0, 1, 2], [3, 1, 2], [3, 1, 2], [4, 3, 1]],  # 2, then 0 for good; the competitor of 0 is 1
            [[0, 1, 2], [0, 3, 2], [0, 1, 2], [0, 3, 2]],  # 1 wins, 2 is right
            [[1, 0, 0], [0, 1, 0], [0, 1, 0], [0, 1, 0]],  # the answer is not known
        ],
        np.float32,
    )
    shares = np.exp(logits) / np.exp(logits).sum(2, keepdims=True)
    correct, pred = np.asarray([0, 2, -1], np.int32), np.asarray([0, 1, 1], np.int32)
    by_choice = LensByChoice(
        ("a", "b", "c"), (("A", "B", "C"),) * 3, logits, shares, correct, pred, correct == pred, 0.0
    )
    depth = depth_by_choice(by_choice)
    assert depth.stable_from.tolist() == [1, 3, 1]
    assert depth.flips.tolist() == [1, 3, 1]
    assert depth.ahead_from.tolist() == [1, -1, -1]
    assert depth.lead_changes.tolist() == [1, 3, -1]  # 0 passes 1 once; 2 is ahead of 1 at depths 0 and 2
    frame = by_choice.to_frame()
    assert len(frame) == 3 * 4 * 3
    row = frame.query("example_id == 'b' and depth == 3 and choice == 1").iloc[0]
    assert (row["label"], row["logit"], row["is_predicted"], row["is_true"]) == ("B", 3.0, True, False)
    assert frame.query("example_id == 'c'")["is_true"].isna().all()
    with pytest.raises(ValueError, match="needs 3 labels"):
        LensByChoice(("a",), (("A", "B"),), logits[:1], shares[:1], correct[:1], pred[:1], correct[:1] == 0, 0.0)
