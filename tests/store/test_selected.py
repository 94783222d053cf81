"""Runs that keep only some layers, heads and positions, and hybrids: every read against the whole arrays."""

from dataclasses import replace

import numpy as np
import pytest
import xarray
from support.runs import CHOICES, DECODER, HYBRID, SELECTED, TinyRun, build_run, whole_arrays

from decision_traces.errors import NotCapturedError, SelectionError, UsageError
from decision_traces.format.stages import CAPTURES
from decision_traces.store.reading.trace_store import TraceStore

# 5 examples of 5, 2, 1, 6 and 3 tokens; layers 0, 3, 5 of 6; heads 1, 3 of 4 (key-value heads 0, 1); positions 0, 3.
SOME = replace(SELECTED, capture=CAPTURES, d_value=5)
NEXT = replace(DECODER, positions="next", capture=CAPTURES)
LAST = replace(DECODER, positions="last", capture=("attn", "hidden"))
MIXED = replace(HYBRID, capture=CAPTURES)
HEADS = [1, 3]
# A slot holds a token where the text is long enough: position 3 only in examples 0 and 3.
LONG = (0, 3)


def slots(values, row, axis=-2):
    """Positions 0 and 3 of an example; zeros for what is past its text."""
    cut = np.take(values, [0, 3], axis=axis)
    if row not in LONG:
        index = [slice(None)] * cut.ndim
        index[axis] = slice(1, 2)
        cut[tuple(index)] = 0
    return cut


@pytest.mark.parametrize("row", range(5))
@pytest.mark.parametrize("layer", [0, 3, 5, -1, -6])
def test_layers_and_heads_are_the_models_own_numbers(built, row, layer):
    s, w = built(SOME).store, whole_arrays(SOME)
    number = layer % 6
    np.testing.assert_array_equal(s.attn(row, layer=layer, head=3), slots(w["dec_self_attn"][row, number, 3], row))
    np.testing.assert_array_equal(s.attn(row, layer=layer), slots(w["dec_self_attn"][row, number][HEADS], row))
    np.testing.assert_array_equal(s.attn(row)[:, 1], slots(w["dec_self_attn"][row][[0, 3, 5]][:, 3], row))
    np.testing.assert_array_equal(s.qkv(row, "q", layer=layer, head=-1), slots(w["dec_self_q"][row, number, 3], row))
    np.testing.assert_array_equal(s.qkv(row, "k", layer=layer, head=1), slots(w["dec_self_k"][row, number, 1], row))
    np.testing.assert_array_equal(s.qkv(row, "v", layer=layer), slots(w["dec_self_v"][row, number], row))
    for stage in ("pre_attn", "post_attn", "post_mlp"):
        got = s.resid(row, stage, layer=layer)
        np.testing.assert_array_equal(got, slots(w[f"dec_res_{stage}"][row, number], row))
    np.testing.assert_array_equal(s.attn_out(row, layer=layer), slots(w["dec_attn_out"][row, number], row))
    np.testing.assert_array_equal(s.mlp_out(row, layer=layer), slots(w["dec_mlp_out"][row, number], row))
    np.testing.assert_array_equal(s.mlp_act(row, layer=layer), slots(w["dec_mlp_act"][row, number], row))
    np.testing.assert_array_equal(s.head_out(row, layer=layer, head=1), slots(w["dec_head_out"][row, number, 1], row))
    np.testing.assert_array_equal(s.logits(row), slots(w["dec_logits"][row], row))
    np.testing.assert_array_equal(s.resid_embed(row), slots(w["dec_res_embed"][row], row))


@pytest.mark.parametrize("depth", [0, 1, 3, 4, 5, 6, -1])
def test_depths_in_front_of_and_behind_a_kept_layer_are_kept(built, depth):
    s, w = built(SOME).store, whole_arrays(SOME)
    np.testing.assert_array_equal(s.hidden(3, layer=depth), slots(w["dec_hidden"][3, depth % 7], 3))
    np.testing.assert_array_equal(s.hidden(3), slots(w["dec_hidden"][3][[0, 1, 3, 4, 5, 6]], 3))


