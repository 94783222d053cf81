"""TraceStore against the arrays that were written, in every layout."""

import json
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import CHOICES, DECODER, ENCDEC, TinyRun, build_run

from decision_traces import TraceStore, open_run
from decision_traces.errors import RunError, UsageError

LAYOUTS = ("sharded", "v3", "v2")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_decoder_accessors_return_what_was_written(built, layout):
    b = built(replace(DECODER, layout=layout))
    s, a = b.store, b.arrays
    for row, eid in enumerate(s.tokens["example_id"]):
        np.testing.assert_array_equal(
            s.attn(eid, side="dec", kind="self", layer=0, head=0), a["dec_self_attn"][row, 0, 0]
        )
        np.testing.assert_array_equal(s.attn(eid), a["dec_self_attn"][row])
        np.testing.assert_array_equal(s.attn(eid, head=3), a["dec_self_attn"][row, :, 3])
        q = s.qkv(eid, which="q", side="dec", kind="self", layer=0, head=3)
        np.testing.assert_array_equal(q, a["dec_self_q"][row, 0, 3])
        np.testing.assert_array_equal(s.qkv(eid, "k", layer=2, head=1), a["dec_self_k"][row, 2, 1])
        np.testing.assert_array_equal(s.qkv(eid, "v"), a["dec_self_v"][row])
        np.testing.assert_array_equal(s.hidden(eid, side="dec"), a["dec_hidden"][row])
        np.testing.assert_array_equal(s.hidden(eid, layer=3), a["dec_hidden"][row, 3])
        np.testing.assert_array_equal(s.resid_embed(eid), a["dec_res_embed"][row])
        for stage in ("pre_attn", "post_attn", "post_mlp"):
            got = s.resid(eid, stage=stage, side="dec", layer=1)
            np.testing.assert_array_equal(got, a[f"dec_res_{stage}"][row, 1])
        assert s.attn(eid).dtype == np.float16


@pytest.mark.parametrize("layout", LAYOUTS)
def test_multiple_choice_accessors_return_what_was_written(built, layout):
    b = built(replace(CHOICES, layout=layout))
    s, a = b.store, b.arrays
    for row, eid in enumerate(s.tokens["example_id"]):
        for c in (0, 1):
            np.testing.assert_array_equal(
                s.mcq_attn(eid, choice_idx=c, layer=0, head=0), a["enc_mc_attn"][row, c, 0, 0]
            )
            np.testing.assert_array_equal(
                s.mcq_qkv(eid, choice_idx=c, which="q", layer=0, head=0), a["enc_mc_q"][row, c, 0, 0]
            )
            np.testing.assert_array_equal(s.mcq_hidden(eid, choice_idx=c), a["enc_mc_hidden"][row, c])
            got = s.mcq_resid(eid, choice_idx=c, stage="post_mlp", layer=0)
            np.testing.assert_array_equal(got, a["enc_mc_res_post_mlp"][row, c, 0])
            np.testing.assert_array_equal(s.mcq_resid_embed(eid, c), a["enc_mc_res_embed"][row, c])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_properties(built, layout):
    s = built(replace(DECODER, layout=layout)).store
    assert (s.n, s.T, s.L, s.H, s.n_kv_heads, s.d_head, s.d_model, s.arch) == (5, 6, 3, 4, 2, 3, 8, "dec")
    assert s.n_choices is None
    assert s.arrays() == {
        "dec_self_attn": (5, 3, 4, 6, 6),
        "dec_self_q": (5, 3, 4, 6, 3),
        "dec_self_k": (5, 3, 2, 6, 3),
        "dec_self_v": (5, 3, 2, 6, 3),
        "dec_hidden": (5, 4, 6, 8),
        "dec_res_embed": (5, 6, 8),
        "dec_res_pre_attn": (5, 3, 6, 8),
        "dec_res_post_attn": (5, 3, 6, 8),
        "dec_res_post_mlp": (5, 3, 6, 8),
    }
    assert s.has("dec_hidden")
    assert not s.has("enc_hidden")
    assert not s.has("nonsense")
    assert "tiny on tiny/validation, 5 examples" in repr(s)


def test_sizes_come_from_the_arrays_where_an_old_meta_is_bare(tmp_path):
    build_run(tmp_path / "r", TinyRun(layout="v2", capture=("hidden", "attn")))
    (tmp_path / "r" / "meta.json").write_text(json.dumps({"model": "old", "max_seq_len": "auto"}))
    s = TraceStore(tmp_path / "r")
    assert (s.n, s.T, s.L, s.H, s.n_kv_heads, s.d_model, s.arch) == (5, 6, 3, 4, 4, 8, "dec")
    with pytest.raises(RunError, match="does not say its head_dim"):
        _ = s.d_head


