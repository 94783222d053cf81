"""A run from a stranger that says it is enormous: a sentence, and not the memory."""

import io
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr
from crc32c import crc32c
from pandas.testing import assert_frame_equal
from support.runs import TinyRun, build_run, copy_run, reseal

from decision_traces import TraceStore
from decision_traces.errors import DamagedRunError
from decision_traces.store.files.table import TableFile, read_table

MOST_BYTES = 200e6
RUN = TinyRun(lengths=(3, 2), n_layers=2, n_heads=2, n_kv_heads=1, n_positions=3, d_head=2, d_model=3, links=False)
ATTENTION, SHARD = "dec_self_attn.zarr/attn", "dec_self_attn.zarr/attn/c/0/0/0/0/0"


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def shape(*sizes: int | None) -> Callable[[Path], None]:
    """Make the attention say other sizes, in its own metadata and in the meta, and seal all of it."""

    def attack(run: Path) -> None:
        def larger(array: dict[str, Any]) -> None:
            array["shape"] = [new or old for old, new in zip(array["shape"], sizes, strict=True)]
            chunk = array["chunk_grid"]["configuration"]
            inner = array["codecs"][0]["configuration"]
            for told in (chunk, inner):
                told["chunk_shape"] = [
                    new if new and i >= 2 else old
                    for i, (old, new) in enumerate(zip(told["chunk_shape"], sizes, strict=True))
                ]

        edit(run / ATTENTION / "zarr.json", larger)
        edit(run / "meta.json", lambda meta: (meta.pop("sides"), meta["arrays"].pop("dec_self_attn")))
        reseal(run)

    return attack


def frame(content: int, blocks: int) -> bytes:
    """Return a Zstandard frame that says it holds so many bytes, and holds so many blocks of 128 KiB zeros."""
    header = bytes.fromhex("28b52ffd") + bytes([0xC0, 0x38]) + content.to_bytes(8, "little")
    sizes = [(int(i == blocks - 1) | 1 << 1 | (128 << 10) << 3).to_bytes(3, "little") for i in range(blocks)]
    return header + b"".join(size + b"\0" for size in sizes)


def shard(make: Callable[[bytes], bytes], entry: tuple[int, int] | None = None) -> Callable[[Path], None]:
    """Put another frame in the place of the first chunk of a shard, its checksums right."""

    def attack(run: Path) -> None:
        raw = (run / SHARD).read_bytes()
        index = np.frombuffer(raw[-36:-4], "<u8").reshape(2, 2).copy()
        old = raw[int(index[0, 0]) : int(index[0].sum()) - 4]
        new = make(old)
        new += crc32c(new).to_bytes(4, "little")
        rest = raw[int(index[1, 0]) : int(index[1].sum())]
        index[:] = [entry or (0, len(new)), (len(new), len(rest))]
        told = index.tobytes()
        (run / SHARD).write_bytes(new + rest + told + crc32c(told).to_bytes(4, "little"))
        reseal(run)

    return attack


def no_checksum(run: Path) -> None:
    """Let the metadata say that a shard's index has no checksum: every number of it is read four bytes too late."""
    path = run / ATTENTION / "zarr.json"
    edit(path, lambda about: about["codecs"][0]["configuration"]["index_codecs"].pop())
    reseal(run)


def shorter(old: bytes) -> bytes:
    """Return a frame of less than a chunk: what is left of it must not be what stood in memory."""
    return bytes(numcodecs.Zstd(1).encode(numcodecs.Zstd(1).decode(old)[:8]))


def second_format(compressor: dict[str, Any] | None, filters: list[dict[str, Any]] | None, chunk: bytes) -> Any:
    """Put an array of Zarr format 2 in the place of the attention, with one chunk of these bytes."""

    def attack(run: Path) -> None:
        sizes = json.loads((run / ATTENTION / "zarr.json").read_text())["shape"]
        for path in sorted((run / ATTENTION).rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()
        about = {"zarr_format": 2, "shape": sizes, "chunks": sizes, "dtype": "<f2", "fill_value": 0.0, "order": "C"}
        (run / ATTENTION / ".zarray").write_text(json.dumps({**about, "compressor": compressor, "filters": filters}))
        (run / ATTENTION / "0.0.0.0.0").write_bytes(chunk)
        reseal(run)

    return attack


def coordinate(run: Path) -> None:
    """A million layers in a coordinate of one chunk that is not there."""
    zarr.create_array(
        run / "dec_self_attn.zarr/layer", shape=(10**6,), dtype="int32", chunks=(10**6,), dimension_names=("layer",)
    )
    reseal(run)


def table(make: Callable[[], bytes]) -> Callable[[Path], None]:
    def attack(run: Path) -> None:
        (run / "tokens.parquet").write_bytes(make())
        reseal(run)

    return attack


def parquet(columns: dict[str, pa.Array], **options: Any) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink, compression="zstd", store_schema=False, **options)
    return sink.getvalue()


