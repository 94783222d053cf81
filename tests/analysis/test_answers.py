"""Final answers as a run's table has them, for next tokens and for choices."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.runs import CHOICES, DECODER, build_run

from decision_traces import TraceStore
from decision_traces.analysis.comparison.answers import final_answers
from decision_traces.analysis.comparison.calibration import calibration
from decision_traces.errors import UsageError


def test_next_tokens_without_a_prediction_are_left_out(tmp_path: Path) -> None:
    def alter(arrays: dict, table: pd.DataFrame) -> None:
        table["next_correct"] = [True, False, None, True, False]
        table["next_pred_prob"] = np.array([0.9, 0.6, np.nan, 0.8, 0.2], np.float32)
        table["next_entropy"] = np.array([0.1, 0.2, np.nan, 0.4, 0.5], np.float32)
        table["next_margin"] = np.array([1.0, 2.0, np.nan, 4.0, 5.0], np.float32)

    build_run(tmp_path / "run", replace(DECODER, capture=()), alter)  # the third text has one token
    store = TraceStore(tmp_path / "run")
    got = final_answers(store)
    assert got.row.tolist() == [0, 1, 3, 4] and got.correct.tolist() == [True, False, True, False]
    assert got.example_id[2] == "tiny-validation-000003"
    np.testing.assert_allclose(got.answer_prob, [0.9, 0.6, 0.8, 0.2], rtol=1e-6)
    np.testing.assert_allclose(got.answer_entropy, [0.1, 0.2, 0.4, 0.5], rtol=1e-6)
    assert got.answer_margin.tolist() == [1, 2, 4, 5]
    assert got.to_frame().loc[2, "example_id"] == "tiny-validation-000003"
    assert calibration(store, n_bins=2).n_examples.tolist() == [1, 3]


def test_choices_without_an_answer_key_are_left_out(tmp_path: Path) -> None:
    def alter(arrays: dict, table: pd.DataFrame) -> None:
        table["choice_probs"] = [[0.25, 0.7, 0.05], [1.0, 0.0, 0.0], [0.4, 0.4, 0.2]]
        table["choice_logits"] = [[-1.0, 0.1, -3.0], [3.0, 1.0, 0.0], [2.0, 2.0, 1.0]]
        table["pred_idx"], table["is_correct"] = [1, 0, 0], [True, None, False]

    build_run(tmp_path / "run", replace(CHOICES, capture=()), alter)
    got = final_answers(TraceStore(tmp_path / "run"))
    assert got.row.tolist() == [0, 2] and got.correct.tolist() == [True, False]
    assert got.answer_prob.tolist() == [0.7, 0.4]
    np.testing.assert_allclose(got.answer_margin, [1.1, 0.0])
    entropies = [-sum(p * math.log(p) for p in probs) for probs in ([0.25, 0.7, 0.05], [0.4, 0.4, 0.2])]
    np.testing.assert_allclose(got.answer_entropy, entropies)


def test_a_certain_choice_has_no_entropy(tmp_path: Path) -> None:
    def alter(arrays: dict, table: pd.DataFrame) -> None:
        table["choice_probs"], table["pred_idx"] = [[1.0, 0.0]] * 3, 0

    build_run(tmp_path / "run", replace(CHOICES, capture=()), alter)
    assert final_answers(TraceStore(tmp_path / "run")).answer_entropy.tolist() == [0, 0, 0]


def test_a_run_without_predictions_or_truth_is_refused(tmp_path: Path) -> None:
    def unknown(arrays: dict, table: pd.DataFrame) -> None:
        table["is_correct"] = pd.array([None] * 3, dtype="boolean")

    build_run(tmp_path / "unknown", replace(CHOICES, capture=()), unknown)
    with pytest.raises(UsageError, match="is_correct is all null"):
        final_answers(TraceStore(tmp_path / "unknown"))
    build_run(tmp_path / "none", replace(DECODER, capture=(), layout="v3"), lambda _, table: table.pop("next_correct"))
    with pytest.raises(UsageError, match="neither next_correct nor is_correct"):
        final_answers(TraceStore(tmp_path / "none"))
