"""The writer: what stands where, how files are cut, coordinates, and resuming; read back with plain Zarr."""

import errno
import json
import os

import numpy as np
import pyarrow as pa
import pytest
import zarr

from decision_traces.format.arrays import Dims, arrays_for
from decision_traces.format.stages import CAPTURES
from decision_traces.pieces import Pieces
from decision_traces.store.files.folder import read_manifest
from decision_traces.store.reading.trace_store import TraceStore
from decision_traces.store.writing.ledger import Ledger
from decision_traces.store.writing.owned import run_place
from decision_traces.store.writing.writer import RunLayout, RunWriter

DECODER = Dims(5, 6, 4, 2, 3, 8, 6, d_mlp=10, vocab_size=11, layers=(0, 3, 5), heads=(1, 3), positions=(0, 3))
CAPTURED = ("attn", "qkv", "hidden", "resid", "mlp_out", "logits")


def layout(dims=DECODER, capture=CAPTURED, block_rows=2, dtype="float16"):
    specs = [s for s in arrays_for("dec", capture) if not s.stage.startswith(("cross", "post_cross"))]
    return RunLayout(tuple(specs), {"dec": dims}, dtype, block_rows)


def tensors(lay, rows=5):
    """One random tensor for every site and layer, with the shape of its array but for the layer axis."""
    rng, made = np.random.default_rng(0), {}
    for place, ((spec, _index), *_) in lay.places().items():
        shape = [n for i, n in enumerate(lay.dims_of(spec).shape(spec)) if i != spec.layer_axis]
        made[place] = rng.normal(size=(rows, *shape[1:])).astype(lay.dtype)
    return made


def write(writer, made, blocks):
    """Write some blocks, their rows in an order that is not their own, in two parts."""
    for block in blocks:
        rows = writer.layout.rows(block)
        table = pa.table({"example_id": [f"e{row}" for row in rows], "n_tokens": [6] * len(rows)})
        opened = writer.open_block(block)
        for part in (rows[1::2][::-1], rows[::2]):
            for place, tensor in made.items():
                kept = (tensor.shape[-2],) * len(part)
                opened.put(place, Pieces(tensor[list(part)], tuple(row - rows.start for row in part), kept))
        opened.close({"tokens.parquet": table}, {"block": block})


def commit(writer):
    writer.join_tables()
    return writer.commit({"capture": list(CAPTURED)})


def test_places_are_named_by_the_models_own_layers():
    places = {place: [(s.name, i) for s, i in at] for place, at in layout().places().items()}
    assert places["dec.post_mlp", 2] == [("dec_hidden", 2), ("dec_res_pre_attn", 1)]
    assert places["dec.post_mlp", 3] == [("dec_hidden", 3), ("dec_res_post_mlp", 1)]
    assert places["dec.embed", 0] == [("dec_hidden", 0), ("dec_res_embed", 0), ("dec_res_pre_attn", 0)]
    assert places["dec.final", 0] == [("dec_hidden", 5)]
    assert places["dec.attn", 5] == [("dec_self_attn", 2)]
    assert places["dec.logits", 0] == [("dec_logits", 0)]
    assert ("dec.post_mlp", 1) not in places


def test_a_selected_run_is_as_written(tmp_path):
    lay = layout()
    made, writer = tensors(lay), RunWriter.create(run_place(tmp_path / "r"), lay, {})
    write(writer, made, range(3))
    run = commit(writer)
    hidden = zarr.open_array(run / "dec_hidden.zarr/h")
    np.testing.assert_array_equal(hidden[:, 2], made["dec.post_mlp", 2])
    np.testing.assert_array_equal(hidden[:, 5], made["dec.final", 0])
    np.testing.assert_array_equal(zarr.open_array(run / "dec_res_pre_attn.zarr/x")[:, 1], made["dec.post_mlp", 2])
    np.testing.assert_array_equal(zarr.open_array(run / "dec_self_attn.zarr/attn")[:, 2], made["dec.attn", 5])
    np.testing.assert_array_equal(zarr.open_array(run / "dec_logits.zarr/x")[...], made["dec.logits", 0])
    shard = "c/1/{}/0/0"
    linked = [run / f"dec_hidden.zarr/h/{shard.format(2)}", run / f"dec_res_pre_attn.zarr/x/{shard.format(1)}"]
    assert linked[0].stat().st_ino == linked[1].stat().st_ino


