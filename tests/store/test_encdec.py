"""Runs of encoder-decoders: two sides with tokens of their own, and cross-attention between them."""

from dataclasses import replace

import numpy as np
import pytest
from support.runs import ENCDEC, TinyRun, build_run, whole_arrays

from decision_traces.errors import NotCapturedError, UsageError
from decision_traces.format.stages import CAPTURES

# The decoder reads 5, 2, 1, 6 and 3 tokens in 3 layers, the encoder 2, 7, 4, 1 and 3 in 2 layers.
BOTH = replace(ENCDEC, capture=CAPTURES, d_value=5, missing=(("enc_logits", "its encoder has no head"),))
SOURCES = (2, 7, 4, 1, 3)
SOME = replace(BOTH, layers=(0, 2), heads=(2,), positions="next")


@pytest.mark.parametrize("row", range(5))
def test_each_side_has_its_arrays(built, row):
    s, w = built(BOTH).store, whole_arrays(BOTH)
    np.testing.assert_array_equal(s.hidden(row), w["dec_hidden"][row])
    np.testing.assert_array_equal(s.hidden(row, side="enc", layer=-1), w["enc_hidden"][row, 2])
    np.testing.assert_array_equal(s.attn(row, side="enc", layer=1, head=0), w["enc_self_attn"][row, 1, 0])
    np.testing.assert_array_equal(s.resid(row, "post_cross", layer=2), w["dec_res_post_cross"][row, 2])
    np.testing.assert_array_equal(s.mlp_act(row, side="enc"), w["enc_mlp_act"][row])
    np.testing.assert_array_equal(s.logits(row), w["dec_logits"][row])


@pytest.mark.parametrize(("row", "n", "m"), [(0, 5, 2), (1, 2, 7), (2, 1, 4), (3, 6, 1), (4, 3, 3)])
def test_cross_attention(built, row, n, m):
    s, w = built(BOTH).store, whole_arrays(BOTH)
    np.testing.assert_array_equal(s.attn(row, kind="cross", layer=2, head=3), w["dec_cross_attn"][row, 2, 3])
    np.testing.assert_array_equal(s.attn(row, kind="cross", trim=True), w["dec_cross_attn"][row, :, :, :n, :m])
    np.testing.assert_array_equal(s.qkv(row, "q", kind="cross", trim=True), w["dec_cross_q"][row, :, :, :n])
    np.testing.assert_array_equal(s.qkv(row, "k", kind="cross", layer=0), w["dec_cross_k"][row, 0])
    np.testing.assert_array_equal(s.qkv(row, "v", kind="cross", trim=True), w["dec_cross_v"][row, :, :, :m])
    np.testing.assert_array_equal(s.attn_out(row, kind="cross", layer=1), w["dec_cross_attn_out"][row, 1])
    np.testing.assert_array_equal(s.head_out(row, kind="cross", layer=1, head=2), w["dec_cross_head_out"][row, 1, 2])
    np.testing.assert_array_equal(s.attn(row, side="enc", trim=True), w["enc_self_attn"][row, :, :, :m, :m])


def test_sizes_and_tokens_of_both_sides(built):
    s = built(BOTH).store
    assert (s.arch, s.sides, s.T, s.L) == ("encdec", ("dec", "enc"), 6, 3)
    assert (s.dims("enc").n_positions, s.dims("enc").n_layers, s.dims("dec").n_source) == (7, 2, 7)
    assert [s.n_tokens(r) for r in range(5)] == [5, 2, 1, 6, 3]
    assert [s.n_tokens(r, side="enc") for r in range(5)] == list(SOURCES)
    assert s.encodings(0, trim=True)["attention_mask"].tolist() == [1, 1, 1, 1, 1]
    assert s.encodings(0, side="enc", trim=True)["attention_mask"].tolist() == [1, 1]
    assert list(s.encodings(0)["input_ids"]) == [*s.tokens.iloc[0]["dec_input_ids"], 0]
    assert s.padded("attention_mask", "enc").tolist() == [[1] * n + [0] * (7 - n) for n in (2, 7, 4, 1, 3)]
    assert "offset_mapping" not in s.encodings(0)
    assert s.positions(0, side="enc").tolist() == [0, 1, -1, -1, -1, -1, -1]
    assert s.spans.n_tokens.tolist() == [5, 2, 1, 6, 3]
    assert s.spans_of("enc").n_tokens.tolist() == list(SOURCES)


