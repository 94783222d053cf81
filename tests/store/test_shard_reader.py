"""Reading shards directly: the same numbers as Zarr, and nothing that does not agree with its checksum."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import zarr
from crc32c import crc32c
from hypothesis import given
from hypothesis import strategies as st
from support.runs import DECODER, build_run, reseal

from decision_traces import TraceStore
from decision_traces.errors import DamagedRunError
from decision_traces.folders.plain import PlainFolder
from decision_traces.format.arrays import Dims, arrays_for
from decision_traces.pieces import Pieces
from decision_traces.store.files.zarr_files import open_zarr
from decision_traces.store.shards.reader import shard_reader
from decision_traces.store.validate.run import failures, validate_run
from decision_traces.store.writing.layout import RunLayout
from decision_traces.store.writing.owned import run_place
from decision_traces.store.writing.writer import RunWriter

LENGTHS = (6, 1, 0, 4, 5)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of five examples in blocks of two: hidden states of two layers, and attention."""
    specs = [s for s in arrays_for("dec", ("attn", "hidden")) if "cross" not in s.stage]
    layout = RunLayout(tuple(specs), {"dec": Dims(5, 2, 2, 2, 4, 1500, 6)}, "float32", 2)
    rng = np.random.default_rng(0)
    place = tmp_path_factory.mktemp("shards") / "run"
    with run_place(place) as held:
        writer = RunWriter.create(held, layout, {})
        for number in range(3):
            block, rows = writer.open_block(number), layout.rows(number)
            for site, ((spec, _), *_) in layout.places().items():
                room = layout.room(spec)
                lengths = tuple(LENGTHS[row] for row in rows)
                values = rng.normal(size=(len(rows), *room)).astype(np.float32)
                if len(room) > 2:
                    values = np.tril(values)
                widths = None if len(room) == 2 else lengths
                block.put(site, Pieces(values, tuple(row - rows.start for row in rows), lengths, widths))
            block.close({"tokens.parquet": pa.table({"n_tokens": [LENGTHS[row] for row in rows]})}, {})
        writer.join_tables()
        return writer.commit({})


def _array(run, name):
    folder = run / name
    array = zarr.open_array(folder, mode="r")
    return array, shard_reader(array, folder, PlainFolder(folder))


def of_no_tokens(covered):
    assert [LENGTHS[row] for row in range(covered[0].start, covered[0].stop)] == [0]


@given(data=st.data(), name=st.sampled_from(["dec_hidden.zarr/h", "dec_self_attn.zarr/attn"]))
def test_any_box_is_what_zarr_reads(run, data, name):
    array, reader = _array(run, name)
    box = []
    for size in array.shape:
        start = data.draw(st.integers(0, size - 1))
        box.append(slice(start, data.draw(st.integers(start + 1, size))))
    np.testing.assert_array_equal(reader.read(tuple(box), of_no_tokens), array[tuple(box)])


@given(slots=st.lists(st.integers(-1, 5), min_size=5, max_size=5), depth=st.integers(0, 2))
def test_one_slot_of_each_example(run, slots, depth):
    """Past the tokens there are zeros, and -1 is none."""
    array, reader = _array(run, "dec_hidden.zarr/h")
    box = (slice(0, 5), slice(depth, depth + 1), slice(0, 6), slice(0, 1500))
    lines = reader.rows(box, np.array(slots), of_no_tokens)
    whole = array[:, depth]
    for row, slot in enumerate(slots):
        np.testing.assert_array_equal(lines[row], whole[row, slot] if slot >= 0 else np.zeros(1500))


def test_slots_of_several_heads_are_not_one_stretch(run):
    _, reader = _array(run, "dec_self_attn.zarr/attn")
    box = (slice(0, 5), slice(0, 1), slice(0, 2), slice(0, 6), slice(0, 6))
    assert reader.rows(box, np.zeros(5, int), of_no_tokens) is None