def test_coordinates_are_small_plain_arrays_of_the_manifest(tmp_path):
    writer = RunWriter.create(run_place(tmp_path / "r"), layout(), {})
    write(writer, tensors(layout()), range(3))
    run = commit(writer)
    found = {}
    for path in sorted(run.glob("*.zarr/*/zarr.json")):
        if path.parent.name in {"layer", "depth", "head", "kv_head", "position", "query"}:
            array = zarr.open_array(path.parent)
            assert array.metadata.dimension_names == (path.parent.name,)
            found[path.parent.relative_to(run).as_posix()] = array[...].tolist()
    layers, positions, depths = [0, 3, 5], [0, 3], [0, 1, 3, 4, 5, 6]
    assert found == {
        "dec_self_attn.zarr/layer": layers,
        "dec_self_attn.zarr/head": [1, 3],
        "dec_self_attn.zarr/query": positions,
        "dec_self_qkv.zarr/layer": layers,
        "dec_self_qkv.zarr/head": [1, 3],
        "dec_self_qkv.zarr/position": positions,
        "dec_hidden.zarr/depth": depths,
        "dec_hidden.zarr/position": positions,
        "dec_res_embed.zarr/position": positions,
        "dec_logits.zarr/position": positions,
    } | {
        f"dec_{name}.zarr/{axis}": numbers
        for name in ("res_pre_attn", "res_post_attn", "res_post_mlp", "mlp_out")
        for axis, numbers in (("layer", layers), ("position", positions))
    }
    manifest = read_manifest(run)
    assert all({f"{name}/zarr.json", f"{name}/c/0"} <= manifest.keys() for name in found)


def test_a_whole_run_has_no_coordinates():
    whole = Dims(5, 6, 4, 2, 3, 8, 6)
    assert layout(whole, ("attn", "qkv", "hidden", "resid")).coordinates() == {}
    hybrid = Dims(5, 4, 4, 2, 3, 8, 6, attention_layers=(1, 3))
    assert layout(hybrid, ("attn", "hidden")).coordinates() == {"dec_self_attn.zarr/layer": (1, 3)}


@pytest.mark.parametrize(
    ("dims", "block_rows", "chunks"),
    [
        # 64 positions of 768 float32: 192 KiB an example and layer.
        (Dims(100, 12, 12, 12, 64, 768, 64), 48, (1, 1, 64, 768)),
        # One position of it: 3 KiB, so that 12 of the divisors of 48 make more than 32 KiB.
        (Dims(100, 12, 12, 12, 64, 768, 64, positions="next"), 48, (12, 1, 1, 768)),
        # Less than a block of them.
        (Dims(100, 12, 12, 12, 64, 16, 64, positions="last"), 48, (48, 1, 1, 16)),
        (Dims(100, 12, 12, 12, 64, 768, 64, positions="next"), 1, (1, 1, 1, 768)),
    ],
)
def test_small_examples_share_a_chunk(dims, block_rows, chunks):
    lay = layout(dims, ("hidden",), block_rows, "float32")
    (spec,) = lay.specs
    assert lay.chunk(spec) == chunks
    assert lay.shard(spec) == (block_rows, 1, *chunks[2:])
    logits = next(s for s in arrays_for("dec", ("logits",)))
    lay = layout(Dims(100, 12, 12, 12, 64, 768, 64, vocab_size=4096, positions="next"), ("logits",), 8, "float32")
    assert (lay.chunk(logits), lay.shard(logits)) == ((2, 1, 4096), (8, 1, 4096))


