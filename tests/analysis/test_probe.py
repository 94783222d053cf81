"""Probes find what was planted, where it was planted, and nothing in shuffled labels."""

from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import StratifiedKFold
from support.runs import TinyRun, build_run

from decision_traces import TraceStore
from decision_traces.analysis.probing.correctness import ProbeResult, cross_validate, probe_correctness
from decision_traces.errors import NotCapturedError, UsageError

N, D, PLANTED = 60, 8, 2  # examples, width, first depth that knows
LENGTHS = tuple(2 + i % 5 for i in range(N))
TRUTH = np.arange(N) % 3 == 0
TINY = {"n_layers": 3, "n_positions": 6, "d_model": D, "dtype": "float32", "links": False, "capture": ("hidden",)}


def planted(rng: np.random.Generator, knows: np.ndarray) -> np.ndarray:
    """States that carry the label along one direction, in noise."""
    return rng.normal(size=(len(knows), D)) + 4 * knows[:, None] * np.eye(D)[3]


def decoder(folder: Path, column: str = "next_pos", truth: np.ndarray | None = None) -> TraceStore:
    """A run that knows at the position of its answer only; all other states are noise."""
    truth = TRUTH if truth is None else truth

    def alter(arrays: dict, table: pd.DataFrame) -> None:
        rng, hidden = np.random.default_rng(0), arrays["dec_hidden"]
        hidden[:] = rng.normal(size=hidden.shape)
        position = table["n_tokens"].to_numpy() - (2 if column == "next_pos" else 1)
        for depth in range(PLANTED, 4):
            hidden[np.arange(N), depth, position] = planted(rng, truth)
        if column == "answer_pos":
            table["answer_pos"], table["is_correct"] = position, truth
        table["next_correct"] = ~truth if column == "answer_pos" else truth

    objective = "csqa_choice" if column == "answer_pos" else "next_token"
    build_run(folder, TinyRun(lengths=LENGTHS, objective=objective, **TINY), alter)
    return TraceStore(folder)


def check(got: ProbeResult) -> None:
    assert got.auroc.shape == (4, 5) and got.control_auroc.shape == (4, 25)
    assert (got.n_right, got.n_wrong) == (20, 40)
    assert (got.mean("auroc")[PLANTED:] > 0.95).all() and (got.mean("balanced_accuracy")[PLANTED:] > 0.85).all()
    assert (np.abs(got.mean("auroc")[:PLANTED] - 0.5) < 0.25).all()
    assert (np.abs(got.mean("control_auroc") - 0.5) < 0.15).all()
    assert (np.abs(got.mean("control_balanced_accuracy") - 0.5) < 0.15).all()


@pytest.mark.parametrize("column", ["next_pos", "answer_pos"])
def test_a_decoder_is_probed_where_it_answers(column: str, tmp_path: Path) -> None:
    store = decoder(tmp_path / "run", column)
    steps: list[tuple[int, int]] = []
    got = probe_correctness(store, progress=lambda done, total: steps.append((done, total)))
    check(got)
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    frame = got.to_frame()
    assert frame["depth"].tolist() == [0, 1, 2, 3] and frame["n_wrong"].tolist() == [40] * 4
    assert frame["auroc_sd"][2] == pytest.approx(np.std(got.auroc[2], ddof=1))
    again = probe_correctness(store)
    np.testing.assert_array_equal(again.control_auroc, got.control_auroc)
    other = probe_correctness(store, seed=1, shuffles=1)
    assert other.control_auroc.shape == (4, 5) and not np.array_equal(other.auroc, got.auroc)


def test_an_encoder_is_probed_at_the_first_token_of_its_choice(tmp_path: Path) -> None:
    def alter(arrays: dict, table: pd.DataFrame) -> None:
        rng, hidden = np.random.default_rng(0), arrays["enc_mc_hidden"]
        hidden[:] = rng.normal(size=hidden.shape)
        pred = np.arange(N) // 7 % 2
        for depth in range(PLANTED, 4):
            hidden[np.arange(N), pred, depth, 0] = planted(rng, TRUTH)
        table["pred_idx"], table["is_correct"] = pred, TRUTH

    build_run(tmp_path / "run", TinyRun(lengths=tuple((n, 2) for n in LENGTHS), **TINY), alter)
    check(probe_correctness(TraceStore(tmp_path / "run")))


def test_a_subsample_is_as_even_as_the_run_allows(tmp_path: Path) -> None:
    store = decoder(tmp_path / "run")
    for most, counts in ((100, (20, 40)), (50, (20, 30)), (30, (15, 15)), (11, (6, 5))):
        got = probe_correctness(store, max_examples=most, shuffles=1)
        assert (got.n_right, got.n_wrong) == counts, most
    rare = decoder(tmp_path / "rare", truth=np.arange(N) < 6)
    got = probe_correctness(rare, max_examples=30, shuffles=1)
    assert (got.n_right, got.n_wrong) == (6, 24)


def test_too_few_of_a_class_are_refused_with_the_counts(tmp_path: Path) -> None:
    store = decoder(tmp_path / "run", truth=np.arange(N) < 3)
    with pytest.raises(UsageError, match="5 folds needs 5 examples of each class; there are 3 right and 57 wrong"):
        probe_correctness(store)
    assert probe_correctness(store, folds=3, shuffles=1).auroc.shape == (4, 3)
    for wrong in ({"folds": 1}, {"shuffles": 0}, {"max_examples": 0}):
        with pytest.raises(UsageError, match=r"needs 2 folds or more|must be 1 or more"):
            probe_correctness(store, **wrong)


def test_a_run_without_hidden_states_is_refused(tmp_path: Path) -> None:
    build_run(tmp_path / "run", TinyRun(lengths=LENGTHS, **{**TINY, "capture": ("attn",)}))
    with pytest.raises(NotCapturedError, match="`hidden` among the words of --capture"):
        probe_correctness(TraceStore(tmp_path / "run"))


def test_scores_of_one_feature_are_those_of_its_ranks() -> None:
    """With one feature the probe can only be a threshold on it, so each fold's AUROC can be counted in pairs."""
    rng = np.random.default_rng(0)
    labels = rng.random(80) < 0.4
    feature = rng.integers(0, 9, 80) + 2.5 * labels
    got = cross_validate(feature[:, None].astype(np.float64), labels, folds=4, seed=3)
    for fold, (_, held) in enumerate(StratifiedKFold(4, shuffle=True, random_state=3).split(feature, labels)):
        pairs = product(feature[held][labels[held]], feature[held][~labels[held]])
        assert got.auroc[fold] == pytest.approx(np.mean([1.0 if a > b else 0.5 if a == b else 0.0 for a, b in pairs]))
    assert 0.55 < got.balanced_accuracy.mean() < 0.95


def test_rare_classes_count_as_much_as_common_ones() -> None:
    rng = np.random.default_rng(1)
    labels = np.arange(400) < 20
    features = rng.normal(size=(400, 3)) + 3.0 * labels[:, None]
    assert cross_validate(features, labels).balanced_accuracy.mean() > 0.9


@pytest.mark.parametrize("scale", [1e-6, 1.0, 3e4])
def test_massive_constant_and_separable_features_converge(scale: float) -> None:
    """A convergence warning would be an error here."""
    rng = np.random.default_rng(2)
    labels = rng.random(50) < 0.5
    features = rng.normal(size=(50, 300)) * scale
    features[:, 0], features[:, 1], features[:, 2] = 5.0, labels * scale, 24_000 + rng.normal(size=50)
    assert cross_validate(features, labels).auroc.mean() > 0.6
