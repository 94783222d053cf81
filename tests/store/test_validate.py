"""Validation: healthy runs hold in every layout, and each broken promise is found and named."""

import json
import math
import re
import shutil
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from support.runs import CHOICES, DECODER, VOCAB, TinyRun, build_run, copy_run, reseal

from decision_traces.errors import RunError
from decision_traces.store.validate import values as checks_values
from decision_traces.store.validate.run import failures, validate_run

UNLINKED = replace(DECODER, links=False)


@pytest.mark.parametrize("run", [DECODER, CHOICES], ids=["decoder", "choices"])
@pytest.mark.parametrize(
    ("layout", "tile_bytes", "read_bytes"),
    [
        ("sharded", 1, 1),
        ("sharded", 1, 1 << 20),
        ("sharded", 1 << 20, 1 << 20),
        ("v3", 1 << 20, 1 << 20),
        ("v2", 1, 1),
    ],
)
def test_a_healthy_run_holds(built, run, layout, tile_bytes, read_bytes, monkeypatch):
    monkeypatch.setattr(checks_values, "TILE_BYTES", tile_bytes)
    monkeypatch.setattr(checks_values, "READ_BYTES", read_bytes)
    results = validate_run(built(replace(run, layout=layout)).folder)
    assert [r for r in results if not r.ok] == []
    assert len(results) > 60


def test_the_worst_figures_are_those_of_the_data(decoder):
    results = {(r.name, r.array): r for r in validate_run(decoder.folder)}
    attn = decoder.arrays["dec_self_attn"].astype(np.float64)
    sums = attn.sum(-1)
    off = max(np.abs(sums[row, :, :, :n] - 1).max() for row, n in enumerate((5, 2, 1, 6, 3)))
    assert results["attention rows sum to 1", "dec_self_attn"].worst == pytest.approx(off, abs=1e-6)
    for name, values in decoder.arrays.items():
        assert results["values finite", name].worst == np.abs(values.astype(np.float64)).max()
    entropy = decoder.store.tokens["next_entropy"].max()
    assert results["entropy in range", "tokens.parquet"].worst == pytest.approx(entropy)


def test_linked_layers_are_recognised(decoder, built):
    chain = {r.name: r for r in validate_run(decoder.folder)}
    assert "6 of 6 pieces are one file under two names" in chain["pre_attn[l+1] == post_mlp[l]"].detail
    copied = {r.name: r for r in validate_run(built(UNLINKED).folder)}
    assert copied["pre_attn[l+1] == post_mlp[l]"].detail == "largest difference"


def test_progress_ends_at_all_bytes(decoder):
    steps = []
    validate_run(decoder.folder, lambda done, total: steps.append((done, total)))
    assert steps == sorted(steps)
    assert steps[-1][0] == steps[-1][1] == sum(a.nbytes for a in decoder.arrays.values())


def _array(name, at, value):
    def alter(arrays, table):
        arrays[name][at] = value

    return alter


def _cell(column, row, value):
    def alter(arrays, table):
        table[column] = table[column].astype(object)
        table.at[row, column] = value

    return alter


