"""The shard files of one block, written example by example as batches finish, in whatever order.

A Zarr shard is its inner chunks one after the other and an index behind them (`sharding_indexed`): where each chunk
begins and how long it is. So a block needs no room in memory: an example's chunk is appended when its batch is done,
and the index closes the file. Only where several examples share a chunk are they kept until all of them are there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
from crc32c import crc32c
from numcodecs import Zstd  # type: ignore[import-untyped]

from decision_traces.format.arrays import ArraySpec
from decision_traces.format.stages import CHOICE
from decision_traces.pieces import Pieces
from decision_traces.store.files.folder import FileRecord
from decision_traces.store.shards.appender import Appender
from decision_traces.store.shards.frames import CRC_BYTES, Frame, FrameMaker
from decision_traces.store.writing.layout import RunLayout

_ABSENT: Final = np.iinfo(np.uint64).max
LEVEL: Final = 1


@dataclass(slots=True)
class _Group:
    """Examples that share a chunk, until all of them are there."""

    data: np.ndarray
    waiting: int


@dataclass(slots=True)
class ShardFile:
    """One shard file in the making; it is there, empty.

    Attributes:
        path: The file.
        spec: The array it belongs to.
        layout: What the run holds.
        rows: Examples in the block.
        frames: Makes the frames of chunks with one example.
        appender: What it is written through.
    """

    path: Path
    spec: ArraySpec
    layout: RunLayout
    rows: int
    frames: FrameMaker
    appender: Appender
    _shared: int = field(init=False)  # examples in a chunk
    _index: np.ndarray = field(init=False)
    _size: int = 0
    _crc: int = 0
    _rest: bytes = b""  # behind the last page that was written
    _groups: dict[int, _Group] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shard, chunk = self.layout.shard(self.spec), self.layout.chunk(self.spec)
        self._shared = chunk[0]
        chunks = prod(-(-whole // part) for whole, part in zip(shard, chunk, strict=True))
        self._index = np.full((chunks, 2), _ABSENT, np.uint64)

    @property
    def _choices(self) -> int:
        return self.layout.dims.n_choices if CHOICE in self.spec.axes else 1

    def put(self, pieces: Pieces) -> None:
        """Append the chunks of some rows."""
        self._rest = self.appender.append(self.path, self._rest, self._chunks(pieces))

    def _chunks(self, pieces: Pieces) -> Iterator[Frame]:
        """Yield the chunks that some rows complete, and enter each into the index."""
        for row, piece in pieces.by_row().items():
            if self._shared > 1:
                yield from self._collected(row, piece)
            else:
                yield self._entered(row, self.frames.frame(piece))

    def _collected(self, row: int, piece: np.ndarray) -> Iterator[Frame]:
        """Put a row where its chunk is collected, and yield the chunk once it is complete."""
        shared = self._shared
        example, choice = divmod(row, self._choices)
        number = example // shared * self._choices + choice
        if number not in self._groups:
            room = self.layout.room(self.spec)
            members = min(shared, self.rows - example // shared * shared)
            self._groups[number] = _Group(np.zeros((shared, *room), self.layout.dtype), members)
        group = self._groups[number]
        group.data[example % shared][tuple(slice(n) for n in piece.shape)] = piece
        group.waiting -= 1
        if not group.waiting:
            yield self._entered(number, _compressed(self._groups.pop(number).data))

    def _entered(self, number: int, chunk: Frame) -> Frame:
        """Put a chunk, which is written next, into the index; return it."""
        began, crc = self._size, self._crc
        for part in chunk:
            crc = crc32c(part, crc)
            self._size += len(part)
        self._crc = crc
        self._index[number] = began, self._size - began
        return chunk

    def close(self) -> FileRecord:
        """Write what is left and the index; return size and CRC-32C of the file."""
        numbers = sorted(self._groups)  # examples of no tokens never came
        left = (self._entered(number, _compressed(self._groups.pop(number).data)) for number in numbers)
        rest = self.appender.append(self.path, self._rest, left)
        index = self._index.astype("<u8").tobytes()
        index += crc32c(index).to_bytes(CRC_BYTES, "little")
        self.appender.finish(self.path, rest + index)
        return self._size + len(index), f"{crc32c(index, self._crc):08x}"


def frame_maker(layout: RunLayout, spec: ArraySpec) -> FrameMaker:
    """Return what makes the frames of an array's chunks."""
    whole = layout.dims_of(spec).positions == "all"
    return FrameMaker(layout.room(spec), causal=spec.causal and whole)


def _compressed(chunk: np.ndarray) -> Frame:
    frame: bytes = bytes(Zstd(level=LEVEL).encode(np.ascontiguousarray(chunk)))
    return [frame, crc32c(frame).to_bytes(CRC_BYTES, "little")]