def test_depth_alone_gives_the_number_of_layers(tmp_path):
    build_run(tmp_path / "r", TinyRun(layout="v3", capture=("hidden",)))
    (tmp_path / "r" / "meta.json").write_text("{}")
    assert TraceStore(tmp_path / "r").L == 3


def test_examples(decoder):
    s = decoder.store
    assert list(s.tokens.index) == [0, 1, 2, 3, 4]
    assert s.row("tiny-validation-000003") == 3
    assert (s.row(3), s.row(np.int64(-1))) == (3, 4)
    assert s.text("tiny-validation-000001") == "text number 1"
    assert [s.n_tokens(i) for i in range(5)] == [5, 2, 1, 6, 3]
    whole, cut = s.encodings(4), s.encodings(4, trim=True)
    assert list(whole["attention_mask"]) == [1, 1, 1, 0, 0, 0]
    assert len(whole["tokens"]) == 6
    assert whole["tokens"][3:] == ["<pad>"] * 3
    assert cut["offset_mapping"].tolist() == [[0, 1], [1, 2], [2, 3]]
    np.testing.assert_array_equal(cut["input_ids"], s.tokens.iloc[4]["input_ids"])
    assert s.tokens.iloc[4]["tokens"].tolist() == cut["tokens"] == whole["tokens"][:3]


@pytest.mark.parametrize("run", [DECODER, CHOICES, ENCDEC], ids=["decoder", "choices", "encoder-decoder"])
def test_padding_on_demand_is_what_tables_of_older_formats_hold(tmp_path, run):
    for version in ("1.2", "1.3"):
        build_run(tmp_path / version, replace(run, format_version=version))
    old, new = TraceStore(tmp_path / "1.2"), TraceStore(tmp_path / "1.3")
    names = ["input_ids", "attention_mask", "tokens", *(["offset_mapping"] if run is not ENCDEC else [])]
    for name in names:
        stored = np.array(old.tokens[old.token_prefix(old.sides[0]) + name].map(_lists).tolist())
        assert stored.shape[: stored.ndim - (name == "offset_mapping")][-1] == 6
        np.testing.assert_array_equal(new.padded(name), stored)
        np.testing.assert_array_equal(old.padded(name), stored)
        np.testing.assert_array_equal(np.array([new.encodings(row)[name] for row in range(new.n)]), stored)
    for row in range(new.n):
        for choice in range(run.n_choices or 1):
            at = (row, choice) if run.n_choices else (row,)
            (a, b), n = (s.encodings(*at, trim=True) for s in (old, new)), new.spans.n_tokens[at]
            assert all(np.array_equal(a[name], b[name]) and len(b[name]) == n for name in names)
    with pytest.raises(UsageError, match="No column 'text': valid are"):
        new.padded("text")


def _lists(values: object) -> object:
    """Arrays within arrays, as data frames have them, as lists."""
    return [_lists(v) for v in values] if isinstance(values, np.ndarray | list) else values


def test_an_example_without_tokens_has_padding_alone(tmp_path):
    build_run(tmp_path / "r", replace(DECODER, lengths=(0, 2)))
    s = TraceStore(tmp_path / "r")
    assert s.encodings(0)["offset_mapping"].tolist() == [[0, 0]] * 6
    assert s.encodings(0, trim=True)["offset_mapping"].shape == (0, 2)
    assert s.padded("input_ids")[0].tolist() == [0] * 6 and s.encodings(0, trim=True)["tokens"] == []


def test_choice_level_of_the_encodings(choices):
    s = choices.store
    assert s.encodings(0)["input_ids"].shape == (2, 6)
    assert s.encodings(0, 1, trim=True)["attention_mask"].tolist() == [1, 1]
    assert list(s.n_tokens(2)) == [1, 6]


def test_trim_drops_padding_on_every_token_axis(decoder, choices):
    s, a = decoder.store, decoder.arrays
    assert s.attn(4, trim=True).shape == (3, 4, 3, 3)
    np.testing.assert_array_equal(s.attn(4, layer=1, trim=True), a["dec_self_attn"][4, 1, :, :3, :3])
    np.testing.assert_array_equal(s.qkv(1, "v", trim=True), a["dec_self_v"][1, :, :, :2])
    np.testing.assert_array_equal(s.hidden(0, trim=True), a["dec_hidden"][0, :, :5])
    assert choices.store.mcq_attn(0, 1, trim=True).shape == (2, 4, 2, 2)


def test_negative_indices_count_from_the_end(decoder):
    s, a = decoder.store, decoder.arrays
    np.testing.assert_array_equal(s.hidden(-1, layer=-1), a["dec_hidden"][4, 3])
    np.testing.assert_array_equal(s.attn(0, layer=-3, head=-1), a["dec_self_attn"][0, 0, 3])