BROKEN = [
    (_array("dec_hidden", (3, 3, 2, 1), np.inf), "values finite", "dec_hidden", "000003 .* depth 3, position 2"),
    (
        _array("dec_self_v", (0, 2, 1, 4, 0), np.nan),
        "values finite",
        "dec_self_v",
        "000000 .* layer 2, kv_head 1, position 4",
    ),
    (
        _array("dec_self_q", (1, 1, 2, 2, 0), 1e-6),
        "padding is zero",
        "dec_self_q",
        "000001 .* layer 1, head 2, position 2",
    ),
    (
        _array("dec_self_attn", (4, 0, 0, 1, 5), 0.5),
        "padding is zero",
        "dec_self_attn",
        "000004 .* layer 0, head 0, position 1",
    ),
    (
        _array("dec_self_attn", (0, 1, 3, 2, 4), 0.25),
        "attention is causal",
        "dec_self_attn",
        "000000 .* layer 1, head 3, position 2",
    ),
    (
        _array("dec_self_attn", (3, 2, 0, 5, 0), 0.0),
        "attention rows sum to 1",
        "dec_self_attn",
        "000003 .* layer 2, head 0, position 5",
    ),
    (
        _array("dec_res_pre_attn", (2, 1, 0, 0), 9.0),
        "pre_attn[l+1] == post_mlp[l]",
        "dec_res_pre_attn",
        "000002 .* layer 1",
    ),
    (_array("dec_res_pre_attn", (2, 1, 0, 0), 9.0), "hidden[l] == pre_attn[l]", "dec_hidden", "000002 .* depth 1"),
    (_array("dec_res_embed", (4, 2, 7), 9.0), "pre_attn[0] == embed", "dec_res_pre_attn", "000004 .* layer 0"),
    (_cell("example_id", 2, "tiny-validation-000000"), "example_id unique", "tokens.parquet", "row 2"),
    (_cell("attention_mask", 0, [1, 1, 0, 1, 1]), "attention_mask is 1", "tokens.parquet", "000000"),
    (_cell("attention_mask", 0, [1, 1, 1, 1]), "length of attention_mask", "tokens.parquet", "000000"),
    (_cell("n_tokens", 0, 4), "length of input_ids", "tokens.parquet", "000000"),
    (_cell("input_ids", 1, [1, 2, 0]), "length of input_ids", "tokens.parquet", "000001"),
    (_cell("tokens", 1, [None, "a"]), "length of tokens", "tokens.parquet", ""),
    (_cell("next_pos", 3, 5), "next_pos", "tokens.parquet", "000003"),
    (_cell("next_true_id", 3, VOCAB - 1), "true_id is the next token", "tokens.parquet", "000003"),
    (_cell("next_true_id", 3, None), "predictions where there is a next token", "tokens.parquet", "000003"),
    (_cell("next_correct", 1, True), "correct", "tokens.parquet", "000001"),
    (_cell("next_true_prob", 4, 0.999), "probabilities in order", "tokens.parquet", "000004"),
    (_cell("next_true_prob", 4, -0.1), "true_prob is a probability", "tokens.parquet", "000004"),
    (_cell("next_pred_prob", 4, 1.5), "pred_prob is a probability", "tokens.parquet", "000004"),
    (_cell("next_entropy", 0, math.log(VOCAB) + 0.01), "entropy in range", "tokens.parquet", "000000"),
    (_cell("next_entropy", 0, -0.01), "entropy in range", "tokens.parquet", "000000"),
    (_cell("next_true_rank", 0, 0), "rank", "tokens.parquet", "000000"),
    (_cell("next_true_rank", 0, 1), "rank", "tokens.parquet", "000000"),
    (_cell("next_margin", 1, -0.5), "margin", "tokens.parquet", "000001"),
    (_cell("next_topk_probs", 1, [0.1, 0.2, 0.05]), "top-k probabilities in order", "tokens.parquet", "000001"),
    (_cell("next_topk_ids", 1, [1, 2, 3]), "top-k starts with the prediction", "tokens.parquet", "000001"),
]


FILLED = [
    (_cell("attention_mask", 0, [1, 1, 0, 1, 1, 0]), "padding on the right", "000000"),
    (_cell("attention_mask", 0, [1, 1, 1, 1, 0, 0]), "n_tokens agrees with the mask", "000000"),
    (_cell("attention_mask", 0, [1, 1, 1, 1, 2, 0]), "mask is 0 or 1", "000000"),
    (_cell("input_ids", 1, [1, 2, 0]), "length of input_ids", ""),
]


