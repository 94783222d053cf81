"""What of a tensor is stored, and where: heads, positions, padding; expectations are literal or numpy slices."""

import numpy as np
import pytest
import torch

from decision_traces.errors import CaptureError, NonFiniteError
from decision_traces.format.arrays import Dims
from decision_traces.tracing.buffers import BatchBuffers, peak, site_shape

T, S = 6, 5  # positions of the decoder and of the encoder
SIZES = {
    "n_examples": 2, "n_layers": 1, "n_heads": 4, "n_kv_heads": 2, "d_head": 3, "d_value": 2, "d_model": 5,
    "n_positions": T, "n_source": S, "d_mlp": 7, "vocab_size": 9,
}  # fmt: skip
LENGTHS = {"dec": [4, 6], "enc": [5, 2]}
WIDTHS = {
    "q": (4, T, 3), "k": (2, T, 3), "v": (2, T, 2), "attn": (4, T, T), "head_out": (4, T, 2),
    "cross_q": (4, T, 3), "cross_k": (2, S, 3), "cross_v": (2, S, 2), "cross_attn": (4, T, S),
    "cross_head_out": (4, T, 2), "embed": (T, 5), "mlp_act": (T, 7), "post_cross": (T, 5), "logits": (T, 9),
}  # fmt: skip
BY_HEAD = {s for s, shape in WIDTHS.items() if len(shape) == 3}


def _dims(**kept) -> Dims:
    return Dims(**SIZES, **kept)


def _batch(stages, dtype: str = "float32", **kept) -> BatchBuffers:
    sides = {"dec": _dims(**kept), "enc": Dims(**{**SIZES, "n_positions": S, "n_source": 0})}
    return BatchBuffers([(f"dec.{stage}", 0) for stage in stages], sides, dtype)


def _value(stage: str, rows: int = 2) -> torch.Tensor:
    """Numbers that are all different and never zero."""
    shape = (rows, *WIDTHS[stage])
    return torch.arange(1.0, 1 + np.prod(shape)).view(shape)


def _stored(buffers: BatchBuffers, stage: str) -> np.ndarray:
    return buffers.stack(f"dec.{stage}")[0].numpy()


def _expected(stage: str, lengths=LENGTHS, heads=None, at=None) -> np.ndarray:
    """Cut one row after the other, by numpy alone.

    Args:
        stage: The stage.
        lengths: Tokens of each row, by side.
        heads: The heads to keep of this stage's own.
        at: Positions of the slots of each row, -1 for none; None keeps all.
    """
    value = _value(stage).numpy()
    rows = []
    for row in range(2):
        one = value[row]
        if stage in BY_HEAD and heads is not None:
            one = one[list(heads)]
        n, source = lengths["dec"][row], lengths["enc"][row]
        axis = 1 if stage in BY_HEAD else 0
        one = one.copy()
        if stage in {"cross_k", "cross_v"}:
            one[:, source:] = 0
            rows.append(one)
            continue
        if stage == "attn":
            one[:, :, n:] = 0
        if stage == "cross_attn":
            one[:, :, source:] = 0
        if at is None:
            (one[:, n:] if axis else one[n:]).fill(0)
        else:
            slots = [
                np.take(one, p, axis=axis) if 0 <= p < n else np.zeros_like(np.take(one, 0, axis=axis)) for p in at[row]
            ]
            one = np.stack(slots, axis=axis)
        rows.append(one)
    return np.stack(rows)


@pytest.mark.parametrize("stage", WIDTHS)
def test_everything_is_kept_up_to_the_end_of_each_text(stage: str) -> None:
    buffers = _batch([stage])
    buffers.start(LENGTHS)
    buffers.put(f"dec.{stage}", 0, _value(stage))
    np.testing.assert_array_equal(_stored(buffers, stage), _expected(stage))


@pytest.mark.parametrize(
    ("heads", "kv_heads"), [((0, 1), (0,)), ((1, 2), (0, 1)), ((3,), (1,)), ((0, 3), (0, 1)), ((0, 1, 2, 3), (0, 1))]
)
@pytest.mark.parametrize("stage", sorted(BY_HEAD))
def test_of_some_heads_those_and_the_keys_and_values_they_read_are_kept(
    stage: str, heads: tuple[int, ...], kv_heads: tuple[int, ...]
) -> None:
    assert _dims(heads=heads).kept_kv_heads == kv_heads
    buffers = _batch([stage], heads=heads)
    buffers.start(LENGTHS)
    buffers.put(f"dec.{stage}", 0, _value(stage))
    own = kv_heads if stage in {"k", "v", "cross_k", "cross_v"} else heads
    assert _stored(buffers, stage).shape[1] == len(own)
    np.testing.assert_array_equal(_stored(buffers, stage), _expected(stage, heads=own))