def one_long_list() -> bytes:
    """A row with a list of 20 million zeros, in a kilobyte."""
    zeros = pa.array(np.zeros(20_000_000, np.int8))
    return parquet({"example_id": pa.ListArray.from_arrays(pa.array([0, len(zeros)], pa.int32()), zeros)})


def lying_footer() -> bytes:
    """The same, with a footer that says two values: only the header of the page tells the truth."""
    raw = one_long_list()
    at = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    truth, lie = bytes([0x80, 0xB4, 0x89, 0x13]), bytes([0x84, 0x80, 0x80, 0x00])  # 20,000,000 and 2, zigzag
    assert truth in raw[at:]
    return raw[:at] + raw[at:].replace(truth, lie)


def repeated_text() -> bytes:
    """One text of three megabytes, a thousand times: 3 GB in a kilobyte."""
    rows = pa.DictionaryArray.from_arrays(pa.array(np.zeros(1000, np.int32)), pa.array(["x" * 3_000_000]))
    return parquet({"example_id": rows}, write_statistics=False, dictionary_pagesize_limit=1 << 23)


def nested() -> bytes:
    column = pa.array([1], pa.int32())
    for _ in range(40):
        column = pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), column)
    return parquet({"example_id": column})


def many_rows() -> bytes:
    return parquet({"example_id": pa.array(np.zeros(3_000_000, np.int8))})


def size(file: str, n_bytes: int, *, seal: bool = False) -> Callable[[Path], None]:
    def attack(run: Path) -> None:
        os.truncate(run / file, n_bytes)
        if seal:
            reseal(run)

    return attack


def deep(run: Path) -> None:
    (run / "meta.json").write_text('{"run_id": "run", "model": ' + "[" * 100_000 + "]" * 100_000 + "}")


def sides(key: str) -> Callable[[Path], None]:
    def attack(run: Path) -> None:
        edit(run / "meta.json", lambda meta: meta["sides"]["dec"].update({key: 10**9}))
        reseal(run)

    return attack


def blosc(n_bytes: int) -> bytes:
    raw = bytearray(numcodecs.Blosc("lz4").encode(np.zeros(72, np.float16)))
    raw[4:8] = n_bytes.to_bytes(4, "little")
    return bytes(raw)


