"""What the reader says when it cannot give what was asked; and that damage never becomes a number."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.runs import TinyRun, build_run, copy_run, reseal

from decision_traces.errors import (
    DamagedRunError,
    NotCapturedError,
    RunError,
    SelectionError,
    UnknownExampleError,
    UsageError,
)
from decision_traces.store.reading.trace_store import TraceStore

ERRORS = [
    (lambda s: s.attn(0, layer=3), SelectionError, "No layer 3 here: valid are 0 to 2"),
    (lambda s: s.attn(0, layer=-4), SelectionError, "No layer -4 here"),
    (lambda s: s.attn(0, head=4), SelectionError, "No head 4 here: valid are 0 to 3"),
    (lambda s: s.qkv(0, "k", head=2), SelectionError, "4 query heads share 2, and query head h reads from h"),
    (lambda s: s.hidden(0, layer=4), SelectionError, "depth .* 4 here: valid are 0 to 3"),
    (lambda s: s.hidden(5), SelectionError, "No row 5 here: valid are 0 to 4"),
    (lambda s: s.attn(0, layer=True), UsageError, "layer must be an integer"),
    (lambda s: s.attn(0, side="decoder"), UsageError, "No side 'decoder': valid are 'dec', 'enc'"),
    (lambda s: s.attn(0, kind="causal"), UsageError, "valid are 'self', 'cross'"),
    (lambda s: s.qkv(0, which="x"), UsageError, "No which 'x': valid are 'q', 'k', 'v'"),
    (lambda s: s.resid(0, stage="mid"), UsageError, "valid are 'pre_attn', 'post_attn', 'post_cross', 'post_mlp'"),
    (lambda s: s.resid(0, stage="post_cross", side="enc"), UsageError, "valid are 'pre_attn', 'post_attn', 'post_mlp'"),
    (lambda s: s.resid(0, stage="post_cross"), NotCapturedError, "only encoder-decoder"),
    (lambda s: s.attn(0, side="enc", kind="cross"), UsageError, 'kind="cross" with side="dec"'),
    (lambda s: s.array("h"), UsageError, "No array is called 'h'. This run has: dec_self_attn"),
    (lambda s: s.gather("dec_hidden", head=0), UsageError, "dec_hidden has no head"),
    (lambda s: s.gather("dec_hidden", position="first"), UsageError, "valid are 'next', 'last'"),
    (lambda s: s.gather("dec_hidden", position=6), SelectionError, "No position 6 here: valid are 0 to 5"),
    (lambda s: s.gather("dec_hidden", position=[0, 1]), UsageError, "of shape \\(5,\\)"),
    (lambda s: s.gather("dec_hidden", position=[0, 1, 2, 3, 6]), SelectionError, "0 to 5"),
    (lambda s: s.attn(0, kind="cross"), NotCapturedError, "only encoder-decoder"),
    (lambda s: s.mcq_attn(0, 0), NotCapturedError, 'has no enc_mc_attn.*side="dec"'),
    (lambda s: s.hidden("tiny-validation-00003"), UnknownExampleError, "Did you mean 'tiny-validation-000003'"),
    (lambda s: s.hidden("zzz"), UnknownExampleError, "The first of 5 is 'tiny-validation-000000'"),
]


@pytest.mark.parametrize(("ask", "error", "message"), ERRORS)
def test_errors_say_what_is_valid(decoder, ask, error, message):
    with pytest.raises(error, match=message):
        ask(decoder.store)


def test_standard_parents(decoder):
    with pytest.raises(IndexError):
        decoder.store.attn(0, layer=99)
    with pytest.raises(KeyError):
        decoder.store.hidden("nobody")


def test_what_was_not_captured_names_the_flag(tmp_path):
    build_run(tmp_path / "r", TinyRun(capture=("hidden", "resid")))
    with pytest.raises(NotCapturedError, match=r"captured hidden resid .* has dec_hidden.* `attn` among the words"):
        TraceStore(tmp_path / "r").attn(0)


def test_trim_of_all_choices_at_once_is_refused(choices):
    with pytest.raises(UsageError, match="name choice_idx"):
        choices.store.encodings(0, trim=True)
    with pytest.raises(SelectionError, match="No choice_idx 2 here: valid are 0 to 1"):
        choices.store.mcq_hidden(0, 2)


def test_repeated_ids_are_not_guessed(tmp_path):
    def repeat(arrays, table):
        table.loc[2, "example_id"] = table.loc[0, "example_id"]

    build_run(tmp_path / "r", TinyRun(capture=("hidden",)), repeat)
    with pytest.raises(UsageError, match=r"stands in rows \[0, 2\]"):
        TraceStore(tmp_path / "r").hidden("tiny-validation-000000")


def test_no_run(tmp_path):
    with pytest.raises(RunError, match="No run folder at"):
        TraceStore(tmp_path / "nothing")
    with pytest.raises(RunError, match=r"not a complete run: it has no meta\.json"):
        TraceStore(tmp_path)


def test_a_damaged_meta_is_said_to_be(tmp_path):
    (tmp_path / "meta.json").write_text("{")
    with pytest.raises(DamagedRunError, match="not JSON"):
        TraceStore(tmp_path)


@settings(max_examples=30, deadline=None)
@given(block=st.integers(0, 2), depth=st.integers(0, 3), place=st.integers(0, 999), bits=st.integers(1, 255))
def test_a_changed_byte_of_a_shard_never_becomes_a_number(tmp_path_factory, decoder, block, depth, place, bits):
    folder = copy_run(decoder.folder, tmp_path_factory.mktemp("damage") / "run")
    path = folder / f"dec_hidden.zarr/h/c/{block}/{depth}/0/0"
    raw = bytearray(path.read_bytes())
    raw[place % len(raw)] ^= bits
    path.write_bytes(raw)
    s, refused = TraceStore(folder), 0
    for row in range(2 * block, min(2 * block + 2, 5)):
        try:
            read = s.hidden(row, layer=depth)
        except DamagedRunError as error:
            refused += 1
            assert path.as_posix() in str(error)
            assert f"dec_hidden, row {row}, depth {depth}" in str(error)
        else:
            np.testing.assert_array_equal(read, decoder.arrays["dec_hidden"][row, depth])
    # The last block has room for a row more than the run has: damage there touches nobody.
    assert refused or block == 2


@pytest.mark.parametrize("layout", ["sharded", "v3", "v2"])
@pytest.mark.parametrize("name", ["dec_self_attn", "dec_self_k", "dec_hidden", "dec_res_embed"])
def test_a_missing_file_never_becomes_zeros(tmp_path, layout, name):
    build_run(tmp_path / "r", TinyRun(lengths=(6, 6, 6, 6), layout=layout))
    s = TraceStore(tmp_path / "r")
    array = s.array(name)
    path, covered = next(iter(array.files(array.box(example=3))))
    path.unlink()
    with pytest.raises(DamagedRunError, match="is missing"):
        array.read(example=covered[0].start)


def test_a_missing_file_of_padding_alone_is_zeros(tmp_path):
    build_run(tmp_path / "r", TinyRun(lengths=(3, 2, 0, 0), block_rows=2))
    s = TraceStore(tmp_path / "r")
    for path in (tmp_path / "r" / "dec_hidden.zarr/h/c").glob("1/*/0/0"):
        path.unlink()
    assert s.hidden(3).tolist() == np.zeros((4, 6, 8)).tolist()


@pytest.mark.parametrize("file", ["tokens.parquet", "dec_hidden.zarr/h/zarr.json"])
def test_changed_tables_and_array_metadata_are_refused(tmp_path, decoder, file):
    folder = copy_run(decoder.folder, tmp_path / "r")
    raw = bytearray((folder / file).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / file).write_bytes(raw)
    with pytest.raises(DamagedRunError, match=file.rsplit("/", maxsplit=1)[-1]):
        TraceStore(folder).hidden("tiny-validation-000000")


def test_a_page_checksum_finds_what_the_manifest_does_not(tmp_path, decoder):
    folder = copy_run(decoder.folder, tmp_path / "r")
    raw = bytearray((folder / "tokens.parquet").read_bytes())
    at = raw.find(b"text number 1")
    raw[at if at > 0 else 60] ^= 1
    (folder / "tokens.parquet").write_bytes(raw)
    reseal(folder)
    with pytest.raises(DamagedRunError, match=r"tokens\.parquet is damaged"):
        _ = TraceStore(folder).tokens


def test_an_array_the_meta_lists_must_be_there(tmp_path, decoder):
    folder = copy_run(decoder.folder, tmp_path / "r")
    (folder / "dec_hidden.zarr/h/zarr.json").unlink()
    with pytest.raises(DamagedRunError, match="the meta lists dec_hidden"):
        TraceStore(folder).hidden(0)


def test_a_shape_other_than_the_metas_is_refused(tmp_path, decoder):
    folder = copy_run(decoder.folder, tmp_path / "r")
    path = folder / "dec_hidden.zarr/h/zarr.json"
    value = json.loads(path.read_text())
    value["shape"][0] = 4
    path.write_text(json.dumps(value))
    reseal(folder)
    with pytest.raises(DamagedRunError, match=r"has shape \(4, 4, 6, 8\), the meta says \(5, 4, 6, 8\)"):
        TraceStore(folder).hidden(0)
