"""Outcomes against hand-computed values and an independent softmax in numpy."""

import numpy as np
import pytest
import torch

from decision_traces.analysis.lens.vocabulary import Vocabulary
from decision_traces.errors import NonFiniteError
from decision_traces.outcomes.distribution import distribution, log_probabilities
from decision_traces.outcomes.next_token import next_token_outcomes


def test_hand_computed_row() -> None:
    # Probabilities 1/2, 1/4, 1/8, 1/8: entropy = 1.75 ln 2.
    logits = torch.log(torch.tensor([[0.125, 0.5, 0.25, 0.125]]))
    found = next_token_outcomes(logits, torch.tensor([2]), 3)
    assert (found.true_id[0], found.pred_id[0], bool(found.correct[0]), found.true_rank[0]) == (2, 1, False, 2)
    np.testing.assert_allclose([found.true_prob[0], found.pred_prob[0]], [0.25, 0.5], rtol=1e-6)
    np.testing.assert_allclose(found.entropy[0], 1.75 * np.log(2), rtol=1e-6)
    np.testing.assert_allclose(found.margin[0], np.log(2), rtol=1e-6)
    assert found.topk_ids[0, :2].tolist() == [1, 2]
    np.testing.assert_allclose(found.topk_probs[0], [0.5, 0.25, 0.125], rtol=1e-6)


def test_against_numpy_in_double_precision() -> None:
    rng = np.random.default_rng(3)
    scores = rng.normal(size=(50, 300)) * 4
    truth = rng.integers(0, 300, 50)
    found = next_token_outcomes(torch.from_numpy(scores).float(), torch.from_numpy(truth), 10)
    probs = np.exp(scores - scores.max(1, keepdims=True))
    probs /= probs.sum(1, keepdims=True)
    order = np.argsort(-scores, axis=1)
    np.testing.assert_array_equal(found.topk_ids, order[:, :10])
    np.testing.assert_allclose(found.topk_probs, np.take_along_axis(probs, order[:, :10], 1), atol=1e-6)
    np.testing.assert_allclose(found.true_prob, probs[np.arange(50), truth], atol=1e-6)
    np.testing.assert_allclose(found.entropy, -(probs * np.log(probs)).sum(1), rtol=1e-4)
    np.testing.assert_array_equal(found.true_rank, [list(order[i]).index(truth[i]) + 1 for i in range(50)])
    np.testing.assert_array_equal(found.correct, order[:, 0] == truth)


def test_token_id_zero_is_a_token_and_bfloat16_is_computed_in_float32() -> None:
    found = next_token_outcomes(torch.tensor([[9.0, 0.0]], dtype=torch.bfloat16), torch.tensor([0]), 5)
    assert bool(found.correct[0]) and found.true_id[0] == 0
    assert found.topk_ids.shape == (1, 2)
    np.testing.assert_allclose(found.true_prob[0], 1 / (1 + np.exp(-9.0)), rtol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_no_numbers_stop_the_run(bad: float) -> None:
    with pytest.raises(NonFiniteError, match="logits that are NaN or infinite"):
        next_token_outcomes(torch.tensor([[1.0, 2.0], [0.0, bad]]), torch.tensor([0, 0]), 2)


def test_a_token_that_is_ruled_out_is_no_fault() -> None:
    found = next_token_outcomes(torch.tensor([[0.0, -float("inf"), 0.0]]), torch.tensor([1]), 3)
    assert found.true_prob[0] == 0.0 and found.true_rank[0] == 3
    np.testing.assert_allclose(found.entropy[0], np.log(2), rtol=1e-6)


def test_a_large_vocabulary_is_described_as_exactly_as_a_small_one() -> None:
    rng = np.random.default_rng(5)
    scores = (rng.normal(size=(8, 151_936)) * 3).astype(np.float32)
    truth = np.full(8, 77)
    found = next_token_outcomes(torch.from_numpy(scores), torch.from_numpy(truth), 10)
    logs = scores.astype(np.float64) - scores.max(1, keepdims=True)
    logs -= np.log(np.exp(logs).sum(1, keepdims=True))
    np.testing.assert_allclose(found.true_prob, np.exp(logs[:, 77]), rtol=3e-6)
    np.testing.assert_allclose(found.topk_probs, -np.sort(-np.exp(logs), axis=1)[:, :10], rtol=3e-6)
    np.testing.assert_allclose(found.entropy, -(np.exp(logs) * logs).sum(1), atol=1e-5)


@pytest.mark.parametrize("ahead", [6.0, 12.0, 20.0, 60.0])
def test_a_nearly_sure_row_has_its_own_small_entropy(ahead: float) -> None:
    scores = np.random.default_rng(8).normal(size=(2, 5000)).astype(np.float32)
    scores[0, 17] = scores[0].max() + np.float32(ahead)
    logs = scores.astype(np.float64) - scores.max(1, keepdims=True)
    logs -= np.log1p(np.where(logs < 0, np.exp(logs), 0).sum(1, keepdims=True))  # float64 too rounds 1 + 1e-17
    wanted = -(np.exp(logs) * logs).sum(1)
    for found in (
        distribution(torch.from_numpy(scores))[1].numpy(),
        Vocabulary.of(torch.from_numpy(scores), 3).entropy(),
    ):
        np.testing.assert_allclose(found, wanted, rtol=5e-6)
    surprise = log_probabilities(torch.from_numpy(scores), torch.tensor([17, 0])).numpy()
    np.testing.assert_allclose(surprise, logs[[0, 1], [17, 0]], rtol=5e-6)