ATTACKS: dict[str, tuple[Callable[[Path], None], str]] = {
    "layers in the meta": (sides("n_layers"), "n_layers"),
    "heads in the meta": (sides("n_heads"), "n_heads"),
    "rows of an array": (shape(10**10, None, None, None, None), "cannot have more than"),
    "layers of an array": (shape(None, 10**10, None, None, None), "cannot have more than 10000 along layer"),
    "positions of an array": (shape(None, None, None, 10**10, 10**10), "cannot have more than"),
    "a chunk of 36 MB in a file of a hundred bytes": (shape(None, None, None, 3000, 3000), "cannot hold the 36000000"),
    "a frame that says 3 GB": (shard(lambda _: frame(3 << 30, 1)), f"holds {3 << 30} bytes where 36 belong"),
    "a frame that holds 3 GB": (shard(lambda _: frame(36, 24_000)), "Destination buffer is too small"),
    "a frame of less than a chunk": (shard(shorter), "holds 8 bytes where 36 belong"),
    "an index past the end": (shard(lambda old: old, (2**64 - 2, 10)), "points past the end of the file"),
    "an index without its checksum": (no_checksum, "of a file of 129 bytes"),
    "a Blosc chunk that says 2 GB": (second_format({"id": "blosc"}, None, blosc(2**31 - 1)), "bytes where 144 belong"),
    "a Zstandard chunk of 3 GB": (
        second_format({"id": "zstd"}, None, frame(3 << 30, 24_576)),
        "bytes where 144 belong",
    ),
    "a gzip chunk of 100 MB": (
        second_format({"id": "gzip"}, None, numcodecs.GZip(9).encode(bytes(100_000_000))),
        "bytes where 144 belong",
    ),
    "a coordinate of a million": (coordinate, r"shape \(1000000,\), expected \(2,\)"),
    "a meta of 100 MB": (size("meta.json", 100_000_000), "more than the 2097152 bytes that it can have"),
    "a manifest of 100 MB": (size("manifest.json", 100_000_000), "bytes that it can have"),
    "metadata of 100 MB": (size(f"{ATTENTION}/zarr.json", 100_000_000, seal=True), "of no array takes so many"),
    "a meta of 100,000 levels": (deep, "is damaged"),
    "a list of 20 million": (table(one_long_list), "more than a file of"),
    "a list of 20 million, which the footer denies": (table(lying_footer), "more than a file of"),
    "3 GB of text": (table(repeated_text), "more than a file of"),
    "lists in lists": (table(nested), "over 16 levels"),
    "three million rows": (table(many_rows), r"says 3000000 rows, more than its \d+ bytes can hold"),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "run"
    build_run(folder, RUN)
    return folder


@pytest.fixture(scope="module")
def probed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one process says of all attacked runs, one after the other."""
    folders = {}
    for number, (name, (attack, _)) in enumerate(ATTACKS.items()):
        folders[name] = copy_run(built, tmp_path_factory.mktemp(f"attack{number}") / "run")
        attack(folders[name])
    command = [sys.executable, str(Path(__file__).with_name("probing.py")), str(built), *map(str, folders.values())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    told = {line["run"]: line for line in map(json.loads, done.stdout.splitlines())}
    ended = {"said": [f"the process ended: {done.stderr[-500:] or done.returncode}"], "bytes": 0}
    return {name: told.get(str(folder), ended) for name, folder in folders.items()}


@pytest.mark.parametrize("name", ATTACKS)
def test_what_says_it_is_enormous_is_refused_in_a_sentence(probed, name):
    told = probed[name]
    assert any(re.search(ATTACKS[name][1], said) for said in told["said"]), told["said"][:3]
    assert told["bytes"] < MOST_BYTES


class Runs:
    """Unpickled, it makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_no_array_is_unpickled(built, tmp_path):
    run, mark = copy_run(built, tmp_path / "run"), tmp_path / "was here"
    second_format({"id": "pickle", "protocol": 5}, None, pickle.dumps(Runs(mark)))(run)
    with pytest.raises(DamagedRunError, match="pickle"):
        TraceStore(run).attn(0)
    assert not mark.exists()


@pytest.mark.parametrize(
    "told",
    [
        {"columns": [], "index_columns": [], "column_indexes": [{"numpy_type": "S1500000000", "name": None}]},
        {"columns": [], "index_columns": [{"kind": "range", "name": None, "start": 0, "stop": 10**30, "step": 1}]},
        {"columns": [], "index_columns": ["example_id"], "column_indexes": []},
    ],
)
def test_what_a_table_says_to_pandas_is_not_taken(told: dict[str, Any], tmp_path: Path) -> None:
    """A type of 1.5 GB for the names of columns, an index of 10^30 rows, and one that takes the ids away."""
    table = pa.table({"example_id": ["a", "b"]}).replace_schema_metadata({"pandas": json.dumps(told)})
    pq.write_table(table, tmp_path / "tokens.parquet")
    file = TableFile(tmp_path / "tokens.parquet")
    expected = pd.DataFrame({"example_id": ["a", "b"]})
    for frame in (file.frame(), file.read().to_pandas(), file.read(where=("example_id", "b")).to_pandas()):
        assert_frame_equal(frame, expected[-len(frame) :].reset_index(drop=True))
    assert file.schema().metadata is None


@pytest.mark.parametrize(("rows", "positions"), [(2, 131_072), (64, 4096), (3000, 8)])
def test_padding_may_compress_as_well_as_it_does(tmp_path, rows, positions):
    """Long padding of short texts takes three bytes in memory for each thousandth on disk; such tables are read."""
    n = 12
    lists = {
        "input_ids": pa.array([list(range(n))[:positions] + [9] * (positions - n)] * rows, pa.list_(pa.int32())),
        "tokens": pa.array([["a word"] * n + ["<|endoftext|>"] * (positions - n)] * rows, pa.list_(pa.string())),
        "offset_mapping": pa.array([[[0, 0]] * positions] * rows, pa.list_(pa.list_(pa.int32()))),
    }
    path = tmp_path / "tokens.parquet"
    pq.write_table(pa.table({"example_id": [f"e{i}" for i in range(rows)], **lists}), path, compression="zstd")
    assert read_table(path).num_rows == rows