def test_sizes_are_those_of_the_model(built):
    s = built(SOME).store
    assert (s.n, s.T, s.L, s.H, s.n_kv_heads, s.d_head, s.d_model, s.sides) == (5, 6, 6, 4, 2, 3, 8, ("dec",))
    dims = s.dims("dec")
    assert (dims.layers, dims.heads, dims.positions, dims.d_value, dims.d_mlp) == ((0, 3, 5), (1, 3), (0, 3), 5, 10)
    assert s.arrays()["dec_self_attn"] == (5, 3, 2, 2, 6)
    assert s.arrays()["dec_head_out"] == (5, 3, 2, 2, 5)
    assert s.arrays()["dec_logits"] == (5, 2, 50)
    with pytest.raises(UsageError, match="no side 'enc', only 'dec'"):
        s.dims("enc")


ERRORS = [
    (SOME, lambda s: s.attn(0, layer=1), "No layer 1 here: this run keeps layers 0, 3, 5 \\(--layers\\)\\.$"),
    (SOME, lambda s: s.attn(0, layer=-2), "No layer 4 here: this run keeps layers 0, 3, 5"),
    (SOME, lambda s: s.attn(0, layer=6), "No layer 6 here: valid are 0 to 5"),
    (SOME, lambda s: s.attn(0, head=0), "No head 0 here: this run keeps heads 1, 3 \\(--heads\\)"),
    (SOME, lambda s: s.hidden(0, layer=2), "No depth .* 2 here: this run keeps depths 0, 1, 3, 4, 5, 6 \\(--layers\\)"),
    (replace(SOME, heads=(3,)), lambda s: s.qkv(0, "k", head=0), "this run keeps key-value head 1 \\(--heads\\)"),
    (SOME, lambda s: s.gather("dec_hidden", position=1), "No position 1 here: this run keeps positions 0, 3"),
    (SOME, lambda s: s.gather("dec_hidden", position="last"), "Position 4 of row 0 is not kept: .* positions 0, 3"),
    (SOME, lambda s: s.gather("dec_hidden", position=[0, 1, 0, 0, 0]), "Position 1 of row 1 is not kept"),
    (NEXT, lambda s: s.gather("dec_hidden", position="last"), "row 0 is not kept: .*--positions next"),
    (LAST, lambda s: s.gather("dec_hidden"), "Position 3 of row 0 is not kept: .*--positions last"),
    (MIXED, lambda s: s.attn(0, layer=2), "No layer 2 here: only layers 1 and 3 of this model have self-attention\\."),
    (MIXED, lambda s: s.mlp_out(0, layer=3), "only layers 0, 1 and 2 of this model have an MLP"),
    (
        replace(MIXED, layers=(0, 1)),
        lambda s: s.attn(0, layer=0),
        "only layers 1 and 3 of this model have self-attention",
    ),
    (replace(MIXED, layers=(0, 1)), lambda s: s.attn(0, layer=3), "this run keeps layer 1 \\(--layers\\)"),
]


@pytest.mark.parametrize(("run", "ask", "message"), ERRORS)
def test_what_is_not_kept_is_said(built, run, ask, message):
    with pytest.raises(SelectionError, match=message):
        ask(built(run).store)


def test_positions_say_which_token_stands_in_a_slot(built):
    some, nxt, last, whole = (built(run).store for run in (SOME, NEXT, LAST, DECODER))
    assert [some.positions(r).tolist() for r in range(5)] == [[0, 3], [0, -1], [0, -1], [0, 3], [0, -1]]
    assert [nxt.positions(r).tolist() for r in range(5)] == [[3], [0], [-1], [4], [1]]
    assert [last.positions(r).tolist() for r in range(5)] == [[4], [1], [0], [5], [2]]
    assert whole.positions(1).tolist() == [0, 1, -1, -1, -1, -1]


def test_trim_drops_slots_without_a_token(built):
    s, w = built(SOME).store, whole_arrays(SOME)
    np.testing.assert_array_equal(s.hidden(1, layer=3, trim=True), w["dec_hidden"][1, 3, [0]])
    np.testing.assert_array_equal(s.hidden(3, layer=3, trim=True), w["dec_hidden"][3, 3, [0, 3]])
    np.testing.assert_array_equal(s.attn(1, layer=5, head=1, trim=True), w["dec_self_attn"][1, 5, 1, [0], :2])
    np.testing.assert_array_equal(s.attn(0, layer=5, head=1, trim=True), w["dec_self_attn"][0, 5, 1, [0, 3], :5])
    assert built(NEXT).store.hidden(2, trim=True).shape == (4, 0, 8)


