"""One Zarr array of a run, read so that damage is never silent: shards of our own make directly, others by Zarr."""

import json
import lzma
import zlib
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64, Shaped
from zarr import Array

from decision_traces.errors import DamagedRunError
from decision_traces.folders.plain import PlainFolder, plain_files
from decision_traces.format.arrays import TOKENS_FILE, ArraySpec, Dims
from decision_traces.format.lists import Spans
from decision_traces.format.stages import (
    CHOICE,
    DEPTH,
    EXAMPLE,
    HEAD,
    KEY,
    KV_HEAD,
    LAYER,
    POSITION,
    QUERY,
    SOURCE,
)
from decision_traces.store.files.folder import FileRecord, inode_of, problem_of
from decision_traces.store.files.zarr_files import MOST_PER_BYTE, open_zarr, refuse_chunk_file
from decision_traces.store.reading.slots import Slots
from decision_traces.store.reading.still import StillThere
from decision_traces.store.shards.reader import Box, ShardReader, shard_reader

_LARGEST_ZEROS: Final = 64 << 20
"""Bytes of a chunk that may be taken for zeros because its file is not there, with no other file as large as that."""

_MOST: Final = {LAYER: 10_000, DEPTH: 10_001, HEAD: 10_000, KV_HEAD: 10_000, CHOICE: 1 << 16}
_WIDEST: Final = 1 << 24
_POSITIONS_PER_BYTE: Final = 256
"""Of the token table. Padding takes next to nothing: one short text of 131,072 positions is 3,700 bytes, 35 a byte."""

DECODE_ERRORS: Final = (
    RuntimeError,
    OSError,
    ValueError,
    TypeError,
    KeyError,
    EOFError,
    zlib.error,
    lzma.LZMAError,
)
"""What the codecs and Zarr itself raise on damaged bytes; there is no common parent."""

RESTORE: Final = "Restore it from a copy, or extract the run again; `index RUN --validate` checks all of it."


