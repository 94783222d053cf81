"""Results for every position of an example, kept as Zarr groups in the results: what the page reads, without torch.

An analysis of one decision an example fits a table; one of every position, layer and candidate does not. These groups
open with any Zarr v3 reader. Row i of every array is row i of `tokens.parquet`; slot j of an example is the token
position `positions[i, j]`, -1 where the slot is empty (padding, or a position without a decision).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from decision_traces.errors import DamagedRunError, first_line
from decision_traces.folders.plain import PlainFolder
from decision_traces.format.analyses import CONTRIBUTION_GRID, LENS_GRID, WORDS_TABLE
from decision_traces.format.stages import DEPTH, EXAMPLE, HEAD, LAYER
from decision_traces.store import (
    DECODE_ERRORS,
    PREDICTIONS,
    Result,
    ShardReader,
    TraceStore,
    consolidate,
    open_zarr,
    shard_reader,
    write_table,
)

SLOT, CANDIDATE, TOP, PART = "slot", "candidate", "top", "part"
_SHARD_BYTES: Final = 4 << 20
_LARGEST_CHUNK: Final = 128 << 20  # of an example of a long text; more is not read at once, whatever a file claims
_MOST_TOKENS: Final = 1 << 12
_ATTRIBUTES: Final = ("all_positions", "scale", "stage", "vocab_size", "parts", "sum_error", "of", "logit_cap")


@dataclass(frozen=True, slots=True)
class GridArray:
    """One array of a group.

    Attributes:
        name: Its key in the group.
        axes: Zarr `dimension_names`.
        dtype: As stored.
        doc: What it holds.
    """

    name: str
    axes: tuple[str, ...]
    dtype: str
    doc: str


_PLACES: Final = (
    GridArray("positions", (EXAMPLE, SLOT), "int32", "token position of each slot; -1: empty"),
    GridArray(
        "candidates",
        (EXAMPLE, SLOT, CANDIDATE),
        "int32",
        "token ids (choices, of an encoder): first the target, which is the true one, or where the truth is not known "
        "the predicted one; at the answer of a question then its choices in order; then the most probable tokens at "
        "the end of the model, best first; -1: none",
    ),
)
_STATE: Final = (EXAMPLE, DEPTH, SLOT)
LENS_ARRAYS: Final = (
    *_PLACES,
    GridArray("known", (EXAMPLE, SLOT), "int8", "1 where the target is the true token, 0 where the truth is not known"),
    GridArray("prob", _STATE, "float32", "probability of the target"),
    GridArray("rank", _STATE, "int32", "one more than the number of tokens with a larger logit than the target"),
    GridArray("entropy", _STATE, "float32", "entropy of the whole distribution, nats"),
    GridArray("kl", _STATE, "float32", "KL divergence of the final distribution from this one, nats"),
    GridArray("top_ids", (*_STATE, TOP), "int32", "most probable tokens, best first"),
    GridArray("top_probs", (*_STATE, TOP), "float16", "their probabilities"),
    GridArray("candidate_probs", (*_STATE, CANDIDATE), "float16", "probability of each candidate"),
)
CONTRIBUTION_ARRAYS: Final = (
    *_PLACES,
    GridArray(
        "parts",
        (EXAMPLE, SLOT, CANDIDATE, PART),
        "float32",
        "what each part adds to the lead of the target over the candidate, logits; parts as the attribute `parts` "
        "names them. The lead of one candidate over another is the difference of their rows",
    ),
    GridArray("heads", (EXAMPLE, SLOT, CANDIDATE, LAYER, HEAD), "float32", "the same of each head; may be absent"),
)


_ARRAYS: Final = {LENS_GRID: LENS_ARRAYS, CONTRIBUTION_GRID: CONTRIBUTION_ARRAYS}


def part_names(n_layers: int) -> list[str]:
    """Return the names along the `part` axis: embed, attn 0, mlp 0, attn 1, …, remainder."""
    return ["embed", *(f"{kind} {layer}" for layer in range(n_layers) for kind in ("attn", "mlp")), "remainder"]


@dataclass(slots=True)
class GridWriter:
    """Writes one group, some consecutive examples at a time.

    Attributes:
        path: Where the group is to lie; nothing may lie there yet.
        arrays: Its arrays.
        sizes: Size of every axis.
        rows: Examples that are written at a time, but for the last.
    """

    path: Path
    arrays: tuple[GridArray, ...]
    sizes: Mapping[str, int]
    rows: int
    _group: zarr.Group = field(init=False)

    def __post_init__(self) -> None:
        """Create the group, its arrays empty."""
        self._group = zarr.open_group(self.path, mode="w-", zarr_format=3)
        for array in self.arrays:
            shape = tuple(self.sizes[axis] for axis in array.axes)
            inner = (1 if self.sizes[SLOT] > 1 else self.rows, *shape[1:])
            made = self._group.create_array(
                array.name,
                shape=shape,
                dtype=array.dtype,
                chunks=tuple(max(1, n) for n in inner),
                shards=tuple(max(1, n) for n in (self.rows, *shape[1:])),
                compressors=(ZstdCodec(), Crc32cCodec()),  # a checksum for other readers too, chunk by chunk
                chunk_key_encoding={"name": "default", "separator": "."},  # no folders to walk through
                dimension_names=array.axes,
                fill_value=0,
            )
            made.attrs["doc"] = array.doc

    def write(self, rows: slice, values: Mapping[str, np.ndarray]) -> None:
        """Write some examples of every array."""
        for name, part in values.items():
            array = self._group[name]
            assert isinstance(array, zarr.Array)
            array[rows] = part

    def finish(self, attributes: Mapping[str, Any]) -> None:
        """Add attributes."""
        self._group.attrs.update(attributes)
        consolidate(self.path)


def rows_at_once(row_bytes: int, n: int) -> int:
    """Return how many examples to work on at a time: a few MB of them."""
    return max(1, min(256, n, _SHARD_BYTES // max(1, row_bytes)))


class Grid:
    """A group of a result, read example by example; no number is given that was not written."""

    def __init__(self, result: Result, name: str, store: TraceStore) -> None:
        """Open it.

        Args:
            result: The result that holds it.
            name: LENS_GRID or CONTRIBUTION_GRID.
            store: The run, whose sizes bound those of the arrays.

        Raises:
            ResultError: The group is damaged.
        """
        self._result, self._name = result, name
        self._specs = {array.name: array for array in _ARRAYS[name]}
        self._limits = _limits(store)
        self._readers: dict[str, ShardReader] = {}
        self.attrs = self._attributes()

    def __contains__(self, array: str) -> bool:
        """Whether there is an array of this name."""
        return f"{self._name}/{array}/zarr.json" in self._result.files

    def read(self, array: str, row: int) -> np.ndarray:
        """Return what an array holds of one example.

        Raises:
            ResultError: A file that it comes from is damaged or missing.
        """
        reader = self._reader(array)
        shard = (row // reader.shard[0], *(0 for _ in reader.shard[1:]))
        file = f"{self._name}/{array}/{reader.names(shard)}"
        if file in self._result.files:  # where all is zero there is none
            self._result.file(file)
        box = (slice(row, row + 1), *(slice(0, n) for n in reader.shape[1:]))
        try:
            values: np.ndarray = reader.read(box)[0]
        except DECODE_ERRORS as error:
            raise self._result.damaged(f"{file}: {first_line(error)}") from error
        return values

    def _attributes(self) -> dict[str, Any]:
        path = self._result.file(f"{self._name}/zarr.json")
        try:
            attributes = json.loads(path.read_bytes())["attributes"]
            json.dumps(attributes, allow_nan=False)
            return {key: attributes[key] for key in _ATTRIBUTES if key in attributes}
        except (*DECODE_ERRORS, RecursionError) as error:
            raise self._result.damaged(f"{self._name}/zarr.json: {first_line(error)}") from error

    def _reader(self, array: str) -> ShardReader:
        if array not in self._readers:
            group = f"{self._name}/{array}"
            path = self._result.file(f"{group}/zarr.json")
            plain = PlainFolder(self._result.place.root)
            try:
                opened = open_zarr(plain, path.parent)
            except (*DECODE_ERRORS, AttributeError, DamagedRunError) as error:
                raise self._result.damaged(f"{group}/zarr.json: {first_line(error)}") from error
            reader = shard_reader(opened, path.parent, plain)
            if reader is None or not self._as_written(self._specs[array], reader):
                raise self._result.damaged(f"{group} is not laid out as this package writes it")
            self._readers[array] = reader
        return self._readers[array]

    def _as_written(self, spec: GridArray, reader: ShardReader) -> bool:
        """Whether an array has the type and sizes that it can have in this run, and files of whole examples."""
        if reader.dtype != np.dtype(spec.dtype) or len(reader.shape) != len(spec.axes):
            return False
        room = [n <= self._limits[axis] for axis, n in zip(spec.axes, reader.shape, strict=True)]
        one_piece = reader.shape[1:] == reader.chunk[1:] == reader.shard[1:]
        chunk_bytes = prod(reader.chunk) * reader.dtype.itemsize
        return reader.shape[0] == self._limits[EXAMPLE] and all(room) and one_piece and chunk_bytes <= _LARGEST_CHUNK


def _limits(store: TraceStore) -> dict[str, int]:
    """Return how large each axis can be in a run."""
    return {
        EXAMPLE: store.n,
        SLOT: max(1, store.T),
        DEPTH: store.L + 1,
        LAYER: store.L,
        HEAD: store.H,
        PART: 2 + 2 * store.L,
        CANDIDATE: _MOST_TOKENS,
        TOP: _MOST_TOKENS,
    }


def read_words(result: Result | None) -> dict[int, str]:
    """Return the texts of token ids that stand in a result, empty where there are none.

    Raises:
        ResultError: They are damaged.
    """
    if result is None or WORDS_TABLE not in result.files:
        return {}
    table = result.table(WORDS_TABLE, ("id", "text"))
    return dict(zip(table.column("id").to_pylist(), table.column("text").to_pylist(), strict=True))


def write_words(folder: Path, store: TraceStore, ids: np.ndarray, tokenizer: Any | None) -> None:
    """Write the text of every id into the folder of a result.

    Args:
        folder: Where `words.parquet` goes.
        store: The run.
        ids: Token ids, any shape; negative ones are none.
        tokenizer: The model's, where it could be had; without it, ids that the run's own table does not explain
            are left out.
    """
    needed = {int(i) for i in np.unique(ids) if i >= 0}
    if tokenizer is not None:
        words = {i: str(tokenizer.decode([i])) for i in sorted(needed)}
    else:
        words = {i: text for i, text in _table_words(store).items() if i in needed}
    table = pa.table({"id": pa.array(words.keys(), pa.int32()), "text": pa.array(words.values(), pa.string())})
    write_table(folder / WORDS_TABLE, table)


def _table_words(store: TraceStore) -> dict[int, str]:
    words: dict[int, str] = {}
    for kind in PREDICTIONS:
        table = store.table([f"{kind}_topk_ids", f"{kind}_topk_tokens"])
        if table.num_columns == 2:
            ids, texts = (column.combine_chunks().flatten().to_pylist() for column in table.columns)
            words |= zip(ids, texts, strict=True)
    return words