def test_trim_drops_a_slot_between_two_that_hold_tokens(built):
    # Positions need not ascend in the file: position 5 of a text of 3 tokens stands between 0 and 2.
    run = replace(DECODER, positions=(0, 5, 2), capture=("attn", "hidden"))
    s, w = built(run).store, whole_arrays(run)
    np.testing.assert_array_equal(s.hidden(4, trim=True), w["dec_hidden"][4][:, [0, 2]])
    np.testing.assert_array_equal(s.attn(4, layer=1, head=2, trim=True), w["dec_self_attn"][4, 1, 2, [0, 2], :3])
    np.testing.assert_array_equal(s.gather("dec_hidden", layer=1, position=2)[4], w["dec_hidden"][4, 1, 2])


def nan_where_none(values, places, axis):
    rows = [np.take(v, max(p, 0), axis=axis) if p >= 0 else None for v, p in zip(values, places, strict=True)]
    shape = next(r for r in rows if r is not None)
    return np.stack([np.full_like(shape, np.nan) if r is None else r for r in rows])


@pytest.mark.parametrize(
    ("run", "position", "places"),
    [
        (SOME, 3, [3, -1, -1, 3, -1]),
        (SOME, 0, [0, 0, 0, 0, 0]),
        (SOME, [3, 0, -1, 0, -1], [3, 0, -1, 0, -1]),
        (SOME, [3, 3, 3, 0, 5], [3, -1, -1, 0, -1]),
        (NEXT, "next", [3, 0, -1, 4, 1]),
        (NEXT, -2, [3, 0, -1, 4, 1]),
        (NEXT, [3, -1, -1, 4, 1], [3, -1, -1, 4, 1]),
        (LAST, "last", [4, 1, 0, 5, 2]),
        (LAST, -1, [4, 1, 0, 5, 2]),
        (LAST, [4, 1, 0, 5, 2], [4, 1, 0, 5, 2]),
    ],
)
def test_gather_finds_the_slot_of_a_position(built, run, position, places):
    s, w = built(run).store, whole_arrays(run)
    got = s.gather("dec_hidden", layer=-1, position=position)
    np.testing.assert_array_equal(got, nan_where_none(w["dec_hidden"][:, -1], places, 0))
    got = s.gather("dec_self_attn", layer=0, head=1, position=position)
    np.testing.assert_array_equal(got, nan_where_none(w["dec_self_attn"][:, 0, 1], places, 0))


def test_xarray_has_the_models_numbers_and_token_positions(built):
    s, w = built(SOME).store, whole_arrays(SOME)
    x = s.to_xarray("dec_self_attn")
    assert (x.layer.values.tolist(), x["head"].values.tolist(), x["query"].values.tolist()) == (
        [0, 3, 5],
        [1, 3],
        [0, 3],
    )
    assert x["key"].values.tolist() == [0, 1, 2, 3, 4, 5]
    part = x.sel(example="tiny-validation-000003", layer=5, head=1, query=3)
    np.testing.assert_array_equal(part.values, w["dec_self_attn"][3, 5, 1, 3])
    assert s.to_xarray("dec_hidden").depth.values.tolist() == [0, 1, 3, 4, 5, 6]
    following = built(NEXT).store.to_xarray("dec_hidden")
    assert "position" not in following.coords
    assert following.token_position.dims == ("example", "position")
    assert following.token_position.values.tolist() == [[3], [0], [-1], [4], [1]]
    chosen = built(replace(CHOICES, positions="last")).store.to_xarray("enc_mc_hidden")
    assert chosen.token_position.values.tolist() == [[[4], [1]], [[2], [2]], [[0], [5]]]


def test_a_plain_xarray_sees_the_numbers_as_coordinates(built):
    folder, w = built(SOME).folder, whole_arrays(SOME)
    x = xarray.open_zarr(folder / "dec_self_qkv.zarr", consolidated=False)
    assert {name: c.values.tolist() for name, c in x.coords.items()} == {
        "layer": [0, 3, 5],
        "head": [1, 3],
        "position": [0, 3],
    }
    np.testing.assert_array_equal(x.q.sel(layer=5, head=3, position=3).values[0], w["dec_self_q"][0, 5, 3, 3])
    attn = xarray.open_zarr(folder / "dec_self_attn.zarr", consolidated=False)
    assert set(attn.coords) == {"layer", "head", "query"}
    hidden = xarray.open_zarr(built(DECODER).folder / "dec_hidden.zarr", consolidated=False)
    assert not hidden.coords