@pytest.mark.parametrize("place", ["chunk", "index", "end"])
@pytest.mark.parametrize("read_before", [False, True])
def test_a_changed_file_is_found_also_after_it_was_read(run, tmp_path, place, read_before):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    _, reader = _array(copy, "dec_hidden.zarr/h")
    box = (slice(0, 2), slice(0, 1), slice(0, 6), slice(0, 1500))
    if read_before:
        reader.read(box, of_no_tokens)
        reader.rows(box, np.array([1, 0]), of_no_tokens)
    path = copy / "dec_hidden.zarr/h/c/0/0/0/0"
    content = bytearray(path.read_bytes())
    if place == "end":
        content = content[:-5]
    else:
        content[100 if place == "chunk" else len(content) - 20] ^= 1
    path.unlink()
    path.write_bytes(content)
    for read in (lambda: reader.read(box, of_no_tokens), lambda: reader.rows(box, np.array([1, 0]), of_no_tokens)):
        with pytest.raises(ValueError, match=r"checksum|past the end"):
            read()


def test_arrays_of_another_make_are_left_to_zarr(tmp_path):
    plain = zarr.create_array(tmp_path / "plain", shape=(4, 4), chunks=(1, 4), dtype="float32")
    ends = zarr.create_array(tmp_path / "blosc", shape=(4, 4), chunks=(1, 4), shards=(2, 4), dtype="float32")
    assert shard_reader(plain, tmp_path / "plain", PlainFolder(tmp_path / "plain")) is None
    assert shard_reader(ends, tmp_path / "blosc", PlainFolder(tmp_path / "blosc")) is None


@pytest.mark.parametrize("name", ["dec_hidden.zarr/h/c/0/1/0/0", "dec_self_attn.zarr/attn/c/0/1/0/0/0"])
def test_a_chunk_that_is_not_there_is_damage_where_a_token_stands_and_zeros_elsewhere(name, tmp_path):
    """Left out of the index with every checksum right; the third example has no tokens, and rightly no chunk."""
    build_run(tmp_path / "run", replace(DECODER, lengths=(3, 2, 0), n_layers=2, block_rows=3))
    run = tmp_path / "run"
    path, array = run / name, name.split("/c/")[0].replace(".zarr/h", "").replace(".zarr/attn", "")
    content = path.read_bytes()
    index = np.frombuffer(content[-16 * 3 - 4 : -4], "<u8").reshape(-1, 2).copy()
    absent = np.iinfo(np.uint64).max
    assert (index == absent).all(axis=1).tolist() == [False, False, True]
    index[1] = absent
    path.unlink()  # it may be linked with another layer
    path.write_bytes(content[: -16 * 3 - 4] + index.tobytes() + crc32c(index.tobytes()).to_bytes(4, "little"))
    reseal(run)
    stored = TraceStore(run).array(array)
    assert not stored.read(example=2).any() and stored.read(example=0, **{stored.spec.axes[1]: 1}).any()
    with pytest.raises(DamagedRunError, match=rf"{name} is damaged \({array}, row 1, .* is not there, though tokens"):
        stored.read(example=1)
    (said,) = [c for c in failures(validate_run(run)) if c.name == "chunks decode"]
    assert "row 1" in said.where + said.detail
    if "hidden" in array:
        with pytest.raises(DamagedRunError, match="is not there, though tokens"):
            stored.read_slots(np.array([0, 0, -1]), example=slice(0, 3), depth=1)
        assert not stored.read_slots(np.array([-1]), example=slice(1, 2), depth=1).any()


def test_a_shard_that_is_not_there_holds_zeros_wherever_its_index_would_stand(tmp_path: Path) -> None:
    shards = {"shape": (4, 4), "index_location": "start"}
    zarr.create_array(tmp_path / "a", shape=(4, 4), chunks=(2, 2), shards=shards, dtype="float32")
    assert open_zarr(PlainFolder(tmp_path), tmp_path / "a")[:2, :2].tolist() == [[0.0, 0.0], [0.0, 0.0]]
