"""Analyses of runs that keep only some of the model: they read the right slot, or say what is missing."""

from dataclasses import replace

import numpy as np
import pytest
from support.runs import CHOICES, DECODER, ENCDEC, HYBRID, TinyRun, build_run, whole_arrays

from decision_traces.analysis.attention.statistics import attention_statistics
from decision_traces.analysis.attribution.heads import head_points
from decision_traces.analysis.decisions import decisions_of
from decision_traces.analysis.probing.correctness import probe_correctness
from decision_traces.analysis.requirements import need_whole, refuse_cross_attention
from decision_traces.analysis.states import parts, path_of
from decision_traces.errors import SelectionError, UnsupportedArchitecture, UsageError
from decision_traces.store.reading.trace_store import TraceStore

RAN = ("attn", "qkv", "hidden", "resid")
NEXT = replace(DECODER, positions="next", capture=RAN)


@pytest.fixture
def opened(tmp_path):
    def build(run: TinyRun) -> TraceStore:
        build_run(tmp_path / "run", run)
        return TraceStore(tmp_path / "run")

    return build


@pytest.mark.parametrize("run", [DECODER, NEXT, replace(ENCDEC, positions="next"), ENCDEC])
def test_states_are_read_at_the_slot_of_the_decision(opened, run):
    s, w = opened(run), whole_arrays(run)
    path, attn = path_of(s, "hidden"), s.array("dec_self_attn")
    (part,) = parts(path, decisions_of(s))
    # The third text has one token and no prediction.
    rows, at = [0, 1, 3, 4], [3, 0, 4, 1]
    for depth, point in enumerate(path):
        np.testing.assert_array_equal(part.read(point), w["dec_hidden"][rows, depth, at])
    np.testing.assert_array_equal(part.read(replace(path[1], array=attn)), w["dec_self_attn"][rows, 1, :, at])


SOME = replace(DECODER, layers=(0, 2))
FEW_HEADS = replace(DECODER, heads=(1,))
REFUSED = [
    (SOME, lambda s: path_of(s, "hidden"), "keeps layers 0, 2 only; reading the stream .* again without --layers"),
    (SOME, lambda s: path_of(s, "post_mlp"), "keeps layers 0, 2 only"),
    (SOME, attention_statistics, "keeps layers 0, 2 only; what a head looks at needs all"),
    (SOME, head_points, "keeps layers 0, 2 only"),
    (SOME, lambda s: probe_correctness(s, folds=2), "keeps layers 0, 2 only; a probe"),
    (FEW_HEADS, attention_statistics, "keeps heads 1 only; .* without --heads"),
    (FEW_HEADS, head_points, "keeps heads 1 only; .* without --heads"),
    (NEXT, attention_statistics, "keeps positions next only; .* without --positions"),
    (NEXT, head_points, "keeps positions next only; attribution to heads"),
    (replace(DECODER, positions=(0, 3)), attention_statistics, "keeps positions 0, 3 only"),
    (HYBRID, attention_statistics, "^Only layers 1 and 3 of this model have self-attention; what a head looks at"),
    (HYBRID, lambda s: path_of(s, "post_attn"), "^Only layers 1 and 3 of this model have self-attention"),
    (
        replace(CHOICES, positions="last"),
        lambda s: need_whole(s.array("enc_mc_hidden"), "the lens by choice", positions=True),
        "keeps positions last only; the lens by choice needs all",
    ),
]


@pytest.mark.parametrize(("run", "analyse", "message"), REFUSED)
def test_what_a_run_must_keep_is_said(opened, run, analyse, message):
    with pytest.raises(UsageError, match=message):
        analyse(opened(run))


def test_a_decision_outside_the_kept_positions_is_refused(opened):
    s = opened(replace(DECODER, positions=(0, 3)))
    path = path_of(s, "hidden")
    (part,) = parts(path, decisions_of(s))
    with pytest.raises(SelectionError, match="Position 4 of row 3 is not kept: this run keeps positions 0, 3"):
        part.read(path[0])


def test_hybrids_have_a_way_through_the_stream(opened):
    s, w = opened(HYBRID), whole_arrays(HYBRID)
    path = path_of(s, "hidden")
    (part,) = parts(path, decisions_of(s))
    np.testing.assert_array_equal(part.read(path[2]), w["dec_hidden"][[0, 1, 3, 4], 2, [3, 0, 4, 1]])
    assert [point.normed for point in path] == [False] * 4 + [True]


def test_head_statistics_of_an_encoder_decoder_take_each_sides_tokens(opened):
    s = opened(ENCDEC)
    own = attention_statistics(s)
    assert own.values.shape == (6, 5, 3, 4)
    assert np.isnan(own.figure("attn_distance")[2]).all()  # the decoder's third text has one token
    of_encoder = attention_statistics(s, "enc_self_attn")
    assert of_encoder.values.shape == (6, 5, 2, 4)
    assert np.isnan(of_encoder.figure("previous_mass")[3]).all()  # the encoder's fourth
    assert np.isfinite(of_encoder.figure("previous_mass")[2]).all()
    expected = whole_arrays(ENCDEC)["enc_self_attn"][0, 1, 2, 1, 0]
    assert of_encoder.figure("previous_mass")[0, 1, 2] == pytest.approx(expected, rel=1e-3)


def test_attribution_does_not_know_cross_attention(opened):
    with pytest.raises(UnsupportedArchitecture, match="tiny is an encoder-decoder, whose cross-attention"):
        refuse_cross_attention(opened(ENCDEC), "direct logit attribution")