@dataclass(frozen=True, slots=True)
class StoredArray:
    """An array of a run folder, open for reading.

    Attributes:
        spec: Its row of the schema table.
        folder: The array's folder.
        zarr: The open Zarr array.
        shards: Reads its files directly; None where they are of another make, and Zarr reads them.
        plain: Finds links and devices in their place.
        chunk_bytes: What a chunk takes uncompressed.
        slots: Gives what stands on one of the position axes (position, query, key, source), by its name.
        still: Finds that the run was replaced.
        dims: The sizes of its side of the model and what of it is kept; None in runs older than format 1.1, which
            keep everything.
    """

    spec: ArraySpec
    folder: Path
    zarr: "Array[Any]"
    shards: ShardReader | None
    plain: PlainFolder
    chunk_bytes: int
    slots: Callable[[str], Slots]
    still: StillThere
    dims: Dims | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Size along each of the spec's axes."""
        return self.zarr.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """float16 or float32, as stored."""
        return np.dtype(self.zarr.dtype)

    @property
    def files_shape(self) -> tuple[int, ...]:
        """How much of each axis one file holds: the shard where there are shards, else the chunk."""
        return self.zarr.shards or self.zarr.chunks

    @property
    def row_nbytes(self) -> int:
        """Uncompressed bytes of one example."""
        return int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize

    def size(self, axis: str) -> int:
        """Return the size of one axis by name."""
        return self.shape[self.spec.axes.index(axis)]

    @property
    def spans(self) -> Spans:
        """Where each example's tokens lie, on the side that the array is about."""
        return self.slots(self.position_axis).spans

    @property
    def position_axis(self) -> str:
        """Name of the axis of token positions; of the queries for attention."""
        return self.spec.axes[self.spec.position_axis]

    def numbers(self, axis: str) -> tuple[int, ...]:
        """Return the model's own numbers along a layer, depth, head or kv_head axis; 0, 1, … along any other."""
        numbers = {} if self.dims is None else self.dims.numbers(self.spec)
        return numbers.get(axis, tuple(range(self.size(axis))))

    def whole(self, axis: str) -> int:
        """Return how many the model has along a layer, depth, head or kv_head axis, whatever is kept."""
        if self.dims is None:
            return self.size(axis)
        dims = self.dims
        sizes = {LAYER: dims.n_layers, DEPTH: dims.n_layers + 1, HEAD: dims.n_heads, KV_HEAD: dims.n_kv_heads}
        return sizes.get(axis, self.size(axis))

    def box(self, **picks: int | slice) -> Box:
        """Return the selection as one slice per axis; axes that are not named are whole."""
        box = []
        for axis, size in zip(self.spec.axes, self.shape, strict=True):
            pick = picks.get(axis, slice(None))
            start, stop, _ = (slice(pick, pick + 1) if isinstance(pick, int) else pick).indices(size)
            box.append(slice(start, stop))
        return tuple(box)

    def read(self, **picks: int | slice) -> Shaped[np.ndarray, "..."]:
        """Read a part, named by axis; axes given as an int are dropped.

        Args:
            **picks: Axis name to an index or a slice of step 1, both already checked and not negative.

        Raises:
            DamagedRunError: A file of the part is missing though it covers tokens, or does not decode.
        """
        values = self.read_box(self.box(**picks))
        drop = tuple(0 if isinstance(picks.get(axis), int) else slice(None) for axis in self.spec.axes)
        part: np.ndarray = values[drop]
        return part

    def read_box(self, box: Box) -> Shaped[np.ndarray, "..."]:
        """Read one box of the array; see `read`."""
        with self.still:
            self._there(box)
            try:
                return self._values(box)
            except DECODE_ERRORS as error:
                raise self._damage(box, error) from error

    def _values(self, box: Box) -> np.ndarray:
        if self.shards is not None:
            return self.shards.read(box, self._absent)
        for path, _ in self.files(box):
            refuse_chunk_file(self.plain, path, self.zarr)
        return np.asarray(self.zarr[box])

    def read_slots(self, slots: Int64[np.ndarray, " rows"], **picks: int | slice) -> Shaped[np.ndarray, "rows width"]:
        """Read one slot of each of some examples; zeros where the slot is -1.

        Much less than reading the examples whole, where their chunks were read before and so need no checking.

        Args:
            slots: Slot on the position axis of each example.
            **picks: `example` as a slice, and one index of every axis but the position and the width.

        Raises:
            DamagedRunError: As for `read`.
        """
        box = self.box(**picks)
        with self.still:
            self._there(box)
            try:
                lines = None if self.shards is None else self.shards.rows(box, slots, self._absent)
                return self._picked(box, slots) if lines is None else lines
            except DECODE_ERRORS as error:
                raise self._damage(box, error) from error

    def _picked(self, box: Box, slots: Int64[np.ndarray, " rows"]) -> Shaped[np.ndarray, "rows width"]:
        values = self._values(box).reshape(len(slots), -1, self.shape[-1])
        taken: np.ndarray = np.where((slots >= 0)[:, None], values[np.arange(len(slots)), slots], 0)
        return taken

    def _there(self, box: Box) -> None:
        """Raise if a file of a box is missing though it covers tokens."""
        for path, covered in self.files(box):
            size = self.plain.size(path)
            if size is None and self._holds_tokens(covered):
                raise DamagedRunError(f"{path} is missing ({self.place(covered)}). {RESTORE}")
            if size is None:
                size = self._largest_file() if self.chunk_bytes > _LARGEST_ZEROS else _LARGEST_ZEROS
            if size * MOST_PER_BYTE < self.chunk_bytes:
                raise DamagedRunError(
                    f"{path} ({self.place(covered)}) cannot hold the {self.chunk_bytes} bytes that the array "
                    f"says of one chunk. {RESTORE}"
                )

    def _absent(self, covered: Box) -> None:
        """Raise if a chunk that its file does not hold covers tokens: the writer leaves out those of padding alone."""
        if self._holds_tokens(covered):
            raise ValueError(f"the chunk of {self.place(covered)} is not there, though tokens stand in it")

    def _largest_file(self) -> int:
        return max((path.lstat().st_size for path in plain_files(self.folder)), default=0)

    def files(self, box: Box) -> Iterator[tuple[Path, Box]]:
        """Yield each file that holds a piece of the box, with all that the file covers."""
        steps = self.files_shape
        ranges = [range(s.start // n, -(-s.stop // n)) for s, n in zip(box, steps, strict=True)]
        for place in product(*ranges):
            sizes = zip(place, steps, self.shape, strict=True)
            covered = tuple(slice(i * n, min((i + 1) * n, size)) for i, n, size in sizes)
            yield self.folder / self.zarr.metadata.encode_chunk_key(place), covered

    def identity(self, box: Box) -> Hashable:
        """Return what is equal for two boxes only if they are the same bytes read in the same way.

        Hard links of one file have the same identity. None where a file is missing, or holds several layers.
        """
        axis = next((i for i, a in enumerate(self.spec.axes) if a in {LAYER, DEPTH}), None)
        if axis is not None and self.files_shape[axis] != 1:
            return None
        inodes = []
        for path, _ in self.files(box):
            inode = inode_of(path)
            if len(inode) == 1:
                return None
            inodes.append(inode)
        codecs = self.zarr.metadata.to_dict().get("codecs")
        return (box[0].start, box[0].stop, self.files_shape[0], str(self.dtype), str(codecs), tuple(inodes))

    def place(self, box: Box) -> str:
        """Say in words which array, rows and layers a box is: `dec_hidden, rows 0–15, depth 3`."""
        words = [self.spec.name]
        for axis, part, size in zip(self.spec.axes, box, self.shape, strict=True):
            noun, numbers = "row" if axis == EXAMPLE else axis, self.numbers(axis)
            if part.stop - part.start == 1:
                words.append(f"{noun} {numbers[part.start]}")
            elif axis == EXAMPLE or part.stop - part.start < size:
                words.append(f"{noun}s {numbers[part.start]}–{numbers[part.stop - 1]}")
        return ", ".join(words)

    def _holds_tokens(self, covered: Box) -> bool:
        """Return whether a file or a chunk must exist: all-zero ones may be absent, and padding is all they can be.

        It covers tokens when some example in it has tokens among its positions; for attention both the
        query and the key must be tokens, and a decoder's keys not later than its queries.
        """
        part = dict(zip(self.spec.axes, covered, strict=True))
        slots = self.slots(self.position_axis)
        if part[EXAMPLE].stop > len(slots.spans.start):
            raise DamagedRunError(f"{self.folder} has more rows than the token table. {RESTORE}")
        choices = CHOICE in part and slots.spans.start.ndim > 1
        rows = (part[EXAMPLE], part[CHOICE]) if choices else (part[EXAMPLE],)
        at = slots.at(rows)[..., part[self.position_axis]]
        if KEY not in part:
            return bool((at >= 0).any())
        keys = self.slots(KEY).spans
        first = np.maximum(keys.start[rows], part[KEY].start)[..., None]
        last = np.minimum(keys.stop[rows], part[KEY].stop)[..., None] - 1
        if self.causal:
            last = np.minimum(last, at)
        return bool(((at >= 0) & (first <= last)).any())

    @property
    def causal(self) -> bool:
        """Whether no query attends to a later key: the self-attention of a decoder."""
        return self.spec.causal

    def _damage(self, box: Box, error: BaseException) -> DamagedRunError:
        """Find the first row of a box that does not decode, or else the first file, and name it."""
        for path, covered in self.files(box):
            part = tuple(slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(box, covered, strict=True))
            rows = [(slice(row, row + 1), *part[1:]) for row in range(part[0].start, part[0].stop)]
            # Rows may all be well in a file that is not: damage to room that no example uses.
            for one in (*rows, covered):
                try:
                    self._values(one)
                except DECODE_ERRORS as reason:
                    return DamagedRunError(f"{path} is damaged ({self.place(one)}): {reason}. {RESTORE}")
        return DamagedRunError(f"{self.folder} is damaged ({self.place(box)}): {error}. {RESTORE}")


def is_stored(run: Path, spec: ArraySpec) -> bool:
    """Return whether the run folder has this array, in Zarr format 3 or 2, or something strange in its place."""
    folder, plain = run / spec.group / spec.key, PlainFolder(run)
    try:
        return any(plain.has(folder / name) for name in ("zarr.json", ".zarray"))
    except DamagedRunError:  # to be said by whoever opens it
        return True


def open_array(
    run: Path,
    spec: ArraySpec,
    slots: Callable[[str], Slots],
    still: StillThere,
    *,
    dims: Dims | None = None,
    expected: FileRecord | None = None,
) -> StoredArray:
    """Open one array of a run for reading.

    Args:
        run: The run folder.
        spec: The array's row of the schema table.
        slots: Gives what stands on one of the array's position axes when asked.
        still: Finds that the run was replaced.
        dims: The sizes of its side of the model, where the run is of format 1.1.
        expected: Size and CRC-32C of the array's `zarr.json`, where the run has a manifest.

    Raises:
        DamagedRunError: The array's metadata is changed, unreadable or not of this format.
    """
    folder, plain = run / spec.group / spec.key, PlainFolder(run)
    path = folder / "zarr.json"
    if expected is not None and (problem := problem_of(plain, path, expected)) is not None:
        raise DamagedRunError(f"{path} is damaged: it is not the file the manifest names ({problem}). {RESTORE}")
    try:
        array = open_zarr(plain, folder)
    except (*DECODE_ERRORS, AttributeError, json.JSONDecodeError) as error:
        raise DamagedRunError(f"{folder} has damaged metadata: {error}. {RESTORE}") from error
    problem = _layout_problem(array, spec) or _size_problem(array.shape, spec, plain.size(run / TOKENS_FILE))
    if problem:
        raise DamagedRunError(f"{folder} is not the array {spec.name}: {problem}. {RESTORE}")
    chunk_bytes = prod(array.chunks) * array.dtype.itemsize
    return StoredArray(spec, folder, array, shard_reader(array, folder, plain), plain, chunk_bytes, slots, still, dims)


def _layout_problem(array: "Array[Any]", spec: ArraySpec) -> str | None:
    if array.ndim != len(spec.axes):
        return f"expected {len(spec.axes)} axes {spec.axes}, got shape {array.shape}"
    if np.dtype(array.dtype) not in (np.dtype(np.float16), np.dtype(np.float32)):
        return f"expected float16 or float32, got {array.dtype}"
    if array.fill_value not in (0, None):
        return f"expected fill value 0, got {array.fill_value}"
    if 0 in (*array.chunks, *(array.shards or ())):
        return f"chunks of shape {array.chunks}"
    return None


def _size_problem(shape: tuple[int, ...], spec: ArraySpec, table_bytes: int | None) -> str | None:
    """Return which axis is longer than any model's, or than the token table's bytes can tell of."""
    most = dict(_MOST)
    if table_bytes is not None:
        positions = 4096 + _POSITIONS_PER_BYTE * table_bytes
        most |= {EXAMPLE: 1000 + table_bytes, **dict.fromkeys((POSITION, QUERY, KEY, SOURCE), positions)}
    for axis, size in zip(spec.axes, shape, strict=True):
        if size > most.get(axis, _WIDEST):
            return f"shape {shape}, but the run cannot have more than {most.get(axis, _WIDEST)} along {axis}"
    return None
