"""The shard files of one block, written example by example as batches finish, in whatever order.

A Zarr shard is its inner chunks one after the other and an index behind them (`sharding_indexed`): where each chunk
begins and how long it is. So a block needs no room in memory: an example's chunk is appended when its batch is done,
and the index closes the file. Only where several examples share a chunk are they kept until all of them are there.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Final

import numpy as np
from crc32c import crc32c
from numcodecs import Zstd  # type: ignore[import-untyped]

from decision_traces.pieces import Pieces
from decision_traces.store.shards.frames import CRC_BYTES, Frame, FrameMaker
from decision_traces.store.shards.places import SinkFile
from decision_traces.store.shards.shape import ShardShape

_ABSENT: Final = np.iinfo(np.uint64).max
LEVEL: Final = 1


@dataclass(slots=True)
class _Group:
    """Examples that share a chunk, until all of them are there."""

    data: np.ndarray
    waiting: int


@dataclass(slots=True)
class ShardFile:
    """One shard file in the making.

    Attributes:
        file: Where its bytes go.
        shape: What it is like.
        rows: Examples in the block.
        frames: Makes the frames of chunks with one example.
    """

    file: SinkFile
    shape: ShardShape
    rows: int
    frames: FrameMaker
    _shared: int = field(init=False)  # examples in a chunk
    _index: np.ndarray = field(init=False)
    _size: int = 0
    _crc: int = 0
    _groups: dict[int, _Group] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._shared = self.shape.chunk[0]
        chunks = prod(-(-whole // part) for whole, part in zip(self.shape.shard, self.shape.chunk, strict=True))
        self._index = np.full((chunks, 2), _ABSENT, np.uint64)

    def put(self, pieces: Pieces) -> None:
        """Append the chunks of some rows."""
        self.file.append(self._chunks(pieces))

    def _chunks(self, pieces: Pieces) -> Iterator[Frame]:
        """Yield the chunks that some rows complete, and enter each into the index."""
        for row, piece in pieces.by_row().items():
            if self._shared > 1:
                yield from self._collected(row, piece)
            else:
                yield self._entered(row, self.frames.frame(piece))

    def _collected(self, row: int, piece: np.ndarray) -> Iterator[Frame]:
        """Put a row where its chunk is collected, and yield the chunk once it is complete."""
        shared, each = self._shared, self.shape.rows_each
        example, choice = divmod(row, each)
        number = example // shared * each + choice
        if number not in self._groups:
            members = min(shared, self.rows - example // shared * shared)
            self._groups[number] = _Group(np.zeros((shared, *self.shape.room), self.shape.dtype), members)
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

    def close(self) -> tuple[int, str]:
        """Write what is left and the index; return size and CRC-32C of the file."""
        numbers = sorted(self._groups)  # examples of no tokens never came
        left = (self._entered(number, _compressed(self._groups.pop(number).data)) for number in numbers)
        self.file.append(left)
        index = self._index.astype("<u8").tobytes()
        index += crc32c(index).to_bytes(CRC_BYTES, "little")
        self.file.finish(index)
        return self._size + len(index), f"{crc32c(index, self._crc):08x}"


def _compressed(chunk: np.ndarray) -> Frame:
    frame: bytes = bytes(Zstd(level=LEVEL).encode(np.ascontiguousarray(chunk)))
    return [frame, crc32c(frame).to_bytes(CRC_BYTES, "little")]