@pytest.mark.parametrize(("alter", "check", "where"), FILLED, ids=[check for _, check, _ in FILLED])
def test_tables_that_are_filled_up_to_t_are_checked_as_such(tmp_path, alter, check, where):
    run = replace(UNLINKED, capture=("hidden",), format_version="1.2")
    build_run(tmp_path / "r", run, alter)
    broken = [result for result in failures(validate_run(tmp_path / "r")) if result.name == check]
    assert broken and all(where in result.where for result in broken)


def test_a_choice_with_a_token_more_is_named(tmp_path):
    def longer(_arrays, table):
        table.at[1, "input_ids"] = [[1, 2, 3], [4, 5, 6, 7]]

    build_run(tmp_path / "r", replace(CHOICES, links=False), longer)
    assert {(r.name, r.where) for r in failures(validate_run(tmp_path / "r"))} == {
        ("length of input_ids", "example tiny-validation-000001 (row 1)")
    }


@pytest.mark.parametrize(
    ("alter", "check", "array", "where"), BROKEN, ids=[f"{i}-{b[1]}" for i, b in enumerate(BROKEN)]
)
def test_a_broken_promise_is_found_and_named(tmp_path, alter, check, array, where):
    # Fewer files make a quicker test where only the table matters.
    run = replace(UNLINKED, capture=("hidden",)) if array == "tokens.parquet" else UNLINKED
    build_run(tmp_path / "r", run, alter)
    found = [r for r in failures(validate_run(tmp_path / "r")) if r.name == check]
    assert len(found) == 1
    assert array in found[0].array
    assert re.search(where, found[0].where), found[0].where


def outcomes(tokens):
    """A table with one prediction per position that has a next token: always right, half sure."""
    rows = []
    for row, (eid, ids, n) in enumerate(
        zip(tokens["example_id"], tokens["input_ids"], tokens["n_tokens"], strict=True)
    ):
        for pos in range(n - 1):
            true, other = int(ids[pos + 1]), int(ids[pos + 1]) + 1
            rows.append(
                {
                    "row": row,
                    "example_id": eid,
                    "pos": pos,
                    "true_id": true,
                    "true_token": f"t{true}",
                    "pred_id": true,
                    "pred_token": f"t{true}",
                    "correct": True,
                    "true_prob": 0.5,
                    "pred_prob": 0.5,
                    "entropy": 0.69,
                    "true_rank": 1,
                    "margin": 0.25,
                    "topk_ids": [true, other],
                    "topk_tokens": [f"t{true}", f"t{other}"],
                    "topk_probs": [0.5, 0.25],
                }
            )
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("alter", "check", "where"),
    [
        (lambda t: t, None, ""),
        (lambda t: t.drop(index=3), "one row per position", "token_outcomes.parquet"),
        (lambda t: t.iloc[::-1], "one row per position", "token_outcomes.parquet"),
        (lambda t: t.assign(true_id=t["true_id"] + (t.index == 4)), "true_id is the next token", "000001 position 0"),
        (lambda t: t.assign(example_id="x"), "example_id of each row", "example x position 0"),
        (lambda t: t.assign(margin=-1.0), "margin", "000000 position 0"),
        (lambda t: t.drop(columns="entropy"), "columns", "token_outcomes.parquet"),
    ],
)
def test_predictions_at_every_position_are_checked(tmp_path, alter, check, where):
    build_run(tmp_path / "r", replace(UNLINKED, capture=("hidden",)))
    table = alter(outcomes(pd.read_parquet(tmp_path / "r" / "tokens.parquet")))
    table.to_parquet(tmp_path / "r" / "token_outcomes.parquet", index=False)
    reseal(tmp_path / "r")
    found = {r.name: r.where for r in failures(validate_run(tmp_path / "r"))}
    assert set(found) >= ({check} if check else set())
    assert bool(found) == bool(check)
    assert where in found.get(check, "")


