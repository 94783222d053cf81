"""Validation of selected, hybrid and two-sided runs: healthy ones hold, each broken promise is found and named."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import zarr
from support.runs import CHOICES, DECODER, ENCDEC, HYBRID, SELECTED, build_run, copy_run, reseal

from decision_traces.format.stages import CAPTURES
from decision_traces.store.validate.run import failures, validate_run

pytestmark = pytest.mark.long  # minutes; the same ways are taken in part by other tests

SOME = replace(SELECTED, capture=CAPTURES, d_value=5)
BOTH = replace(ENCDEC, capture=CAPTURES, missing=(("enc_logits", "its encoder has no head"),))
MASKED = replace(DECODER, side="enc", objective="masked", capture=("hidden",))
HEALTHY = {
    "selected": SOME,
    "next": replace(DECODER, positions="next", capture=CAPTURES),
    "last": replace(DECODER, positions="last", layers=(2,), capture=CAPTURES),
    "choices": replace(CHOICES, positions="last", heads=(0, 2), capture=CAPTURES),
    "hybrid": replace(HYBRID, capture=CAPTURES),
    "hybrid, selected": replace(HYBRID, capture=CAPTURES, layers=(0, 1), positions=(1,)),
    "both": BOTH,
    "both, selected": replace(BOTH, layers=(0, 2), heads=(2,), positions="next"),
    "masked": MASKED,
    "encode": replace(MASKED, objective="encode", capture=CAPTURES),
    "1.0": replace(DECODER, format_version="1.0"),
    "1.0 choices": replace(CHOICES, format_version="1.0"),
}


@pytest.mark.parametrize("run", HEALTHY.values(), ids=HEALTHY.keys())
def test_a_healthy_run_holds(built, run):
    assert failures(validate_run(built(run).folder)) == []


def test_the_chain_is_checked_by_the_models_layers(built):
    names = {r.name: r.detail for r in validate_run(built(SOME).folder)}
    # pre_attn 5 is post_mlp 4, which is not kept; hidden 4 and 6 are post_mlp 3 and 5.
    assert "pre_attn[l+1] == post_mlp[l]" not in names
    assert names["hidden[l+1] == post_mlp[l]"] == "largest difference"
    assert "hidden[l+1] == post_mlp[l]" not in {r.name for r in validate_run(built(DECODER).folder)}


def _array(name, at, value):
    def alter(arrays, table):
        arrays[name][at] = value

    return alter


def _cell(column, row, value):
    def alter(arrays, table):
        table[column] = table[column].astype(object)
        table.at[row, column] = value

    return alter


NEXT = replace(DECODER, positions="next", capture=("attn", "hidden"), links=False)
UNLINKED = replace(SOME, links=False)
TWO = replace(BOTH, links=False)
BROKEN = [
    # Slot 1 of the second example is position 3 of a text of two tokens.
    (UNLINKED, _array("dec_hidden", (1, 2, 1, 0), 1e-6), "padding is zero", "dec_hidden", "000001 .*depth 3, slot 1"),
    (UNLINKED, _array("dec_self_q", (3, 1, 1, 1, 0), np.inf), "values finite", "dec_self_q", "layer 3, head 3, .* 3$"),
    (
        UNLINKED,
        _array("dec_self_attn", (0, 2, 0, 0, 1), 0.5),
        "attention is causal",
        "dec_self_attn",
        "layer 5, head 1",
    ),
    (NEXT, _array("dec_self_attn", (3, 0, 0, 0, 5), 0.5), "attention is causal", "dec_self_attn", "position 4"),
    (NEXT, _array("dec_self_attn", (2, 0, 0, 0, 0), 0.5), "padding is zero", "dec_self_attn", "000002"),
    (
        NEXT,
        _array("dec_self_attn", (3, 1, 2, 0, 0), 9.0),
        "attention rows sum to 1",
        "dec_self_attn",
        "layer 1, head 2",
    ),
    (
        UNLINKED,
        _array("dec_res_post_mlp", (3, 1, 0, 0), 9.0),
        "hidden[l+1] == post_mlp[l]",
        "dec_hidden",
        "depth 4; .* 3",
    ),
    (TWO, _array("dec_cross_attn", (0, 0, 0, 4, 2), 0.5), "padding is zero", "dec_cross_attn", "000000 .* position 4"),
    (TWO, _array("dec_cross_attn", (1, 0, 0, 2, 6), 0.5), "padding is zero", "dec_cross_attn", "000001 .* position 2"),
    (
        TWO,
        _array("dec_cross_attn", (1, 2, 1, 1, 6), 0.0),
        "attention rows sum to 1",
        "dec_cross_attn",
        "layer 2, head 1",
    ),
    (TWO, _array("enc_self_attn", (1, 1, 1, 6, 6), 0.0), "attention rows sum to 1", "enc_self_attn", "position 6"),
    (TWO, _array("dec_cross_k", (3, 0, 0, 1, 0), 0.5), "padding is zero", "dec_cross_k", "000003 .* position 1"),
    (TWO, _array("enc_res_embed", (0, 2, 0), 0.5), "padding is zero", "enc_res_embed", "000000 .* position 2"),
    (BOTH, _cell("dec_n_tokens", 3, 2), "dec_n_tokens agrees with the mask", "tokens.parquet", "000003"),
    (BOTH, _cell("n_tokens", 3, 2), "n_tokens agrees with the mask", "tokens.parquet", "000003"),
    (BOTH, _cell("dec_input_ids", 1, [1, 2, 0]), "length of dec_input_ids", "tokens.parquet", ""),
    (BOTH, _cell("next_true_id", 3, 49), "true_id is the next token", "tokens.parquet", "000003"),
    (BOTH, _cell("next_pos", 3, 0), "next_pos", "tokens.parquet", "000003"),
    (MASKED, _cell("masked_pos", 3, [1, 3]), "masked lists of one length", "tokens.parquet", "000003"),
    (MASKED, _cell("masked_pos", 4, [3]), "masked_pos", "tokens.parquet", "000004 position 3"),
    (MASKED, _cell("masked_pos", 3, [1, 3, 3]), "masked_pos", "tokens.parquet", "000003 position 3"),
    (MASKED, _cell("masked_pos", 3, [1, 3, 4]), "masked tokens in input_ids", "tokens.parquet", "000003 position 4"),
    (MASKED, _cell("masked_true_ids", 4, [50]), "masked_true_ids", "tokens.parquet", "000004 position 1"),
    (MASKED, _cell("masked_pred_probs", 4, [0.0]), "masked_pred_probs", "tokens.parquet", "000004 position 1"),
    (MASKED, _cell("masked_true_probs", 4, [1.5]), "true_prob is a probability", "tokens.parquet", "000004 position 1"),
    (MASKED, _cell("masked_true_ranks", 4, [0]), "rank", "tokens.parquet", "000004 position 1"),
    (MASKED, _cell("masked_entropies", 4, [9.0]), "entropy in range", "tokens.parquet", "000004 position 1"),
]


@pytest.mark.parametrize(("run", "alter", "check", "array", "where"), BROKEN, ids=[f"{b[2]}-{b[3]}" for b in BROKEN])
def test_a_broken_promise_is_found_and_named(tmp_path, run, alter, check, array, where):
    build_run(tmp_path / "r", run, alter)
    found = [r for r in failures(validate_run(tmp_path / "r")) if r.name == check]
    assert len(found) == 1
    assert array in found[0].array
    assert re.search(where, found[0].where), found[0].where


def test_wrong_correct_flags_of_masked_tokens_are_found(tmp_path):
    def alter(arrays, table):
        table.at[3, "masked_correct"] = [not c for c in table.at[3, "masked_correct"]]

    build_run(tmp_path / "r", MASKED, alter)
    assert "correct" in {r.name for r in failures(validate_run(tmp_path / "r"))}


def coordinate(folder, name, values):
    shutil.rmtree(folder / name)
    axis = name.rsplit("/", 1)[1]
    zarr.open_group(folder / name.rsplit("/", 1)[0], mode="a").create_array(
        axis, data=np.asarray(values, np.int32), fill_value=-1, dimension_names=(axis,)
    )
    reseal(folder)


@pytest.mark.parametrize(
    ("name", "values", "array", "detail"),
    [
        ("dec_hidden.zarr/depth", [0, 1, 2, 4, 5, 6], "dec_hidden", "depth is \\[0, 1, 2, 4, 5, 6\\], the meta gives"),
        ("dec_mlp_out.zarr/layer", [0, 3], "dec_mlp_out", "the meta gives \\[0, 3, 5\\]"),
        ("dec_self_attn.zarr/query", [3, 0], "dec_self_attn", "the meta gives \\[0, 3\\]"),
    ],
)
def test_a_wrong_coordinate_is_found(tmp_path, built, name, values, array, detail):
    folder = copy_run(built(SOME).folder, tmp_path / "r")
    coordinate(folder, name, values)
    (found,) = failures(validate_run(folder))
    assert (found.name, found.array) == ("coordinates", array)
    assert re.search(detail, found.detail), found.detail


def test_damage_to_a_coordinate_is_found(tmp_path, built):
    folder = copy_run(built(SOME).folder, tmp_path / "r")
    path = folder / "dec_hidden.zarr/depth/c/0"
    raw = bytearray(path.read_bytes())
    raw[0] ^= 255
    path.write_bytes(raw)
    found = {(r.name, r.array) for r in failures(validate_run(folder))}
    assert ("files match the manifest", "dec_hidden.zarr/depth/c/0") in found
    assert {name for name, _ in found} == {"files match the manifest", "coordinates"}
    shutil.rmtree(path.parent.parent)
    reseal(folder)
    (missing,) = failures(validate_run(folder))
    assert (missing.name, missing.detail) == ("coordinates", "dec_hidden.zarr/depth is missing")


def test_a_damaged_shard_is_named_by_the_models_layer(tmp_path, built):
    folder = copy_run(built(SOME).folder, tmp_path / "r")
    path = folder / "dec_mlp_out.zarr/x/c/0/2/0/0"
    raw = bytearray(path.read_bytes())
    raw[3] ^= 1
    path.write_bytes(raw)
    found = {r.name: r.where for r in failures(validate_run(folder))}
    assert found["files match the manifest"] == "dec_mlp_out.zarr/x/c/0/2/0/0 (dec_mlp_out, block 0, layer 5)"
    assert re.search("dec_mlp_out, row 0, layer 5", found["chunks decode"])


def change(folder, **keys):
    path = folder / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))
    reseal(folder)


def test_presence_follows_the_meta(tmp_path, built):
    folder = copy_run(built(BOTH).folder, tmp_path / "r")
    change(folder, missing={})
    found = {(r.name, r.array): r.detail for r in failures(validate_run(folder))}
    assert found == {("arrays present", "enc_logits"): "promised by meta.json and not there"}
    change(folder, missing={"enc_logits": "x", "enc_mlp_act": "x"})
    found = {(r.name, r.array): r.detail for r in failures(validate_run(folder))}
    assert found == {("arrays present", "enc_mlp_act"): "there, though meta.json says that it is missing"}
    change(folder, missing={"enc_logits": "x"}, arch="dec")
    assert {r.array for r in failures(validate_run(folder)) if r.name == "arrays present"} == {
        "dec_cross_attn",
        "dec_cross_q",
        "dec_cross_k",
        "dec_cross_v",
        "dec_res_post_cross",
        "dec_cross_attn_out",
        "dec_cross_head_out",
    }


@pytest.mark.parametrize("sums", [False, {"dec_cross_attn": False}])
def test_rows_that_need_not_sum_to_one_are_told_by_array(tmp_path, sums):
    build_run(tmp_path / "r", TWO, _array("dec_cross_attn", (1, 2, 1, 1, 6), 0.0))
    change(tmp_path / "r", attention_rows_sum_to_one=sums)
    results = validate_run(tmp_path / "r")
    assert failures(results) == []
    unchecked = {r.array for r in results if r.name == "attention rows sum to 1" and "not checked" in r.detail}
    assert unchecked == ({"dec_cross_attn"} if sums else {"dec_cross_attn", "dec_self_attn", "enc_self_attn"})


@pytest.mark.parametrize(
    "sides",
    [[], {}, {"dec": 3}, {"dec": {"n_layers": 3}}, {"middle": {}}, {"dec": {"positions": "first"}}],
)
def test_sides_of_wrong_types_end_in_failures_and_no_traceback(tmp_path, built, sides):
    folder = copy_run(built(SOME).folder, tmp_path / "r")
    change(folder, sides=sides)
    assert failures(validate_run(folder))


def test_sizes_of_a_side_that_do_not_fit_are_found(tmp_path, built):
    folder = copy_run(built(SOME).folder, tmp_path / "r")
    sides = json.loads((folder / "meta.json").read_text())["sides"]
    change(folder, sides={"dec": {**sides["dec"], "layers": [0, 3]}})
    details = [r.detail for r in failures(validate_run(folder)) if r.name == "array opens"]
    assert any("has shape (5, 3, 2, 8), the meta says (5, 2, 2, 8)" in d for d in details)
