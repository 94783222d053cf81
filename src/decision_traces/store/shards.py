"""The shard files of one block, written example by example as batches finish, in whatever order.

A Zarr shard is its inner chunks one after the other and an index behind them (`sharding_indexed`): where each chunk
begins and how long it is. So a block needs no room in memory: an example's chunk is appended when its batch is done,
and the index closes the file. Only where several examples share a chunk are they kept until all of them are there.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from io import FileIO
from math import prod
from pathlib import Path
from typing import Final

import numpy as np
from crc32c import crc32c
from numcodecs import Zstd  # type: ignore[import-untyped]

from decision_traces.pieces import Pieces
from decision_traces.schema import ATTN, CHOICE, ArraySpec
from decision_traces.store.folder import FileRecord
from decision_traces.store.frames import CRC_BYTES, Frame, FrameMaker
from decision_traces.store.layout import RunLayout

_ABSENT: Final = np.iinfo(np.uint64).max
LEVEL: Final = 1
_MOST_PARTS: Final = 512  # of one call; Linux takes 1,024


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
    """

    path: Path
    spec: ArraySpec
    layout: RunLayout
    rows: int
    frames: FrameMaker
    _index: np.ndarray = field(init=False)
    _size: int = 0
    _crc: int = 0
    _groups: dict[int, _Group] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shard, chunk = self.layout.shard(self.spec), self.layout.chunk(self.spec)
        chunks = prod(-(-whole // part) for whole, part in zip(shard, chunk, strict=True))
        self._index = np.full((chunks, 2), _ABSENT, np.uint64)

    @property
    def _choices(self) -> int:
        return self.layout.dims.n_choices if CHOICE in self.spec.axes else 1

    def put(self, pieces: Pieces) -> None:
        """Append the chunks of some rows."""
        shared = self.layout.chunk(self.spec)[0]
        with self.path.open("ab", buffering=0) as file:
            waiting = Frame()
            for row, piece in pieces.by_row().items():
                if shared > 1:
                    self._collect(file, row, piece, shared)
                    continue
                frame = self.frames.frame(piece)
                self._enter(row, frame)
                waiting += frame
                if not self.frames.stays(piece):  # the next is made in its place
                    write_all(file, waiting)
                    waiting.clear()
            write_all(file, waiting)

    def _collect(self, file: FileIO, row: int, piece: np.ndarray, shared: int) -> None:
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
            self._append(file, number, _compressed(self._groups.pop(number).data))

    def _append(self, file: FileIO, number: int, chunk: Frame) -> None:
        self._enter(number, chunk)
        write_all(file, chunk)

    def _enter(self, number: int, chunk: Frame) -> None:
        """Put a chunk, which is written next, into the index."""
        size = sum(map(len, chunk))
        for part in chunk:
            self._crc = crc32c(part, self._crc)
        self._index[number] = self._size, size
        self._size += size

    def close(self) -> FileRecord:
        """Write what is left and the index; return size and CRC-32C of the file."""
        with self.path.open("ab", buffering=0) as file:
            for number in sorted(self._groups):  # examples of no tokens never came
                self._append(file, number, _compressed(self._groups[number].data))
            self._groups.clear()
            index = self._index.astype("<u8").tobytes()
            index += crc32c(index).to_bytes(CRC_BYTES, "little")
            write_all(file, [index])
        return self._size + len(index), f"{crc32c(index, self._crc):08x}"


def frame_maker(layout: RunLayout, spec: ArraySpec) -> FrameMaker:
    """Return what makes the frames of an array's chunks."""
    whole = layout.dims_of(spec).positions == "all"
    return FrameMaker(layout.room(spec), causal=spec.stage == ATTN and spec.side == "dec" and whole)


def write_all(file: FileIO, parts: Sequence[bytes | memoryview]) -> None:
    """Write all of it, in one call where the system can, to an unbuffered file, which may take less at a time."""
    for start in range(0, len(parts), _MOST_PARTS):
        some = parts[start : start + _MOST_PARTS]
        written = os.writev(file.fileno(), some) if hasattr(os, "writev") else 0
        if written < sum(map(len, some)):
            rest = memoryview(b"".join(bytes(part) for part in some))[written:]
            while len(rest):
                rest = rest[file.write(rest) :]


def _compressed(chunk: np.ndarray) -> Frame:
    frame: bytes = bytes(Zstd(level=LEVEL).encode(np.ascontiguousarray(chunk)))
    return [frame, crc32c(frame).to_bytes(CRC_BYTES, "little")]
