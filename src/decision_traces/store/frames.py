"""Zstandard frames that store: the numbers of an example as they are, and its padding as "so many zeros".

Activations hardly compress, but most of an example's room on disk can be padding, and half of a decoder's attention is
the empty triangle above its diagonal. A Zstandard frame is a series of blocks (RFC 8878, section 3.1.1): a *raw* block
is a copy of its content, an *RLE* block one byte and how often it stands there. A frame of those two kinds is read by
every Zstandard decoder, costs no more than copying the tokens, and takes their size. What compression would gain beside
that, and what it costs, is measured in `docs/performance.md`.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from typing import Final

import numpy as np
from crc32c import crc32c

_MAGIC: Final = bytes.fromhex("28b52ffd")
# Frame header descriptor: the size of the content is given in eight bytes; no dictionary, no checksum of its own.
# Then the window: 128 KiB, the least that allows the largest blocks.
_DESCRIPTOR: Final = bytes([0xC0, 0x38])
BLOCK_BYTES: Final = 128 << 10  # most content of a block
_RAW, _RLE, _LAST = 0, 1, 1
_PLANS: Final = 3
CRC_BYTES: Final = 4
Frame = list[bytes | memoryview]
"""A frame in pieces, one behind the other, so that large numbers are written from where they are."""


@dataclass(frozen=True, slots=True)
class _Copy:
    """A stretch of an example's numbers: `length` bytes of `line` from byte `start`, at `target` of the segment."""

    target: int
    line: int
    start: int
    length: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """The frame of all pieces of one shape: headers and zeros are there, the numbers are filled in.

    Attributes:
        buffer: The whole frame, and room for the checksum behind it.
        segments: (planes, bytes of one plane's blocks): the part of the frame that changes, a plane being one head.
        copies: What goes where in every segment.
        between: What stands in front of every copy, and behind the last, where there is one plane.
    """

    buffer: np.ndarray
    segments: np.ndarray
    copies: tuple[_Copy, ...]
    between: tuple[bytes, ...]

    def filled(self, lines: np.ndarray) -> Frame:
        """Return the frame with the numbers copied into it; (planes, lines, bytes)."""
        for copy in self.copies:
            stop = copy.start + copy.length
            self.segments[:, copy.target : copy.target + copy.length] = lines[:, copy.line, copy.start : stop]
        frame = self.buffer[:-CRC_BYTES].data
        return [frame, _checksum(crc32c(frame))]

    def around(self, line: np.ndarray) -> Frame:
        """Return the frame around the numbers of one plane, which stay where they are; (bytes,)."""
        crc, frame, bytes_ = 0, Frame(), line.data
        for before, copy in zip(self.between, self.copies, strict=False):
            numbers = bytes_[copy.start : copy.start + copy.length]
            crc = crc32c(numbers, crc32c(before, crc))
            frame += [before, numbers]
        return [*frame, self.between[-1], _checksum(crc32c(self.between[-1], crc))]


def _checksum(crc: int) -> bytes:
    return crc.to_bytes(CRC_BYTES, "little")


class FrameMaker:
    """Makes the frames of one array.

    A frame is valid as long as the numbers it was made of where it `stays`, else until the next of its shape is made.
    """

    def __init__(self, chunk: tuple[int, ...], *, causal: bool = False) -> None:
        """Prepare.

        Args:
            chunk: Room of one example on disk: (slots, width) or (heads, slots, width).
            causal: Whether no slot holds anything past its own number (a decoder's self-attention).
        """
        self._planes, (self._slots, self._width) = (chunk[0] if len(chunk) > 2 else 1), chunk[-2:]
        self._causal = causal
        self._plans: OrderedDict[tuple[int, ...], _Plan] = OrderedDict()

    def frame(self, piece: np.ndarray) -> Frame:
        """Return the frame of an example's chunk with its CRC-32C behind it, as Zarr's `crc32c` codec puts it.

        Args:
            piece: (n, w) or (heads, n, w): what fills the top left corner of the chunk; the rest is zero.
        """
        planes = piece if piece.ndim > 2 else piece[None]
        causal = self._causal and planes.shape[1] == planes.shape[2] and not _above_diagonal(planes)
        plan = self._plan(planes.shape, planes.itemsize, causal)
        if causal or planes.shape[2] != self._width:
            return plan.filled(planes.view(np.uint8))
        lines = planes.reshape(len(planes), 1, -1).view(np.uint8)
        return plan.around(lines[0, 0]) if self.stays(piece) else plan.filled(lines)

    def stays(self, piece: np.ndarray) -> bool:
        """Return whether the frame of a piece is put around its numbers, which are not copied."""
        return self._planes == 1 and not self._causal and piece.shape[-1] == self._width

    def _plan(self, shape: tuple[int, ...], itemsize: int, causal: bool) -> _Plan:
        key = (*shape, itemsize, causal)
        if key not in self._plans:
            if len(self._plans) >= _PLANS:
                self._plans.popitem(last=False)
            self._plans[key] = self._make(shape, itemsize, causal)
        self._plans.move_to_end(key)
        return self._plans[key]

    def _make(self, shape: tuple[int, ...], itemsize: int, causal: bool) -> _Plan:
        planes, n, width = shape
        line, room = self._width * itemsize, self._slots * self._width * itemsize
        stretches = _lines(n, width * itemsize, line, room, itemsize if causal else 0)
        segment, copies = _segment(stretches)
        header = _MAGIC + _DESCRIPTOR + (self._planes * room).to_bytes(8, "little")
        rest = b"".join(_zeros((self._planes - planes) * room)) + _block(_RAW, 0, last=True)
        frame = header + segment * planes + rest + bytes(CRC_BYTES)
        buffer = np.frombuffer(bytearray(frame), np.uint8)
        changing = buffer[len(header) : len(header) + len(segment) * planes]
        ends = [0, *(len(header) + copy.target + copy.length for copy in copies)]
        starts = [*(len(header) + copy.target for copy in copies), len(frame) - CRC_BYTES]
        between = tuple(frame[end:start] for end, start in zip(ends, starts, strict=True)) if self._planes == 1 else ()
        return _Plan(buffer, changing.reshape(planes, len(segment)), copies, between)


