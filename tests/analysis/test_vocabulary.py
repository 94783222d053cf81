"""What is asked of logits, against float64 and whole sorts."""

import numpy as np
import pytest
import torch

from decision_traces.analysis.lens.vocabulary import Vocabulary, in_order, in_strips


def whole(logits: np.ndarray) -> Vocabulary:
    """Return the distributions of some rows; torch computes alike on every device."""
    return Vocabulary.of(torch.from_numpy(logits.copy()), 5)


@pytest.fixture(params=[7, 300, 5000, 151_936])
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
    one, end = (whole(x) for x in (logits, last))
    p, q = softmax(logits), softmax(last)
    np.testing.assert_allclose(one.entropy(), -(p * np.log(p)).sum(1), rtol=2e-6, atol=2e-6)
    rounding = 2e-6 * np.log(logits.shape[1])  # float32, of the logarithms of the totals, whose difference it is
    divergence = (q * (np.log(q) - np.log(p))).sum(1)
    np.testing.assert_allclose(one.divergence_from(end), divergence, rtol=5e-6, atol=rounding)
    assert one.divergence_from(one).tolist() == [0.0] * 4


def test_the_most_probable_tokens_and_ranks(logits: np.ndarray) -> None:
    one = whole(logits)
    best = -np.sort(-logits, axis=1)[:, :5]
    np.testing.assert_array_equal(one.logit(one.top_ids), best)
    assert all(len(set(row)) == 5 for row in one.top_ids.tolist())
    np.testing.assert_allclose(one.prob(one.top_ids), np.take_along_axis(softmax(logits), one.top_ids, 1), 3e-6)
    for token in (0, 3, logits.shape[1] - 1):
        ids = np.full(4, token)
        expected = [1 + sum(row > row[token]) for row in logits]
        assert one.rank(ids).tolist() == expected


def test_a_token_that_is_ruled_out_makes_no_number_of_the_others_unknown() -> None:
    logits = np.array([[0.0, -np.inf, 0.0, -1.0]], dtype=np.float32)
    one, end = whole(logits), whole(np.array([[0.0, -np.inf, 1.0, 0.0]], dtype=np.float32))
    p, q = softmax(logits)[0, [0, 2, 3]], softmax(end.logits.numpy())[0, [0, 2, 3]]
    np.testing.assert_allclose(one.entropy(), [-(p * np.log(p)).sum()], rtol=1e-6)
    np.testing.assert_allclose(one.divergence_from(end), [(q * np.log(q / p)).sum()], rtol=1e-5)


def test_strips_come_back_in_the_order_of_the_rows() -> None:
    logits = np.random.default_rng(0).normal(size=(1003, 4096)).astype(np.float32)
    seen: dict[int, slice] = {}

    def ask(one: Vocabulary, number: int, rows: slice) -> dict[str, np.ndarray]:
        seen[number] = rows
        return {"first": one.top_ids[:, 0], "number": np.full(rows.stop - rows.start, number)}

    found = in_order(in_strips(torch.from_numpy(logits), 3, ask))
    np.testing.assert_array_equal(found["first"], logits.argmax(1))
    assert len(seen) > 2 and sorted(found["number"]) == list(found["number"])
    assert [seen[i].start for i in range(1, len(seen))] == [seen[i].stop for i in range(len(seen) - 1)]