def test_choices_are_checked(tmp_path):
    def alter(arrays, table):
        table.at[0, "choice_probs"] = [0.9, 0.9]
        table.at[1, "pred_idx"] = 1 - table.at[1, "pred_idx"]

    build_run(tmp_path / "r", replace(CHOICES, links=False), alter)
    found = {r.name: r.where for r in failures(validate_run(tmp_path / "r"))}
    assert "000000" in found["choice probabilities sum to 1"]
    assert "000001" in found["pred_idx"]
    assert "000001" in found["is_correct"]


def test_rows_that_need_not_sum_to_one_are_not_asked_to(tmp_path):
    build_run(tmp_path / "r", UNLINKED, _array("dec_self_attn", (3, 2, 0, 5, 0), 0.0))
    path = tmp_path / "r" / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "attention_rows_sum_to_one": False}))
    reseal(tmp_path / "r")
    results = validate_run(tmp_path / "r")
    assert failures(results) == []
    reason = next(r.detail for r in results if r.name == "attention rows sum to 1")
    assert "attention_rows_sum_to_one is false" in reason


def test_what_the_meta_promises_must_be_there(tmp_path):
    build_run(tmp_path / "r", replace(UNLINKED, layout="v3"))
    shutil.rmtree(tmp_path / "r" / "dec_self_qkv.zarr")
    found = {(r.name, r.array) for r in failures(validate_run(tmp_path / "r"))}
    assert found == {("arrays present", f"dec_self_{w}") for w in "qkv"}
    meta = json.loads((tmp_path / "r" / "meta.json").read_text())
    (tmp_path / "r" / "meta.json").write_text(
        json.dumps({**meta, "capture": ["attn", "hidden", "resid"], "n_examples": 6})
    )
    found = {(r.name, r.array) for r in failures(validate_run(tmp_path / "r"))}
    assert found == {("row count", "tokens.parquet")}


def test_layout_faults_are_named(tmp_path):
    build_run(tmp_path / "r", UNLINKED)
    path = tmp_path / "r" / "meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "dtype": "float32", "block_rows": 3}))
    array = tmp_path / "r" / "dec_hidden.zarr/h/zarr.json"
    array.write_text(array.read_text().replace('"depth"', '"layer"'))
    reseal(tmp_path / "r")
    details = {r.array: r.detail for r in failures(validate_run(tmp_path / "r")) if r.name == "layout"}
    assert len(details) == 9
    assert "dtype float16, the meta says float32; 2 rows per file, the meta says 3" in details["dec_res_embed"]
    assert (
        "dimension names ('example', 'layer', 'position', 'd_model'), expected ('example', 'depth'"
        in details["dec_hidden"]
    )


def test_no_run_is_an_error_and_no_check(tmp_path):
    with pytest.raises(RunError, match="No run folder"):
        validate_run(tmp_path / "none")


def test_an_older_run_padded_on_the_left_is_read_as_such(tmp_path):
    def to_the_left(arrays, table):
        for name in ("attention_mask", "input_ids"):
            table[name] = [list(reversed(m)) for m in table[name]]

    build_run(tmp_path / "r", TinyRun(layout="v2", capture=("hidden",)), to_the_left)
    bad = {r.name for r in failures(validate_run(tmp_path / "r"))}
    assert "padding on the right" not in bad
    assert "padding is zero" not in bad


def test_a_copy_without_links_is_as_good(tmp_path, decoder):
    assert failures(validate_run(copy_run(decoder.folder, tmp_path / "copy"))) == []


def test_a_row_of_attention_may_miss_1_by_what_its_type_rounds() -> None:
    def missed(dtype: torch.dtype) -> float:
        return max(abs(n * float(torch.tensor(1 / n).to(dtype)) - 1) for n in range(2, 400))

    found = {name: missed(getattr(torch, name)) for name in ("bfloat16", "float16")}
    for name, most in found.items():
        assert most <= checks_values.row_sum_tolerance(400, name)
    assert 2**-9 < found["bfloat16"] <= 2**-8  # 255 weights of 1/255
    assert checks_values.row_sum_tolerance(400, "float32") < found["bfloat16"]