def test_hybrids_keep_the_layers_that_have_it(built):
    s, w = built(MIXED).store, whole_arrays(MIXED)
    assert s.arrays()["dec_self_attn"] == (5, 2, 4, 6, 6)
    assert s.arrays()["dec_res_pre_attn"] == (5, 4, 6, 8)
    assert s.L == 4
    for layer in (1, 3, -1, -3):
        np.testing.assert_array_equal(s.attn(0, layer=layer), w["dec_self_attn"][0, layer])
        np.testing.assert_array_equal(s.resid(0, "post_attn", layer=layer), w["dec_res_post_attn"][0, layer])
    np.testing.assert_array_equal(s.mlp_out(0), w["dec_mlp_out"][0, :3])
    np.testing.assert_array_equal(s.resid(0, layer=2), w["dec_res_post_mlp"][0, 2])
    assert s.to_xarray("dec_self_q").layer.values.tolist() == [1, 3]
    plain = xarray.open_zarr(built(MIXED).folder / "dec_mlp_act.zarr", consolidated=False)
    assert plain.layer.values.tolist() == [0, 1, 2]


def test_new_captures_of_choices(built):
    run = replace(CHOICES, capture=CAPTURES, positions="last")
    s, w = built(run).store, whole_arrays(run)
    for row, pair in enumerate(((5, 2), (3, 3), (1, 6))):
        for c, length in enumerate(pair):
            at = [length - 1]
            np.testing.assert_array_equal(s.mcq_attn_out(row, c, layer=1), w["enc_mc_attn_out"][row, c, 1][at])
            np.testing.assert_array_equal(s.mcq_mlp_out(row, c, layer=1), w["enc_mc_mlp_out"][row, c, 1][at])
            np.testing.assert_array_equal(s.mcq_mlp_act(row, c), w["enc_mc_mlp_act"][row, c][:, at])
            np.testing.assert_array_equal(s.mcq_head_out(row, c, 0, 3), w["enc_mc_head_out"][row, c, 0, 3][at])
            np.testing.assert_array_equal(
                s.mcq_attn(row, c, 0, 3, trim=True), w["enc_mc_attn"][row, c, 0, 3, at, :length]
            )
            assert s.positions(row, choice_idx=c).tolist() == at
    assert s.positions(0).tolist() == [[4], [1]]
    assert not s.has("enc_mc_logits")


def test_what_the_model_cannot_give_has_its_reason(tmp_path):
    reason = "the experts of its layers have no one hidden width"
    build_run(tmp_path / "r", replace(DECODER, capture=("hidden", "mlp_act"), missing=(("dec_mlp_act", reason),)))
    with pytest.raises(NotCapturedError, match=f"This run has no dec_mlp_act: {reason}"):
        TraceStore(tmp_path / "r").mlp_act(0)


def test_a_torch_data_set_masks_slots(built):
    data = built(SOME).store.torch_dataset("dec_hidden", layer=3)
    assert data[0]["mask"].tolist() == [True, True]
    assert data[1]["mask"].tolist() == [True, False]
    np.testing.assert_array_equal(data[3]["values"].numpy(), whole_arrays(SOME)["dec_hidden"][3, 3, [0, 3]])


@pytest.mark.parametrize("layout", ["sharded", "v3", "v2"])
def test_runs_of_format_1_0_and_older_are_whole(built, layout):
    run = replace(DECODER, format_version="1.0", layout=layout)
    s = built(run).store
    assert "sides" not in s.meta
    dims = s.dims("dec")
    assert (dims.n_layers, dims.n_heads, dims.n_kv_heads, dims.d_head, dims.d_model) == (3, 4, 2, 3, 8)
    assert (dims.n_positions, dims.layers, dims.heads, dims.positions) == (6, None, None, "all")
    assert s.positions(1).tolist() == [0, 1, -1, -1, -1, -1]
    np.testing.assert_array_equal(s.qkv(3, "v", layer=-1, head=1), built(run).arrays["dec_self_v"][3, 2, 1])


def test_a_run_that_keeps_one_layer_of_old_names(built):
    run = TinyRun(layers=(2,), capture=("resid",))
    s, w = built(run).store, whole_arrays(run)
    np.testing.assert_array_equal(s.resid(0, "pre_attn", layer=2), w["dec_res_pre_attn"][0, 2])
    np.testing.assert_array_equal(s.resid(0), w["dec_res_post_mlp"][0, [2]])
