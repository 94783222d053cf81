"""Damage to any file is found and the file is named; with the manifest made to agree, the chunk checksums find it.

And what is read from a damaged run is what was written, or an error: never other numbers.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import TinyRun, build_run, copy_run, reseal

from decision_traces import TraceStore
from decision_traces.errors import TraceError
from decision_traces.extract.multiple_choice import MultipleChoiceConfig, extract_multiple_choice
from decision_traces.extract.next_token import NextTokenConfig, extract_next_token
from decision_traces.store.validate.index import index_run
from decision_traces.store.validate.run import failures, validate_run

SMALL = TinyRun(lengths=(3, 2, 0), n_layers=2, n_heads=2, n_kv_heads=1, n_positions=3, d_head=2, d_model=3, links=False)


CHOICES = replace(SMALL, lengths=((3, 2), (1, 3)), n_kv_heads=2)
KINDS = ("decoder", "choices")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A run of a decoder and one of an encoder that reads choices."""
    made = {}
    for kind, content in zip(KINDS, (SMALL, CHOICES), strict=True):
        made[kind] = tmp_path_factory.mktemp(kind) / "run"
        build_run(made[kind], content)
        index_run(made[kind])
        assert failures(validate_run(made[kind])) == []
    return made


@pytest.fixture(scope="module")
def small(runs):
    return runs["decoder"]


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
def test_one_changed_byte_anywhere_is_found_and_named(tmp_path_factory, runs, data):
    whole = runs[data.draw(st.sampled_from(KINDS))]
    file = data.draw(st.sampled_from(files(whole)))
    place, bits = data.draw(st.integers(0, 10**6)), data.draw(st.integers(1, 255))
    folder = copy_run(whole, tmp_path_factory.mktemp("flip") / "run")
    flip(folder / file, place, bits)
    assert named(folder, file)


@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_any_file_cut_anywhere_is_found_and_named(tmp_path_factory, runs, data):
    whole = runs[data.draw(st.sampled_from(KINDS))]
    file = data.draw(st.sampled_from(files(whole)))
    size = (whole / file).stat().st_size
    folder = copy_run(whole, tmp_path_factory.mktemp("cut") / "run")
    (folder / file).write_bytes((folder / file).read_bytes()[: data.draw(st.integers(0, size - 1))])
    assert named(folder, file)


@pytest.mark.parametrize("kind", ["decoder", pytest.param("choices", marks=pytest.mark.long)])
def test_any_file_that_is_gone_is_found_and_named(tmp_path, runs, kind):
    for number, file in enumerate(sorted(set(files(runs[kind])) - {"meta.json", "index.json"})):
        folder = copy_run(runs[kind], tmp_path / str(number))
        (folder / file).unlink()
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


# -- reading a damaged run --------------------------------------------------------------------------------------

Read = Callable[[TraceStore, str], np.ndarray]
OF_A_DECODER: dict[str, Read] = {
    "attn": lambda s, e: s.attn(e),
    "one head": lambda s, e: s.attn(e, layer=1, head=2),
    "q": lambda s, e: s.qkv(e, which="q"),
    "k of a layer": lambda s, e: s.qkv(e, which="k", layer=0),
    "hidden": lambda s, e: s.hidden(e, trim=True),
    "hidden of a layer": lambda s, e: s.hidden(e, layer=2),
    "post_attn": lambda s, e: s.resid(e, stage="post_attn", layer=1),
    "embed": lambda s, e: s.resid_embed(e),
    "gather": lambda s, _: s.gather("dec_hidden", layer=1, position="next"),
    "xarray": lambda s, _: s.to_xarray("dec_res_post_mlp").isel(example=1).to_numpy(),
}
OF_CHOICES: dict[str, Read] = {
    "attn": lambda s, e: s.mcq_attn(e, 1, layer=1),
    "v": lambda s, e: s.mcq_qkv(e, 2, which="v"),
    "hidden": lambda s, e: s.mcq_hidden(e, 0),
    "pre_attn": lambda s, e: s.mcq_resid(e, 1, stage="pre_attn"),
    "embed": lambda s, e: s.mcq_resid_embed(e, 0),
}


@pytest.fixture(scope="module")
def real(tiny_folder, tiny_encoder_folder, tmp_path_factory) -> dict[str, tuple[Path, dict[str, Read]]]:
    """Runs as the commands write them, with the ways to read each."""
    folder = tmp_path_factory.mktemp("real")
    (folder / "texts.txt").write_text("one text\nanother, longer text\nx\n")
    capture = ("attn", "qkv", "hidden", "resid")
    config = NextTokenConfig(
        model_path=tiny_folder("gpt2"), text_file=folder / "texts.txt", capture=capture, out_dir=folder / "decoder"
    )
    extract_next_token(config)
    choices = MultipleChoiceConfig(
        model_path=tiny_encoder_folder("bert"),
        dataset="tinyworld",
        limit=3,
        capture=capture,
        out_dir=folder / "choices",
    )
    extract_multiple_choice(choices)
    return {"decoder": (folder / "decoder", OF_A_DECODER), "choices": (folder / "choices", OF_CHOICES)}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_an_accessor_gives_what_was_written_or_an_error(tmp_path_factory, real, data):
    run, readings = real[data.draw(st.sampled_from(KINDS))]
    read = readings[data.draw(st.sampled_from(sorted(readings)))]
    file = data.draw(st.sampled_from([f for f in files(run) if ".zarr/" in f]))
    place, bits = data.draw(st.integers(0, 10**9)), data.draw(st.integers(1, 255))
    damaged = copy_run(run, tmp_path_factory.mktemp("read") / "run")
    if data.draw(st.booleans()):
        flip(damaged / file, place, bits)
    else:
        whole = (damaged / file).read_bytes()
        (damaged / file).write_bytes(whole[: place % len(whole)])
    example = TraceStore(run).example_id(1)
    try:
        found = read(TraceStore(damaged), example)
    except TraceError as error:
        assert str(error).strip()
        return
    np.testing.assert_array_equal(found, read(TraceStore(run), example))
