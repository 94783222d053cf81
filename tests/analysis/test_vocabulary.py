"""What is asked of logits, against float64 and whole sorts."""

import numpy as np
import pytest
import torch

from decision_traces.analysis.vocabulary import Vocabulary


@pytest.fixture(params=[7, 300, 5000, 50257])
def logits(request: pytest.FixtureRequest) -> np.ndarray:
    """Rows of a flat, a peaked and a far-off distribution, and one with many equal logits."""
    rng = np.random.default_rng(request.param)
    flat, peaked, far = rng.normal(size=(3, request.param))
    return np.stack([flat, 8 * peaked, 3 * far - 90, np.round(flat)]).astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    exact = np.exp(logits.astype(np.float64) - logits.max(1, keepdims=True))
    return exact / exact.sum(1, keepdims=True)


def test_entropy_and_divergence(logits: np.ndarray) -> None:
    last = logits[::-1].copy()
    one, end = (Vocabulary.of(torch.from_numpy(x.copy()), 5) for x in (logits, last))
    p, q = softmax(logits), softmax(last)
    np.testing.assert_allclose(one.entropy(), -(p * np.log(p)).sum(1), rtol=2e-6, atol=2e-6)
    rounding = 2e-6 * np.log(logits.shape[1])  # float32, of the logarithms of the totals, whose difference it is
    divergence = (q * (np.log(q) - np.log(p))).sum(1)
    np.testing.assert_allclose(one.divergence_from(end), divergence, rtol=5e-6, atol=rounding)
    assert one.divergence_from(one).tolist() == [0.0] * 4


def test_the_most_probable_tokens_and_ranks(logits: np.ndarray) -> None:
    one = Vocabulary.of(torch.from_numpy(logits.copy()), 5)
    best = -np.sort(-logits, axis=1)[:, :5]
    np.testing.assert_array_equal(one.logit(one.top_ids).numpy(), best)
    assert all(len(set(row)) == 5 for row in one.top_ids.tolist())
    np.testing.assert_allclose(one.prob(one.top_ids), np.take_along_axis(softmax(logits), one.top_ids.numpy(), 1), 1e-5)
    for token in (0, 3, logits.shape[1] - 1):
        ids = torch.full((4,), token)
        expected = [1 + sum(row > row[token]) for row in logits]
        assert one.rank(ids).tolist() == expected