def test_grouped_chunks_read_back_row_by_row(tmp_path):
    dims = Dims(5, 2, 2, 2, 4, 1024, 6, positions="next")  # 2 KiB an example: 4 share a chunk, and one is left over
    lay = layout(dims, ("hidden",), block_rows=4)
    made, writer = tensors(lay), RunWriter.create(run_place(tmp_path / "r"), lay, {})
    write(writer, made, range(2))
    array = zarr.open_array(commit(writer) / "dec_hidden.zarr/h")
    assert (array.chunks, array.shards) == ((4, 1, 1, 1024), (4, 1, 1, 1024))
    for row in range(5):
        np.testing.assert_array_equal(array[row, 1], made["dec.post_mlp", 0][row])


def test_a_selected_run_is_resumed(tmp_path):
    lay = layout()
    made, plan = tensors(lay), {"layers": [0, 3, 5]}
    writer = RunWriter.create(run_place(tmp_path / "r"), lay, plan)
    write(writer, made, [0, 1])
    torn = writer.folder / "dec_hidden.zarr/h/c/1/2/0/0"
    torn.unlink()
    resumed = RunWriter.resume(run_place(tmp_path / "r", resume=True), lay, plan)
    assert sorted(resumed.done) == [0]
    write(resumed, made, [1, 2])
    whole = RunWriter.create(run_place(tmp_path / "whole"), lay, plan)
    write(whole, made, [0, 1, 2])
    one, other = commit(resumed), commit(whole)
    assert read_manifest(one) == read_manifest(other)
    np.testing.assert_array_equal(zarr.open_array(one / "dec_self_qkv.zarr/v")[:, 0], made["dec.v", 0])


def test_values_that_are_zero_at_tokens_are_no_damage(tmp_path):
    lay = layout(Dims(2, 2, 2, 2, 4, 8, 6, d_mlp=4), ("mlp_act",))
    made = tensors(lay, 2)
    made["dec.mlp_act", 1][:] = 0  # a ReLU that is off everywhere
    writer = RunWriter.create(run_place(tmp_path / "r"), lay, {})
    write(writer, made, [0])
    s = TraceStore(commit(writer))
    assert s.mlp_act(0, layer=1).tolist() == np.zeros((6, 4)).tolist()


def test_every_capture_of_an_encoder_decoder_is_written(tmp_path):
    dec = Dims(3, 2, 4, 2, 3, 8, 5, d_value=2, d_mlp=6, n_source=7, vocab_size=9, positions="next")
    enc = Dims(3, 3, 4, 4, 3, 8, 7, d_value=2, d_mlp=6)
    specs = (*arrays_for("enc", set(CAPTURES) - {"logits"}), *arrays_for("dec", CAPTURES))
    lay = RunLayout(specs, {"dec": dec, "enc": enc}, "float32", 2)
    assert lay.dims is dec
    made, writer = tensors(lay, 3), RunWriter.create(run_place(tmp_path / "r"), lay, {})
    write(writer, made, [0, 1])
    run = commit(writer)
    for spec in specs:
        stored = zarr.open_array(run / spec.path)
        assert json.loads((run / spec.path / "zarr.json").read_text())["dimension_names"] == list(spec.axes)
        layers = [0] if spec.layer_axis is None else range(stored.shape[spec.layer_axis])
        for layer in layers:
            values = stored[...] if spec.layer_axis is None else stored[:, layer]
            expected = made[spec.source(layer, lay.dims_of(spec).n_layers)]
            np.testing.assert_array_equal(values, expected)
    assert zarr.open_array(run / "dec_cross_attn.zarr/attn").shape == (3, 2, 4, 1, 7)
    assert zarr.open_array(run / "dec_cross_qkv.zarr/v").shape == (3, 2, 2, 7, 2)


def test_a_line_that_did_not_get_onto_the_disk_stops_the_next_one(tmp_path, monkeypatch):
    def broken(_: int) -> None:
        raise OSError(errno.EIO, "the disk is gone")

    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.append({"plan": {}})
    ledger._syncing.join()
    monkeypatch.setattr(os, "fsync", broken)
    ledger.append({"block": 0})
    ledger._syncing.join()
    with pytest.raises(OSError, match="the disk is gone"):
        ledger.append({"block": 1})
    assert [json.loads(line) for line in ledger.path.read_text().splitlines()] == [{"plan": {}}, {"block": 0}]