def test_gather_on_either_side(built):
    s, w = built(BOTH).store, whole_arrays(BOTH)
    got = s.gather("dec_cross_attn", layer=0, head=1)
    for row, at in enumerate((3, 0, None, 4, 1)):
        expected = np.full(7, np.nan) if at is None else w["dec_cross_attn"][row, 0, 1, at]
        np.testing.assert_array_equal(got[row], expected)
    last = s.gather("dec_cross_k", layer=1, head=0, position="last")
    np.testing.assert_array_equal(last, [w["dec_cross_k"][r, 1, 0, n - 1] for r, n in enumerate(SOURCES)])
    np.testing.assert_array_equal(
        s.gather("enc_hidden", layer=2, position="last"),
        [w["enc_hidden"][r, 2, n - 1] for r, n in enumerate(SOURCES)],
    )
    for name in ("enc_hidden", "dec_cross_v"):
        with pytest.raises(UsageError, match="made by the decoder"):
            s.gather(name)


def test_a_selection_of_both_sides(built):
    s, w = built(SOME).store, whole_arrays(SOME)
    assert s.arrays()["dec_cross_attn"] == (5, 2, 1, 1, 7)
    assert s.arrays()["dec_cross_k"] == (5, 2, 1, 7, 3)
    assert s.arrays()["enc_self_attn"] == (5, 1, 1, 7, 7)
    np.testing.assert_array_equal(s.attn(3, kind="cross", layer=2, head=2), w["dec_cross_attn"][3, 2, 2, [4]])
    np.testing.assert_array_equal(s.qkv(3, "k", kind="cross", layer=-1, head=1), w["dec_cross_k"][3, 2, 1])
    np.testing.assert_array_equal(s.hidden(3, side="enc", layer=1), w["enc_hidden"][3, 1])
    assert s.attn(2, kind="cross", trim=True).shape == (2, 1, 0, 4)
    assert s.positions(3).tolist() == [4]
    assert s.to_xarray("dec_cross_attn").token_position.values.tolist() == [[3], [0], [-1], [4], [1]]
    assert s.to_xarray("dec_cross_v").source.values.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert s.torch_dataset("dec_cross_v")[0]["mask"].tolist() == [True, True, False, False, False, False, False]


def test_only_decoders_attend_across(built):
    with pytest.raises(UsageError, match='ask for kind="cross" with side="dec"'):
        built(BOTH).store.attn(0, side="enc", kind="cross")
    with pytest.raises(NotCapturedError, match="its encoder has no head"):
        built(BOTH).store.logits(0, side="enc")


def test_an_encoder_alone_asks_for_its_side(tmp_path):
    run = TinyRun(side="enc", objective="encode", capture=("hidden", "attn"))
    arrays = build_run(tmp_path / "r", run)
    from decision_traces.store.reading.trace_store import TraceStore

    s = TraceStore(tmp_path / "r")
    assert (s.arch, s.sides, s.T) == ("enc", ("enc",), 6)
    np.testing.assert_array_equal(s.hidden(1, side="enc"), arrays["enc_hidden"][1])
    assert s.positions(1).tolist() == [0, 1, -1, -1, -1, -1]
    with pytest.raises(NotCapturedError, match='use side="enc" for them'):
        s.hidden(1)
    with pytest.raises(UsageError, match="no one position of its prediction"):
        s.gather("enc_hidden")
