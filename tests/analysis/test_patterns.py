"""The figures of hand-made attention matrices, and of random ones against the definitions written out in loops."""

import math

import numpy as np
import pytest

from decision_traces.analysis.attention.patterns import ATTENTION_FIGURES, measure_heads, repetitions_of

DISTINCT = np.array([7, 3, 9, 1, 4])
REPEATED = np.array([5, 8, 2, 5, 8, 2])  # a sequence of three tokens, twice


def figures(matrix, ids=DISTINCT, *, causal: bool = True, dtype=np.float32) -> dict[str, float]:
    attn = np.asarray(matrix, dtype=dtype)[None]
    (values,) = measure_heads(attn, repetitions_of(np.asarray(ids, np.int64), causal=causal))
    return dict(zip(ATTENTION_FIGURES, values.tolist(), strict=True))


def previous_token_head(n: int) -> np.ndarray:
    matrix = np.eye(n, k=-1)
    matrix[0, 0] = 1
    return matrix


def test_a_previous_token_head() -> None:
    got = figures(previous_token_head(5))
    assert got["previous_mass"] == 1.0
    assert got["attn_entropy"] == 0.0 and got["attn_distance"] == 1.0
    assert got["first_mass"] == 0.25  # of four rows after the first, only the second has token 0 before it


def test_a_uniform_causal_head() -> None:
    matrix = np.tril(np.ones((5, 5))) / np.arange(1, 6)[:, None]
    got = figures(matrix)
    assert got["attn_entropy"] == pytest.approx(np.mean([math.log(i) for i in (2, 3, 4, 5)]), abs=1e-6)
    assert got["attn_distance"] == pytest.approx(np.mean([0.5, 1.0, 1.5, 2.0]), abs=1e-6)
    assert got["first_mass"] == pytest.approx(np.mean([1 / 2, 1 / 3, 1 / 4, 1 / 5]), abs=1e-6)
    assert got["previous_mass"] == pytest.approx(np.mean([1 / 2, 1 / 3, 1 / 4, 1 / 5]), abs=1e-6)


def test_a_sink_head() -> None:
    matrix = np.zeros((5, 5))
    matrix[:, 0] = 1
    got = figures(matrix)
    assert got["first_mass"] == 1.0 and got["attn_entropy"] == 0.0
    assert got["attn_distance"] == (1 + 2 + 3 + 4) / 4


def test_an_induction_head_and_a_same_token_head_on_a_sequence_repeated() -> None:
    induction, same = previous_token_head(6), previous_token_head(6)
    for query in (3, 4, 5):
        induction[query] = np.eye(6)[query - 2]  # the token after the same token one period ago
        same[query] = np.eye(6)[query - 3]
    assert figures(induction, REPEATED)["induction_mass"] == 1.0
    assert figures(induction, REPEATED)["same_mass"] == 0.0
    assert figures(same, REPEATED)["same_mass"] == 1.0
    # Token 2 attends by the previous-token rule above to 1; rows 3 to 5 alone have an earlier same token.
    assert figures(same, REPEATED)["induction_mass"] == 0.0


def test_masses_of_all_earlier_occurrences_add_up() -> None:
    ids = np.array([1, 2, 1, 3, 1])
    matrix = np.eye(5)
    matrix[4] = [0.1, 0.2, 0.3, 0.25, 0.15]
    got = figures(matrix, ids)
    # Rows 2 and 4 hold token 1 again. Row 2 looks at itself alone. Row 4: same at 0 and 2, after them 1 and 3.
    assert got["same_mass"] == pytest.approx((0 + 0.1 + 0.3) / 2)
    assert got["induction_mass"] == pytest.approx((0 + 0.2 + 0.25) / 2)


def test_a_token_that_repeats_the_one_before_is_not_its_own_induction() -> None:
    matrix = np.eye(3)
    matrix[2] = [0.5, 0.3, 0.2]
    got = figures(matrix, [4, 4, 4])
    # Row 1 follows token 0 but is the query itself: no induction row. Row 2: the position after 0 is 1.
    assert got["induction_mass"] == pytest.approx(0.3)
    assert got["same_mass"] == pytest.approx((0.0 + 0.5 + 0.3) / 2)
    assert math.isnan(figures(np.eye(2), [4, 4])["induction_mass"])


def test_rows_that_sum_below_one_are_taken_as_they_are() -> None:
    got = figures(previous_token_head(5) * 0.5)
    assert got["previous_mass"] == 0.5
    assert got["attn_entropy"] == pytest.approx(-0.5 * math.log(0.5))
    assert got["attn_distance"] == 0.5


def test_an_encoder_counts_its_first_row_and_looks_both_ways() -> None:
    uniform = np.full((4, 4), 0.25)
    got = figures(uniform, [1, 2, 3, 4], causal=False)
    assert got["attn_entropy"] == pytest.approx(math.log(4))
    assert got["attn_distance"] == pytest.approx(np.mean([6 / 4, 4 / 4, 4 / 4, 6 / 4]))
    ahead = np.eye(4, k=1)
    ahead[3, 0] = 1
    assert figures(ahead, [1, 2, 3, 4], causal=False)["attn_distance"] == (1 + 1 + 1 + 3) / 4


@pytest.mark.parametrize("causal", [True, False])
def test_what_cannot_be_measured_is_nan(causal: bool) -> None:
    assert all(math.isnan(v) for v in figures(np.ones((1, 1)), [3], causal=causal).values())
    assert all(math.isnan(v) for v in figures(np.ones((0, 0)), [], causal=causal).values())
    got = figures(previous_token_head(5), causal=causal)
    assert {name for name, value in got.items() if math.isnan(value)} == {"same_mass", "induction_mass"}


def by_definition(p: np.ndarray, ids: list[int], *, causal: bool) -> list[float]:
    """The definitions as the documentation has them, one row and one key at a time."""
    n = len(ids)
    rows: dict[str, list[float]] = {name: [] for name in ATTENTION_FIGURES}
    for q in range(n):
        if q >= 1 or (not causal and n > 1):
            rows["attn_entropy"].append(-sum(x * math.log(x) for x in p[q] if x > 0))
            rows["attn_distance"].append(sum(p[q][k] * abs(q - k) for k in range(n)))
        if q >= 1:
            rows["previous_mass"].append(p[q][q - 1])
            rows["first_mass"].append(p[q][0])
        same = [k for k in range(q) if ids[k] == ids[q]]
        after = [k for k in range(1, q) if ids[k - 1] == ids[q]]
        if same:
            rows["same_mass"].append(sum(p[q][k] for k in same))
        if after:
            rows["induction_mass"].append(sum(p[q][k] for k in after))
    return [sum(r) / len(r) if r else math.nan for r in rows.values()]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_random_heads_equal_the_definitions(causal: bool, dtype) -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 3, 11, 30):
        attn = rng.dirichlet(np.full(n, 0.3), size=(3, n))
        if causal:
            attn = np.tril(attn)
        attn, ids = attn.astype(dtype), rng.integers(0, 6, n)
        got = measure_heads(attn, repetitions_of(ids, causal=causal))
        wanted = [by_definition(head.astype(np.float64), ids.tolist(), causal=causal) for head in attn]
        np.testing.assert_allclose(got, wanted, rtol=2e-5, atol=1e-6)


def test_attention_and_text_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="4 tokens, but repetitions of 5"):
        measure_heads(np.zeros((1, 4, 4), np.float32), repetitions_of(DISTINCT, causal=True))