@pytest.mark.parametrize(
    ("positions", "slots"),
    [
        ("last", [[3], [5]]),
        ("next", [[2], [4]]),
        ("next", [[-1], [4]]),  # a text of which nothing is predicted
        ((0, 4, 5), [[0, 4, 5], [0, 4, 5]]),  # the first row has no token 4
        ((5,), [[5], [5]]),
    ],
    ids=["last", "next", "next-none", "numbers", "number-beyond"],
)
@pytest.mark.parametrize("stage", WIDTHS)
def test_of_some_positions_only_those_queries_are_kept_and_every_key(stage: str, positions, slots) -> None:
    buffers = _batch([stage], positions=positions)
    buffers.start(LENGTHS, {"dec": slots})
    buffers.put(f"dec.{stage}", 0, _value(stage))
    expected = _expected(stage, at=slots)
    assert _stored(buffers, stage).shape == (2, *site_shape(f"dec.{stage}", _dims(positions=positions)))
    np.testing.assert_array_equal(_stored(buffers, stage), expected)


def test_heads_and_positions_may_both_be_chosen() -> None:
    buffers = _batch(["attn", "k"], heads=(2, 3), positions=(1, 4))
    slots = [[1, 4], [1, 4]]
    buffers.start(LENGTHS, {"dec": slots})
    for stage in ("attn", "k"):
        buffers.put(f"dec.{stage}", 0, _value(stage))
    value = _value("attn").numpy()
    attn = np.zeros((2, 2, 2, T), np.float32)
    attn[0, :, 0, :4] = value[0, 2:4, 1, :4]
    attn[1] = value[1, 2:4][:, [1, 4]]
    np.testing.assert_array_equal(_stored(buffers, "attn"), attn)
    np.testing.assert_array_equal(_stored(buffers, "k"), _expected("k", heads=(1,), at=slots))


SHORTER = {"dec": [2, 6], "enc": [3, 1]}


@pytest.mark.parametrize("after", [SHORTER, {"dec": [6, 6], "enc": [1, 1]}, {"dec": [1, 1], "enc": [5, 5]}])
@pytest.mark.parametrize("stage", WIDTHS)
def test_a_second_pass_of_shorter_texts_leaves_nothing_of_the_first(stage: str, after: dict[str, list[int]]) -> None:
    buffers = _batch([stage])
    for lengths in (LENGTHS, after):
        buffers.start(lengths)  # type: ignore[arg-type]
        buffers.put(f"dec.{stage}", 0, _value(stage))
    np.testing.assert_array_equal(_stored(buffers, stage), _expected(stage, after))


@pytest.mark.parametrize("stage", WIDTHS)
def test_a_second_pass_with_fewer_rows_and_slots_leaves_nothing_of_the_first(stage: str) -> None:
    buffers = _batch([stage], positions="next")
    buffers.start(LENGTHS, {"dec": [[2], [4]]})
    buffers.put(f"dec.{stage}", 0, _value(stage))
    one_row = {"dec": [3], "enc": [2]}
    buffers.start(one_row, {"dec": [[-1]]})  # type: ignore[dict-item]
    buffers.put(f"dec.{stage}", 0, _value(stage)[:1])
    cut = {"dec": [3, 0], "enc": [2, 0]}
    np.testing.assert_array_equal(_stored(buffers, stage), _expected(stage, cut, at=[[-1], [-1]])[:1])


@pytest.mark.parametrize("stage", WIDTHS)
def test_a_row_is_its_tokens_and_nothing_else(stage: str) -> None:
    buffers = _batch([stage])
    buffers.start(LENGTHS)
    buffers.put(f"dec.{stage}", 0, _value(stage))
    n, source = (LENGTHS[side][0] for side in ("dec", "enc"))
    cut = {"attn": np.s_[:, :n, :n], "cross_attn": np.s_[:, :n, :source]}
    cut |= {name: np.s_[:, :source] for name in ("cross_k", "cross_v")}
    tokens = cut.get(stage, np.s_[:, :n] if stage in BY_HEAD else np.s_[:n])
    np.testing.assert_array_equal(buffers.row((f"dec.{stage}", 0), 0), _expected(stage)[0][tokens])


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize(
    ("values", "largest"),
    [
        ([0.5, -2.0, 1.5], 2.0),
        ([0.5, 3.0, -2.0], 3.0),
        ([-0.25, -1.0], 1.0),
        ([-0.0, 0.0], 0.0),
        ([-0.0], 0.0),
        ([2.0**-24, -(2.0**-23)], 2.0**-23),
        ([1.0, float("inf")], float("inf")),
        ([-float("inf"), 1.0], float("inf")),
        ([], 0.0),
    ],
)
def test_the_largest_absolute_value(values: list[float], largest: float, dtype: str) -> None:
    assert peak(np.array(values, dtype)) == largest


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_absolute_value_of_what_is_not_a_number(dtype: str, sign: int) -> None:
    values = np.array([1.0, np.copysign(np.nan, sign), -np.inf], dtype)
    assert np.isnan(peak(values))


