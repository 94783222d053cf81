"""Reading shard files chunk by chunk, every chunk against its checksum.

A run's own arrays are Zarr shards of Zstandard chunks with a CRC-32C each (`shards` writes them). What an accessor asks
for is one chunk, or the chunks of many examples at one layer; here that is one read, one checksum and one decoding for
each, straight into the result. Arrays of any other make go through Zarr itself.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
from crc32c import crc32c
from numcodecs import Zstd  # type: ignore[import-untyped]
from zarr import Array

from decision_traces.folders.plain import PlainFolder
from decision_traces.store.shards.frames import CRC_BYTES, content_size, stored_bytes
from decision_traces.store.shards.places import LocalSource, Source, SourceFile, Stamp

_ABSENT: Final = np.iinfo(np.uint64).max
_FILES: Final = 512

Box = tuple[slice, ...]
"""One slice with start and stop per axis."""

Absent = Callable[[Box], None]
"""Is told what a chunk covers that its file does not hold; raises ValueError where it should be there."""


@dataclass(slots=True)
class _Shard:
    """A shard file that was looked into.

    Attributes:
        stamp: Size and times of the file when its index was read; another stamp is another file.
        index: (chunks, 2): where each chunk begins and how long it is.
        verified: (chunks,): which chunks have been found to agree with their checksum.
    """

    stamp: Stamp
    index: np.ndarray
    verified: np.ndarray


@dataclass(slots=True)
class ShardReader:
    """Reads the shards of one array.

    Attributes:
        shape: Of the array.
        shard: Of one file.
        chunk: Of one chunk.
        dtype: Of the numbers.
        folder: The array's folder.
        source: Opens its files.
        names: Gives the name of a shard file by its place in the grid.
    """

    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    dtype: np.dtype[Any]
    folder: Path
    source: Source
    names: Any
    _shards: OrderedDict[Path, _Shard] = field(default_factory=OrderedDict)

    def read(self, box: Box, absent: Absent | None = None) -> np.ndarray:
        """Return a box of the array.

        Args:
            box: Which.
            absent: Is told of chunks that are not there, which hold zeros; None where every chunk of zeros is left out.

        Raises:
            ValueError: A chunk does not agree with its checksum, or is not as long as the index says.
            RuntimeError: A chunk does not decode.
            OSError: A file cannot be read. A file that is not there holds zeros.
        """
        result = np.zeros([s.stop - s.start for s in box], self.dtype)
        for path, origin, inside in self._files(box):
            opened = self.source.find(path)
            if opened is None:
                continue
            with opened as file:
                shard = self._shard(path, file)
                for number, corner in self._chunks(origin, inside):
                    if int(shard.index[number, 0]) != _ABSENT:
                        self._fill(result, box, corner, file, shard, number)
                    elif absent is not None:
                        absent(self._covered(corner))
        return result

    def rows(self, box: Box, at: np.ndarray, absent: Absent) -> np.ndarray | None:
        """Return one slot of each example, reading no more of a chunk that was verified before than that slot.

        Args:
            box: Examples, and one index of every other axis but the last two, which are slots and width, whole.
            at: (examples,) the slot to read; -1 for none.
            absent: As for `read`.

        Returns:
            (examples, width), zero where there is none; or None if a chunk is not one example whole, or not stored as
            it is.
        """
        if prod(self.chunk[:-2]) != 1 or self.chunk[-2:] != self.shape[-2:]:
            return None
        width = self.chunk[-1] * self.dtype.itemsize
        result = np.zeros((len(at), self.chunk[-1]), self.dtype)
        lines = result.view(np.uint8)
        for path, origin, inside in self._files(box):
            opened = self.source.find(path)
            if opened is None:
                continue
            with opened as file:
                shard = self._shard(path, file)
                for number, corner in self._chunks(origin, inside):
                    row = corner[0] - box[0].start
                    if at[row] < 0:
                        continue
                    if int(shard.index[number, 0]) == _ABSENT:
                        absent(self._covered(corner))
                        continue
                    if not shard.verified[number]:
                        self._frame(file, shard, number)
                    place, start = int(shard.index[number, 0]), int(at[row]) * width
                    line = stored_bytes(file.read, place, start, width)
                    if line is None:
                        return None
                    lines[row] = np.frombuffer(line, np.uint8)
        return result

    # -- where things are -----------------------------------------------------------------------------------

    def _files(self, box: Box) -> Iterator[tuple[Path, tuple[int, ...], Box]]:
        """Yield each file of a box, where it begins in the array, and the part of the box inside it."""
        ranges = [range(s.start // n, -(-s.stop // n)) for s, n in zip(box, self.shard, strict=True)]
        for place in product(*ranges):
            origin = tuple(i * n for i, n in zip(place, self.shard, strict=True))
            inside = tuple(
                slice(max(s.start, o), min(s.stop, o + n)) for s, o, n in zip(box, origin, self.shard, strict=True)
            )
            yield self.folder / self.names(place), origin, inside

    def _chunks(self, origin: tuple[int, ...], inside: Box) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Yield the number in its file of each chunk that a part of a file touches, and where it begins."""
        grid = [-(-s // c) for s, c in zip(self.shard, self.chunk, strict=True)]
        first = [(s.start - o) // c for s, o, c in zip(inside, origin, self.chunk, strict=True)]
        last = [-(-(s.stop - o) // c) for s, o, c in zip(inside, origin, self.chunk, strict=True)]
        for place in product(*(range(a, b) for a, b in zip(first, last, strict=True))):
            number = 0
            for i, n in zip(place, grid, strict=True):
                number = number * n + i
            yield number, tuple(o + i * c for o, i, c in zip(origin, place, self.chunk, strict=True))

    def _covered(self, corner: tuple[int, ...]) -> Box:
        """Return what the chunk that begins at a corner holds of the array."""
        sizes = zip(corner, self.chunk, self.shape, strict=True)
        return tuple(slice(start, min(start + length, size)) for start, length, size in sizes)

    def _shard(self, path: Path, file: SourceFile) -> _Shard:
        """Return what is known of a file; its index is read again when the file is another one."""
        stamp = file.stamp
        known = self._shards.get(path)
        if known is None or known.stamp != stamp:
            index = self._index(file, stamp[0])
            known = self._shards[path] = _Shard(stamp, index, np.zeros(len(index), bool))
            if len(self._shards) > _FILES:
                self._shards.popitem(last=False)
        self._shards.move_to_end(path)
        return known

    def _index(self, file: SourceFile, size: int) -> np.ndarray:
        count = prod(-(-s // c) for s, c in zip(self.shard, self.chunk, strict=True))
        length = 16 * count + CRC_BYTES
        if size < length:
            raise ValueError(f"the file has {size} bytes, too few for its index of {length}")
        data = file.read(size - length, length)
        _check(data, "the index")
        index = np.frombuffer(data[:-CRC_BYTES], "<u8").reshape(count, 2)
        offsets, lengths = index[index[:, 0] != _ABSENT].T
        end = np.uint64(size - length)
        if (offsets > end).any() or (lengths > end - offsets).any():
            raise ValueError("the index points past the end of the file")
        return index

    # -- chunks ---------------------------------------------------------------------------------------------

    def _frame(self, file: SourceFile, shard: _Shard, number: int) -> bytes:
        """Return the bytes of a chunk, checked against their checksum."""
        offset, length = (int(n) for n in shard.index[number])
        data = file.read(offset, length)
        if not shard.verified[number]:
            _check(data, f"chunk {number}")
            shard.verified[number] = True
        return data

    def _fill(
        self, result: np.ndarray, box: Box, corner: tuple[int, ...], file: SourceFile, shard: _Shard, number: int
    ) -> None:
        """Decode a chunk and put what the box has of it in its place."""
        sizes = zip(corner, self.chunk, box, strict=True)
        common = [(max(c, s.start), min(c + n, s.stop), c, s.start) for c, n, s in sizes]
        target = result[tuple(slice(a - start, b - start) for a, b, _, start in common)]
        frame = self._frame(file, shard, number)
        told, expected = content_size(memoryview(frame)[:-CRC_BYTES]), prod(self.chunk) * self.dtype.itemsize
        if told != expected:  # memory is taken for what is there, and none of it keeps what stood there before
            raise ValueError(f"chunk {number} holds {told or 'unknown'} bytes where {expected} belong")
        whole = target.shape == self.chunk and target.flags.c_contiguous
        room = target if whole else np.empty(self.chunk, self.dtype)
        decoded = Zstd().decode(memoryview(frame)[:-CRC_BYTES], out=room)
        if not whole:
            del decoded
            target[...] = room[tuple(slice(a - c, b - c) for a, b, c, _ in common)]


def shard_reader(array: "Array[Any]", folder: Path, plain: PlainFolder) -> ShardReader | None:
    """Return what reads an array's shards, or None if they are not of the kind that this package writes."""
    codecs: Any = array.metadata.to_dict().get("codecs")
    if not isinstance(codecs, list | tuple) or [c["name"] for c in codecs] != ["sharding_indexed"]:
        return None
    told: Mapping[str, Any] = codecs[0]["configuration"]
    inner = [c["name"] for c in told["codecs"]]
    index = [c["name"] for c in told["index_codecs"]]
    little = all(
        c.get("configuration", {}).get("endian", "little") == "little"
        for c in (*told["codecs"], *told["index_codecs"])
        if c["name"] == "bytes"
    )
    ours = (
        inner == ["bytes", "zstd", "crc32c"]
        and index == ["bytes", "crc32c"]
        and told.get("index_location", "end") == "end"
        and little
    )
    if not ours or array.shards is None or array.fill_value not in (0, None):
        return None
    name = array.metadata.encode_chunk_key
    return ShardReader(array.shape, array.shards, array.chunks, np.dtype(array.dtype), folder, LocalSource(plain), name)


def _check(data: bytes, what: str) -> None:
    found = crc32c(memoryview(data)[:-CRC_BYTES])
    told = int.from_bytes(data[-CRC_BYTES:], "little")
    if found != told:
        raise ValueError(f"{what} does not agree with its checksum (CRC-32C {found:08x}, stored {told:08x})")