def _above_diagonal(planes: np.ndarray) -> bool:
    """Return whether some query attends to the key behind its own: then it is not causal after all."""
    return bool(np.diagonal(planes, 1, axis1=1, axis2=2).any() or planes[:, :1, 1:].any())


def _lines(n: int, given: int, line: int, room: int, step: int) -> Iterator[tuple[int, int, int]]:
    """Yield (line, bytes of it that are stored, zeros behind them) for one plane of `room` bytes.

    Args:
        n: Lines with numbers.
        given: Bytes of each of these lines that are stored.
        line: Bytes of a line on disk.
        room: Bytes of a plane on disk.
        step: Where not 0, line i is stored up to its first (i + 1) times `step` bytes alone.
    """
    if step == 0 and given == line:
        yield 0, n * line, room - n * line
        return
    for i in range(n):
        stored = (i + 1) * step if step else given
        yield i, stored, line - stored + (room - n * line if i == n - 1 else 0)


def _segment(stretches: Iterator[tuple[int, int, int]]) -> tuple[bytes, tuple[_Copy, ...]]:
    """Return the blocks of one plane, with zeros where numbers will be, and what is to be copied where."""
    parts: list[bytes] = []
    copies: list[_Copy] = []
    at = 0
    for line, stored, zeros in stretches:
        for start in range(0, stored, BLOCK_BYTES):
            length = min(BLOCK_BYTES, stored - start)
            parts += [_block(_RAW, length), bytes(length)]
            copies.append(_Copy(at + 3, line, start, length))
            at += 3 + length
        blocks = list(_zeros(zeros))
        parts += blocks
        at += sum(map(len, blocks))
    return b"".join(parts), tuple(copies)


def _zeros(count: int) -> Iterator[bytes]:
    """Yield the blocks that stand for so many zeros."""
    for start in range(0, count, BLOCK_BYTES):
        yield _block(_RLE, min(BLOCK_BYTES, count - start)) + b"\0"


def _block(kind: int, size: int, *, last: bool = False) -> bytes:
    """Return the header of a block: three bytes, little-endian: last block or not, kind, size."""
    return (int(last) | kind << 1 | size << 3).to_bytes(3, "little")


def stored_bytes(file: FileIO, frame: int, start: int, length: int) -> bytes | None:
    """Return a stretch of a frame's content from a file, without reading the rest of it.

    Args:
        file: Where the frame is.
        frame: Where in the file it begins.
        start: First byte of the content.
        length: How many.

    Returns:
        The bytes; None if the frame is not one of those that `FrameMaker` makes.
    """
    file.seek(frame)
    if file.read(len(_MAGIC) + len(_DESCRIPTOR)) != _MAGIC + _DESCRIPTOR:
        return None
    at = frame + len(_MAGIC) + len(_DESCRIPTOR) + 8
    content, found = 0, b""
    while len(found) < length:
        file.seek(at)
        header = int.from_bytes(file.read(3), "little")
        kind, size = header >> 1 & 3, header >> 3
        if kind not in {_RAW, _RLE} or (header & 1 and content + size < start + length):
            return None
        if content + size > start:
            skip = max(0, start + len(found) - content)
            take = min(size - skip, length - len(found))
            if kind == _RAW:
                file.seek(at + 3 + skip)
                found += file.read(take)
            else:
                file.seek(at + 3)
                found += file.read(1) * take
        content += size
        at += 3 + (size if kind == _RAW else 1)
    return found