def test_an_integer_id_column_is_looked_up_before_rows(tmp_path):
    def number(arrays, table):
        table["example_id"] = [10, 0, 30, 40, 50]

    arrays = build_run(tmp_path / "r", TinyRun(layout="v2"), number)
    s = TraceStore(tmp_path / "r")
    eid = s.tokens.iloc[1]["example_id"]
    np.testing.assert_array_equal(s.hidden(eid), arrays["dec_hidden"][1])


def test_runs_of_older_tools_padded_on_the_left_are_trimmed_by_their_mask(tmp_path):
    def to_the_left(arrays, table):
        table["attention_mask"] = [list(reversed(m)) for m in table["attention_mask"]]

    arrays = build_run(tmp_path / "r", TinyRun(layout="v2"), to_the_left)
    np.testing.assert_array_equal(TraceStore(tmp_path / "r").hidden(4, trim=True), arrays["dec_hidden"][4, :, 3:])


def test_the_users_zarr_configuration_stays(decoder):
    before = zarr.config.get("codec_pipeline.path")
    decoder.store.hidden(0)
    assert zarr.config.get("codec_pipeline.path") == before
    assert "zarrs" not in before


def test_a_store_travels_by_pickle(decoder):
    s = decoder.store
    s.hidden(0)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(s)).hidden(2), decoder.arrays["dec_hidden"][2])


def test_opening_reads_no_table_and_no_array(decoder, monkeypatch):
    def forbidden(*args, **kwargs):
        raise AssertionError("read too early")

    monkeypatch.setattr("decision_traces.store.files.table.TableFile.read", forbidden)
    monkeypatch.setattr("decision_traces.store.reading.opened.open_array", forbidden)
    s = TraceStore(str(decoder.folder))
    assert s.meta["model"] == "tiny"
    assert "tiny" in repr(s)


def test_opening_a_run_needs_no_torch():
    code = (
        "import sys, decision_traces, decision_traces.store.reading.trace_store, decision_traces.store.validate.index\n"
        "decision_traces.TraceStore, decision_traces.open_run\n"
        "sys.exit(bool({'torch', 'transformers', 'xarray', 'pandas'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_open_run_takes_the_newest_complete_run(tmp_path):
    with pytest.raises(RunError, match="No complete run under"):
        open_run(root=tmp_path)
    for name, time in (("b_old", "2026-01-01T00:00:00"), ("a_new", "2026-02-01T00:00:00")):
        build_run(tmp_path / name, TinyRun(layout="v3", capture=("hidden",)))
        meta = json.loads((tmp_path / name / "meta.json").read_text())
        (tmp_path / name / "meta.json").write_text(json.dumps({**meta, "time": time}))
    (tmp_path / ".c.partial").mkdir()
    assert open_run(root=tmp_path).run_dir.name == "a_new"
    assert open_run(tmp_path / "b_old").run_dir.name == "b_old"


def test_backslashes_of_the_usage_document(decoder, monkeypatch):
    monkeypatch.chdir(decoder.folder.parent.parent)
    s = TraceStore(f"{decoder.folder.parent.name}\\{decoder.folder.name}")
    assert s.n == 5


@st.composite
def tiny_runs(draw):
    # Not a TinyRun yet: beartype, which checks it, draws random numbers, and hypothesis forbids that here.
    t = draw(st.integers(1, 7))
    length = st.integers(0, t)
    if draw(st.booleans()):
        lengths = tuple(draw(st.lists(length, min_size=1, max_size=5)))
    else:
        lengths = tuple(draw(st.lists(st.tuples(length, length), min_size=1, max_size=3)))
    kv = draw(st.integers(1, 2))
    return dict(
        lengths=lengths,
        n_positions=t,
        n_layers=draw(st.integers(1, 3)),
        n_heads=kv * draw(st.integers(1, 2)),
        n_kv_heads=kv,
        d_head=draw(st.integers(1, 4)),
        d_model=draw(st.integers(1, 5)),
        block_rows=draw(st.integers(1, 6)),
        dtype=draw(st.sampled_from(["float16", "float32"])),
        layout=draw(st.sampled_from(LAYOUTS)),
        seed=draw(st.integers(0, 99)),
    )


@settings(max_examples=12, deadline=None)
@given(fields=tiny_runs())
def test_every_shape_comes_back(tmp_path_factory, fields):
    run = TinyRun(**fields)
    folder = tmp_path_factory.mktemp("round") / "run"
    arrays = build_run(folder, run)
    s = TraceStore(folder)
    assert s.arrays() == {name: a.shape for name, a in arrays.items()}
    for name, values in arrays.items():
        read = s.array(name).read()
        assert read.dtype == np.dtype(run.dtype)
        np.testing.assert_array_equal(read, values)
    np.testing.assert_array_equal(s.array(name).read(example=len(run.lengths) - 1), values[-1])


def test_tokens_are_pandas(decoder):
    assert isinstance(decoder.store.tokens, pd.DataFrame)
    s = decoder.store
    assert s.tokens is s.tokens
