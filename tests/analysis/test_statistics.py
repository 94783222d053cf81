"""Right against wrong: literal figures, brute force over pairs and draws, and gaps that change nothing else."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from decision_traces.analysis import moments
from decision_traces.analysis.comparison import groups as statistics
from decision_traces.analysis.comparison.groups import compare_frame, compare_groups
from decision_traces.errors import UsageError

NAN = math.nan


def compare(right, wrong, **options):
    values = np.array([*right, *wrong], dtype=np.float64)
    correct = np.array([True] * len(right) + [False] * len(wrong), dtype=bool)
    return compare_groups({"x": values}, correct, **{"n_boot": 50, **options})


def auroc_by_pairs(right, wrong) -> float:
    return float(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in product(right, wrong)]))


def test_known_groups() -> None:
    got = compare([1, 2, 3, 4], [0, 1, 2])
    assert (got.n_right[0], got.n_wrong[0]) == (4, 3)
    assert (got.right.value[0], got.wrong.value[0], got.difference.value[0]) == (2.5, 1.0, 1.5)
    assert got.cohen_d.value[0] == pytest.approx(1.5 / math.sqrt((5 + 2) / (4 + 3 - 2)))
    assert got.auroc[0] == pytest.approx(10 / 12)  # 9 pairs won, 2 tied, 1 lost
    assert got.p_value[0] == pytest.approx(stats.mannwhitneyu([1, 2, 3, 4], [0, 1, 2]).pvalue)
    frame = got.to_frame()
    assert frame["mean_right"].item() == 2.5 and frame["cohen_d_low"].item() == got.cohen_d.low[0]


def test_many_figures_with_ties_and_gaps_equal_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_FIGURES_AT_ONCE", 3)
    rng = np.random.default_rng(0)
    values, correct = rng.integers(0, 6, (25, 4, 2)).astype(np.float32), rng.random(25) < 0.6
    values[:, 1] = rng.normal(size=(25, 2))  # no ties here
    values[rng.random(values.shape) < 0.15] = NAN
    values[:, 2, 0], values[0, 3, 1] = rng.normal(size=25), np.inf  # a figure without gaps; infinite is a gap
    got = compare_groups({"a": values, "b": -values}, correct, axes=("layer", "head"), n_boot=20)
    assert got.figure == ("a",) * 8 + ("b",) * 8
    assert got.axes["layer"].tolist() == [0, 0, 1, 1, 2, 2, 3, 3] * 2 and got.axes["head"].tolist() == [0, 1] * 8
    for i, column in enumerate(values.reshape(25, 8).T):
        right, wrong = (g[np.isfinite(g)].astype(float) for g in (column[correct], column[~correct]))
        assert (got.n_right[i], got.n_wrong[i]) == (len(right), len(wrong))
        assert got.difference.value[i] == pytest.approx(right.mean() - wrong.mean())
        pooled = math.sqrt(
            ((len(right) - 1) * right.var(ddof=1) + (len(wrong) - 1) * wrong.var(ddof=1))
            / (len(right) + len(wrong) - 2)
        )
        assert got.cohen_d.value[i] == pytest.approx((right.mean() - wrong.mean()) / pooled)
        assert got.auroc[i] == pytest.approx(auroc_by_pairs(right, wrong))
        assert got.p_value[i] == pytest.approx(stats.mannwhitneyu(right, wrong).pvalue)
        assert got.auroc[i + 8] == pytest.approx(1 - got.auroc[i])


def test_p_of_a_small_group_is_exact_whatever_stands_beside_it() -> None:
    right, wrong = np.array([3.0, 5.0, 8.0, 9.0]), np.array([1.0, 2.0, 4.0])
    alone = compare(right, wrong).p_value[0]
    beside = np.stack([np.concatenate([right, wrong]), np.zeros(7)], axis=1)  # ties all over in the second
    got = compare_groups({"x": beside}, np.arange(7) < 4, axes=("depth",), n_boot=5)
    # U = 11 of 12; of the 35 ways to rank 3 among 7, two reach 11 or 12: 2 · 2/35.
    assert alone == got.p_value[0] == pytest.approx(4 / 35)
    assert got.auroc[1] == 0.5 and got.p_value[1] == 1.0


def test_groups_too_small_give_nan() -> None:
    one = compare([1, 2, 3], [7])
    assert one.wrong.value[0] == 7 and np.isnan(one.wrong.low[0]) and np.isfinite(one.right.low[0])
    none = compare([1, 2, 3], [])
    assert np.isnan(none.wrong.value[0])
    gaps = compare([1, 2, 3], [NAN, 4, NAN])
    assert gaps.n_wrong[0] == 1 and gaps.wrong.value[0] == 4
    for got in (one, none, gaps, compare([], []), compare([NAN, NAN], [NAN])):
        figures = [got.difference.value, got.difference.low, got.cohen_d.value, got.auroc, got.p_value, got.q_value]
        assert all(np.isnan(f[0]) for f in figures)
    assert compare([1, 2, 3], []).strongest(3).figure == ()


@pytest.mark.parametrize("value", [0.0, 0.1, 1e9 + 0.1])
def test_a_constant_figure_has_no_d(value: float) -> None:
    got = compare([value] * 7, [value] * 5)
    assert np.isnan(got.cohen_d.value[0]) and np.isnan(got.cohen_d.low[0])
    assert got.auroc[0] == 0.5 and got.difference.value[0] == pytest.approx(0, abs=1e-6)


def test_intervals_are_quantiles_of_all_possible_draws() -> None:
    right, wrong = [0.0, 1.0, 5.0], [2.0, 3.0]
    got = compare(right, wrong, n_boot=40_000, level=0.84)
    draws_right = [np.mean(d) for d in product(right, repeat=3)]
    draws_wrong = [np.mean(d) for d in product(wrong, repeat=2)]
    differences = [a - b for a, b in product(draws_right, draws_wrong)]
    for estimate, draws in ((got.right, draws_right), (got.wrong, draws_wrong), (got.difference, differences)):
        low, high = np.quantile(np.repeat(draws, 50), [0.08, 0.92])
        assert estimate.low[0] == pytest.approx(low) and estimate.high[0] == pytest.approx(high)


def test_the_interval_of_d_is_that_of_scipy() -> None:
    rng = np.random.default_rng(1)
    right, wrong = rng.normal(0.8, 1, 40), rng.normal(0, 1.5, 30)

    def cohen_d(a, b, axis=-1):
        n, m = a.shape[axis], b.shape[axis]
        pooled = ((n - 1) * a.var(axis, ddof=1) + (m - 1) * b.var(axis, ddof=1)) / (n + m - 2)
        return (a.mean(axis) - b.mean(axis)) / np.sqrt(pooled)

    reference = stats.bootstrap(
        (right, wrong), cohen_d, n_resamples=9000, method="percentile", vectorized=True, rng=np.random.default_rng(2)
    ).confidence_interval
    got = compare(right, wrong, n_boot=9000)
    np.testing.assert_allclose([got.cohen_d.low[0], got.cohen_d.high[0]], reference, atol=0.03)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    values, correct = rng.normal(size=(80, 600)), np.arange(80) < 40
    values[rng.random(values.shape) < 0.1] = NAN
    got = compare_groups({"x": values}, correct, axes=("draw",), n_boot=400, level=0.9)
    for estimate in (got.right, got.difference, got.cohen_d):
        assert 0.85 < ((estimate.low < 0) & (estimate.high > 0)).mean() < 0.93


def test_draws_depend_on_the_seed_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    values, correct = rng.normal(size=(30, 9)), rng.random(30) < 0.5

    def ends(seed: int) -> np.ndarray:
        got = compare_groups({"x": values}, correct, axes=("depth",), n_boot=100, seed=seed)
        return np.concatenate([[e.low, e.high] for e in (got.right, got.wrong, got.difference, got.cohen_d)])

    first = ends(0)
    monkeypatch.setattr(statistics, "_FIGURES_AT_ONCE", 4)
    monkeypatch.setattr(moments, "_COUNTS_BYTES", 1000)
    np.testing.assert_allclose(ends(0), first, rtol=1e-12)
    assert (ends(1) != first).mean() > 0.9


def test_q_values_follow_benjamini_and_hochberg() -> None:
    rng = np.random.default_rng(5)
    correct = np.arange(60) < 30
    values = rng.normal(size=(60, 6)) + correct[:, None] * np.array([2.0, 0.7, 0.5, 0.1, 0.0, NAN])
    got = compare_groups({"x": values}, correct, axes=("depth",), n_boot=5)
    p = got.p_value[:5]
    by_hand = [min(min(1.0, p[j] * 5 / (p <= p[j]).sum()) for j in range(5) if p[j] >= p[i]) for i in range(5)]
    np.testing.assert_allclose(got.q_value[:5], by_hand)
    assert np.isnan(got.q_value[5]) and got.q_value[0] < 0.001
    assert (got.q_value[:5] >= p).all()


def test_the_strongest_come_first() -> None:
    correct = np.arange(8) < 4
    noise = np.array([0.1, -0.1, 0.05, -0.05] * 2)
    values = noise[:, None] + correct[:, None] * np.array([0.1, -3.0, NAN, 1.0])
    got = compare_groups({"x": values}, correct, axes=("depth",), n_boot=5)
    strong = got.strongest(2)
    assert strong.axes["depth"].tolist() == [1, 3] and strong.n_compared == 4
    assert strong.cohen_d.value[0] < 0 < strong.cohen_d.value[1]
    assert got.strongest(10).axes["depth"].tolist() == [1, 3, 0]
    assert strong.difference.low.tolist() == [got.difference.low[1], got.difference.low[3]]


def test_a_table_in_long_form_is_the_same_as_arrays() -> None:
    rng = np.random.default_rng(6)
    values, correct = rng.normal(size=(12, 3)), rng.random(12) < 0.5
    frame = pd.DataFrame(
        {
            "example_id": np.repeat([f"e{i}" for i in range(12)], 3),
            "depth": np.tile([0, 1, 2], 12),
            "correct": pd.array(np.repeat(correct, 3), dtype="boolean"),
            "entropy": values.ravel(),
        }
    ).sample(frac=1, random_state=0)
    unknown = frame[frame["example_id"] == "e3"].assign(example_id="nobody knows", correct=pd.NA, entropy=99.0)
    missing = frame[~((frame["example_id"] == "e5") & (frame["depth"] == 1))]
    values[5, 1] = NAN
    got = compare_frame(pd.concat([missing, unknown]), ["entropy"], axes=["depth"], n_boot=30)
    expected = compare_groups({"entropy": values}, correct, axes=("depth",), n_boot=30)
    assert got.axes["depth"].tolist() == [0, 1, 2] and got.n_right.sum() + got.n_wrong.sum() == 35
    np.testing.assert_allclose(got.difference.value, expected.difference.value)
    np.testing.assert_allclose(got.auroc, expected.auroc)
    flat = compare_frame(frame[frame["depth"] == 2], ["entropy"], n_boot=30)
    assert flat.axes == {} and flat.right.value[0] == pytest.approx(values[correct, 2].mean())


def test_what_makes_no_sense_is_refused() -> None:
    frame = pd.DataFrame({"example_id": ["a", "a"], "correct": [True, True], "x": [1.0, 2.0]})
    with pytest.raises(UsageError, match="two rows with the same example_id"):
        compare_frame(frame, ["x"])
    with pytest.raises(UsageError, match="no column 'depth'"):
        compare_frame(frame, ["x"], axes=["depth"])
    with pytest.raises(UsageError, match="Figures of 2 examples"):
        compare_groups({"x": np.zeros((2, 3))}, np.array([True, False]))
    with pytest.raises(UsageError, match="level between 0 and 1, got 50 and 95"):
        compare([1, 2], [3, 4], level=95.0)
    with pytest.raises(ValueError, match="need 2 entries"):
        replace(compare([1, 2], [3, 4]), figure=("x", "y"))
