"""Damage to any file is found and the file is named; with the manifest made to agree, the chunk checksums find it."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decision_traces.store.index import index_run
from decision_traces.store.validate import failures, validate_run
from decision_traces.testing.runs import TinyRun, build_run, copy_run, reseal

SMALL = TinyRun(lengths=(3, 2, 0), n_layers=2, n_heads=2, n_kv_heads=1, n_positions=3, d_head=2, d_model=3, links=False)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small") / "run"
    build_run(folder, SMALL)
    index_run(folder)
    assert failures(validate_run(folder)) == []
    return folder


def files(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


def named(folder, file):
    """Whether some failing check names the file."""
    return any(file in f"{r.array} {r.where} {r.detail}" for r in failures(validate_run(folder)))


def flip(path, place, bits):
    raw = bytearray(path.read_bytes())
    raw[place % len(raw)] ^= bits
    path.write_bytes(raw)


def test_there_is_something_of_each_kind_to_damage(small):
    names = files(small)
    assert {"meta.json", "manifest.json", "index.json", "tokens.parquet", "dec_hidden.zarr/zarr.json"} <= set(names)
    assert len(names) == 38


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_one_changed_byte_anywhere_is_found_and_named(tmp_path_factory, small, data):
    file = data.draw(st.sampled_from(files(small)))
    place, bits = data.draw(st.integers(0, 10**6)), data.draw(st.integers(1, 255))
    folder = copy_run(small, tmp_path_factory.mktemp("flip") / "run")
    flip(folder / file, place, bits)
    assert named(folder, file)


ONE_OF_EACH = (
    "meta.json",
    "manifest.json",
    "index.json",
    "tokens.parquet",
    "dec_hidden.zarr/zarr.json",
    "dec_hidden.zarr/h/zarr.json",
    "dec_hidden.zarr/h/c/0/1/0/0",
    "dec_self_attn.zarr/attn/c/0/0/0/0/0",
)


@pytest.mark.parametrize("file", ONE_OF_EACH)
@pytest.mark.parametrize("cut", [0, 1, 17])
def test_a_file_cut_short_is_found_and_named(tmp_path, small, file, cut):
    folder = copy_run(small, tmp_path / "run")
    raw = (folder / file).read_bytes()
    (folder / file).write_bytes(raw[: -cut or 0])
    assert named(folder, file)


@pytest.mark.parametrize("file", [f for f in ONE_OF_EACH if f not in {"meta.json", "index.json"}])
def test_a_file_that_is_gone_is_found_and_named(tmp_path, small, file):
    folder = copy_run(small, tmp_path / "run")
    (folder / file).unlink()
    assert named(folder, file)


def test_a_file_too_many_is_named_if_a_reader_would_take_it_for_data(tmp_path, small):
    folder = copy_run(small, tmp_path / "run")
    (folder / "notes.txt").write_text("mine")
    results = validate_run(folder)
    assert failures(results) == []
    assert any("notes.txt" in r.detail for r in results)
    (folder / "dec_hidden.zarr/h/c/9").mkdir()
    (folder / "dec_hidden.zarr/h/c/9/0").write_bytes(b"x")
    assert named(folder, "dec_hidden.zarr/h/c/9/0")


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_chunk_checksums_find_what_an_agreeing_manifest_hides(tmp_path_factory, small, data):
    shards = [f for f in files(small) if "/c/0/" in f]
    file = data.draw(st.sampled_from(shards))
    place, bits = data.draw(st.integers(0, 10**6)), data.draw(st.integers(1, 255))
    folder = copy_run(small, tmp_path_factory.mktemp("deep") / "run")
    flip(folder / file, place, bits)
    reseal(folder)
    found = failures(validate_run(folder))
    assert not [r for r in found if r.name == "files match the manifest"]
    decode = [r for r in found if r.name == "chunks decode"]
    assert len(decode) == 1
    assert file in decode[0].where
    assert "example tiny-validation-00000" in decode[0].where
    assert f"{decode[0].array}, row " in decode[0].where


def test_a_missing_shard_is_found_though_the_manifest_agrees(tmp_path, small):
    folder = copy_run(small, tmp_path / "run")
    (folder / "dec_res_post_attn.zarr/x/c/0/1/0/0").unlink()
    reseal(folder)
    decode = [r for r in failures(validate_run(folder)) if r.name == "chunks decode"]
    assert [r.array for r in decode] == ["dec_res_post_attn"]
    assert "is missing" in decode[0].where
    assert "layer 1" in decode[0].where


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("capture", "attn"),
        ("n_examples", "3"),
        ("arrays", []),
        ("arrays", {"dec_hidden": 3}),
        ("vocab_size", "x"),
        ("num_layers", 7),
    ],
)
def test_a_meta_of_wrong_types_ends_in_failures_and_no_traceback(tmp_path, small, key, value):
    folder = copy_run(small, tmp_path / "run")
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, key: value}))
    found = failures(validate_run(folder))
    assert "meta.json unchanged" in {r.name for r in found}


def test_everything_is_checked_though_much_is_broken(tmp_path, small):
    folder = copy_run(small, tmp_path / "run")
    flip(folder / "tokens.parquet", 100, 255)
    flip(folder / "dec_self_qkv.zarr/q/c/0/0/0/0/0", 3, 1)
    flip(folder / "dec_hidden.zarr/h/c/0/2/0/0", 3, 1)
    (folder / "dec_res_embed.zarr/x/zarr.json").unlink()
    names = {r.array for r in failures(validate_run(folder))}
    assert {"tokens.parquet", "dec_self_q", "dec_hidden", "dec_res_embed"} <= names