def test_a_layer_with_fewer_and_narrower_heads_is_filled_up_with_zeros() -> None:
    buffers = _batch(["q", "v"])
    buffers.start({"dec": [6, 6], "enc": [1, 1]})
    buffers.put("dec.q", 0, _value("q")[:, :3, :, :2])
    expected = np.zeros((2, 4, T, 3), np.float32)
    expected[:, :3, :, :2] = _value("q").numpy()[:, :3, :, :2]
    np.testing.assert_array_equal(_stored(buffers, "q"), expected)


@pytest.mark.parametrize(
    ("stage", "shape", "said"),
    [
        ("embed", (2, T, 4), r"dec.embed of layer 0 has shape \(6, 4\) where \(6, 5\) belongs"),
        ("q", (2, 5, T, 3), r"dec.q of layer 0 has shape \(5, 6, 3\) where \(4, 6, 3\) belongs"),
        ("q", (2, 4, T, 4), r"dec.q of layer 0 has shape \(4, 6, 4\) where \(4, 6, 3\) belongs"),
        ("mlp_act", (2, T, 6), r"dec.mlp_act of layer 0 has shape"),
        ("attn", (2, 4, T, 3), r"dec.attn of layer 0 has shape \(4, 6, 3\) where \(4, 6, 6\) belongs"),
        ("cross_attn", (2, 4, T, 3), r"dec.cross_attn of layer 0 has shape \(4, 6, 3\) where \(4, 6, 5\) belongs"),
        ("cross_k", (2, 2, 4, 3), r"dec.cross_k of layer 0 has shape \(2, 4, 3\) where \(2, 5, 3\) belongs"),
    ],
)
def test_a_tensor_of_another_shape_is_an_error(stage: str, shape: tuple[int, ...], said: str) -> None:
    buffers = _batch([stage])
    buffers.start(LENGTHS)
    with pytest.raises(CaptureError, match=said):
        buffers.put(f"dec.{stage}", 0, torch.ones(shape))


@pytest.mark.parametrize("stage", ["q", "k", "attn", "head_out"])
def test_some_heads_of_a_layer_with_fewer_heads_is_an_error_and_no_guess(stage: str) -> None:
    """With other groups a query head reads from another key-value head than in the layer with most heads."""
    buffers = _batch([stage], heads=(0, 1))
    buffers.start(LENGTHS)
    few = _value(stage)[:, :1]
    with pytest.raises(CaptureError, match=rf"dec\.{stage} has 1 heads in one layer and {WIDTHS[stage][0]} in another"):
        buffers.put(f"dec.{stage}", 0, few)


def test_what_is_not_asked_for_is_not_kept() -> None:
    buffers = _batch(["q"])
    buffers.start(LENGTHS)
    buffers.put("dec.k", 0, _value("k"))
    buffers.put("dec.q", 1, _value("q"))
    assert list(buffers.sites) == [("dec.q", 0)]
    assert not _stored(buffers, "q").any()


@pytest.mark.parametrize(
    ("value", "largest", "said"),
    [
        (float("nan"), None, "The model computed NaN in q of layer 0"),
        (float("inf"), None, "The model computed an infinite value in q of layer 0"),
        (-70000.0, 65504.0, r"q of layer 0 reaches 70,000, more than float16 holds \(65,504\)"),
    ],
)
def test_what_does_not_fit_is_named(value: float, largest: float | None, said: str) -> None:
    buffers = _batch(["q", "embed"])
    buffers.start(LENGTHS)
    wrong = torch.ones(2, *WIDTHS["q"])
    wrong[1, 2, 3, 0] = value
    buffers.put("dec.q", 0, wrong)
    with pytest.raises(NonFiniteError, match=said):
        buffers.check_finite(largest)


def test_what_stands_in_the_padding_does_not_count() -> None:
    buffers = _batch(["q"], dtype="float16")
    buffers.start(LENGTHS)
    value = torch.ones(2, *WIDTHS["q"])
    value[0, :, 4:] = float("nan")
    buffers.put("dec.q", 0, value)
    buffers.check_finite()
    assert np.isfinite(_stored(buffers, "q")).all()
