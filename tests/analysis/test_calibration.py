"""Calibration of answers whose bins can be counted by hand."""

import math

import numpy as np
import pytest

from decision_traces.analysis.comparison.calibration import calibrate
from decision_traces.errors import DataError, UsageError


def test_bins_counted_by_hand() -> None:
    confidence = np.array([0.9, 0.8, 0.7, 0.3, 0.1, 0.0])
    correct = np.array([True, True, False, True, False, False])
    got = calibrate(confidence, correct, n_bins=2)
    assert got.edges.tolist() == [0.0, 0.5, 1.0] and got.n_examples.tolist() == [3, 3]
    np.testing.assert_allclose(got.confidence, [0.4 / 3, 0.8])
    np.testing.assert_allclose(got.accuracy, [1 / 3, 2 / 3])
    assert got.ece == pytest.approx(0.5 * (1 / 3 - 0.4 / 3) + 0.5 * (0.8 - 2 / 3))
    assert got.brier == pytest.approx((0.01 + 0.04 + 0.49 + 0.49 + 0.01 + 0) / 6)
    assert (got.mean_confidence, got.mean_accuracy) == pytest.approx((2.8 / 6, 0.5))
    frame = got.to_frame()
    assert frame["bin_high"].tolist() == [0.5, 1.0] and frame["n_examples"].sum() == 6


@pytest.mark.parametrize("n_bins", [3, 7, 10, 15, 100])
def test_an_edge_belongs_to_the_bin_below_it(n_bins: int) -> None:
    """As Guo et al. have it: bin m is ((m - 1)/M, m/M]; 0 is in the first."""
    confidence = np.array([0.0, *(m / n_bins for m in range(1, n_bins + 1))])
    got = calibrate(confidence, np.ones(len(confidence), bool), n_bins=n_bins)
    assert got.n_examples.tolist() == [2] + [1] * (n_bins - 1)


def test_float32_probabilities_are_taken_as_they_are() -> None:
    got = calibrate(np.array([1.0000001, 0.25], np.float32), np.array([True, False]), n_bins=4)
    assert got.n_examples.tolist() == [1, 0, 0, 1]
    assert np.isnan(got.confidence[1]) and np.isnan(got.accuracy_low[1])


def test_intervals_are_wilsons() -> None:
    got = calibrate(np.full(10, 0.75), np.arange(10) < 8, n_bins=1)
    # Wilson 1927 for 8 of 10 at 95 %.
    assert (got.accuracy_low[0], got.accuracy_high[0]) == pytest.approx((0.49016, 0.94332), abs=1e-5)
    sure = calibrate(np.full(5, 1.0), np.ones(5, bool), n_bins=1)
    assert sure.accuracy_high[0] == 1.0 and sure.accuracy_low[0] == pytest.approx(5 / (5 + 3.8414588), abs=1e-6)


def test_a_calibrated_model_has_a_small_ece_and_a_sure_one_a_large() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(200_000)
    assert calibrate(p, rng.random(200_000) < p).ece < 0.01
    sure = calibrate(np.full(1000, 0.99), np.arange(1000) < 500)
    assert sure.ece == pytest.approx(0.49) and sure.brier == pytest.approx((0.01**2 + 0.99**2) / 2)


def test_what_cannot_be_calibrated_is_refused() -> None:
    with pytest.raises(UsageError, match="into 0 bins"):
        calibrate(np.array([0.5]), np.array([True]), n_bins=0)
    with pytest.raises(UsageError, match=r"\(0,\) confidences"):
        calibrate(np.array([], np.float64), np.array([], bool))
    for wrong in (1.5, -0.1, math.nan):
        with pytest.raises(DataError, match="from 0 to 1"):
            calibrate(np.array([wrong]), np.array([True]))
