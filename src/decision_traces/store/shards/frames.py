"""Zstandard frames that store: the numbers of an example as they are, and its padding as "so many zeros".

Activations hardly compress, but most of an example's room on disk can be padding, and half of a decoder's attention is
the empty triangle above its diagonal. A Zstandard frame is a series of blocks (RFC 8878, section 3.1.1): a *raw* block
is a copy of its content, an *RLE* block one byte and how often it stands there. A frame of those two kinds is read by
every Zstandard decoder, costs no more than copying the tokens, and takes their size. What compression would gain beside
that, and what it costs, is measured in `docs/performance.md`.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from crc32c import crc32c

_MAGIC: Final = bytes.fromhex("28b52ffd")
# Frame header descriptor: the size of the content is given in eight bytes; no dictionary, no checksum of its own.
# Then the window: 128 KiB, the least that allows the largest blocks.
_DESCRIPTOR: Final = bytes([0xC0, 0x38])
BLOCK_BYTES: Final = 128 << 10  # most content of a block
_RAW, _RLE = 0, 1
CRC_BYTES: Final = 4
_ROOM: Final = 16 << 20
"""Bytes of frames that a `FrameMaker` keeps to fill them again; one is kept however large it is.

It holds one layer's attention of a batch on a CPU, up to 32 heads and 256 tokens.
"""
Frame = list[bytes | memoryview]
"""A frame in pieces, one behind the other, so that large numbers are written from where they are."""


@dataclass(frozen=True, slots=True)
class _Numbers:
    """The content of a raw block: `length` bytes of `line` from byte `start`."""

    line: int
    start: int
    length: int


class _Around:
    """What stands around the numbers of one plane, which stay where they are."""

    def __init__(self, parts: Iterable[bytes | _Numbers]) -> None:
        self._between: list[bytes] = [b""]
        self._numbers: list[slice] = []
        for part in parts:
            if isinstance(part, bytes):
                self._between[-1] += part
            else:
                self._numbers.append(slice(part.start, part.start + part.length))
                self._between.append(b"")

    def frame(self, plane: np.ndarray) -> Frame:
        """Return the frame around the bytes of a plane; (bytes,)."""
        crc, frame, bytes_ = 0, Frame(), plane.data
        for before, at in zip(self._between, self._numbers, strict=False):
            numbers = bytes_[at]
            crc = crc32c(numbers, crc32c(before, crc))
            frame += [before, numbers]
        return [*frame, self._between[-1], _checksum(crc32c(self._between[-1], crc))]


class _Filled:
    """A frame whose headers and zeros are there: numbers are copied in, those of all planes at a time."""

    def __init__(self, header: bytes, plane: Iterable[bytes | _Numbers], planes: int, rest: bytes) -> None:
        parts, at = [], 0
        self._copies: list[tuple[slice, int, slice]] = []  # bytes of a plane's blocks ← bytes of a line
        for part in plane:
            if isinstance(part, _Numbers):
                place = slice(at, at + part.length), part.line, slice(part.start, part.start + part.length)
                self._copies.append(place)
                part = bytes(part.length)
            parts.append(part)
            at += len(part)
        self._whole = bytearray(header + b"".join(parts) * planes + rest)
        blocks = np.frombuffer(self._whole, np.uint8, at * planes, len(header))
        self._planes = blocks.reshape(planes, at)

    def __len__(self) -> int:
        """Return its size in bytes."""
        return len(self._whole)

    def frame(self, lines: np.ndarray) -> Frame:
        """Return the frame with the bytes of all lines copied into it; (planes, lines, bytes)."""
        for target, line, source in self._copies:
            self._planes[:, target] = lines[:, line, source]
        return [memoryview(self._whole), _checksum(crc32c(self._whole))]


def _checksum(crc: int) -> bytes:
    return crc.to_bytes(CRC_BYTES, "little")


class FrameMaker:
    """Makes the frames of one array.

    A frame is valid as long as the numbers it was made of where it `stays`, else until the next of its shape is made.
    """

    def __init__(self, chunk: tuple[int, ...], *, triangular: bool = False) -> None:
        """Prepare.

        Args:
            chunk: Room of one example on disk: (slots, width) or (heads, slots, width).
            triangular: Whether no slot holds anything past its own number (a decoder's self-attention).
        """
        self._planes, (self._slots, self._width) = (chunk[0] if len(chunk) > 2 else 1), chunk[-2:]
        self._triangular = triangular
        self._around: dict[tuple[int, int], _Around] = {}
        self._filled: OrderedDict[tuple[int, ...], _Filled] = OrderedDict()

    def frame(self, piece: np.ndarray) -> Frame:
        """Return the frame of an example's chunk with its CRC-32C behind it, as Zarr's `crc32c` codec puts it.

        Args:
            piece: (n, w) or (heads, n, w): what fills the top left corner of the chunk; the rest is zero.
        """
        planes = piece if piece.ndim > 2 else piece[None]
        if self.stays(piece):
            return self._frame_around(planes.shape[1], planes.itemsize).frame(planes.reshape(-1).view(np.uint8))
        triangular = self._triangular and planes.shape[1] == planes.shape[2] and not _above_diagonal(planes)
        whole = not triangular and planes.shape[2] == self._width
        lines = planes.reshape(len(planes), 1, -1) if whole else planes
        return self._frame_to_fill(planes.shape, planes.itemsize, triangular).frame(lines.view(np.uint8))

    def stays(self, piece: np.ndarray) -> bool:
        """Return whether the frame of a piece is put around its numbers, which are not copied."""
        return self._planes == 1 and not self._triangular and piece.shape[-1] == self._width

    def _frame_around(self, n: int, itemsize: int) -> _Around:
        key = n, itemsize
        if key not in self._around:
            header, rest = self._ends(1, itemsize)
            self._around[key] = _Around([header, *self._plane(n, self._width, itemsize, triangular=False), rest])
        return self._around[key]

    def _frame_to_fill(self, shape: tuple[int, ...], itemsize: int, triangular: bool) -> _Filled:
        key, (planes, n, width) = (*shape, itemsize, triangular), shape
        if key not in self._filled:
            header, rest = self._ends(planes, itemsize)
            plane = self._plane(n, width, itemsize, triangular=triangular)
            self._filled[key] = _Filled(header, plane, planes, rest)
            while sum(map(len, self._filled.values())) > _ROOM and len(self._filled) > 1:
                self._filled.popitem(last=False)
        self._filled.move_to_end(key)
        return self._filled[key]

    def _ends(self, planes: int, itemsize: int) -> tuple[bytes, bytes]:
        """Return what stands in front of the planes that hold numbers, and behind them."""
        room = self._slots * self._width * itemsize
        header = _MAGIC + _DESCRIPTOR + (self._planes * room).to_bytes(8, "little")
        return header, b"".join(_zeros((self._planes - planes) * room)) + _block(_RAW, 0, last=True)

    def _plane(self, n: int, width: int, itemsize: int, *, triangular: bool) -> Iterator[bytes | _Numbers]:
        """Yield the blocks of one plane: headers and zeros, and what numbers go between them."""
        line, room = self._width * itemsize, self._slots * self._width * itemsize
        for number, stored, zeros in _lines(n, width * itemsize, line, room, itemsize if triangular else 0):
            for start in range(0, stored, BLOCK_BYTES):
                length = min(BLOCK_BYTES, stored - start)
                yield _block(_RAW, length)
                yield _Numbers(number, start, length)
            yield from _zeros(zeros)


def _above_diagonal(planes: np.ndarray) -> bool:
    """Return whether some query attends to the key behind its own: then it is not triangular after all."""
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


def _zeros(count: int) -> Iterator[bytes]:
    """Yield the blocks that stand for so many zeros."""
    for start in range(0, count, BLOCK_BYTES):
        yield _block(_RLE, min(BLOCK_BYTES, count - start)) + b"\0"


def _block(kind: int, size: int, *, last: bool = False) -> bytes:
    """Return the header of a block: three bytes, little-endian: last block or not, kind, size."""
    return (int(last) | kind << 1 | size << 3).to_bytes(3, "little")


def content_size(frame: bytes | memoryview) -> int | None:
    """Return how many bytes the first frame of some bytes says it holds, None where it does not say."""
    start, size = _size_field(frame)
    if bytes(frame[:4]) != _MAGIC or not size:
        return None
    return int.from_bytes(frame[start : start + size], "little") + (256 if size == 2 else 0)


def is_one_frame(data: bytes | memoryview) -> bool:
    """Return whether bytes are one frame and nothing more, which a decoder would add to it."""
    at, last = sum(_size_field(data)), 0
    while not last and at + 3 <= len(data):
        header = int.from_bytes(data[at : at + 3], "little")
        last, kind = header & 1, header >> 1 & 3
        at += 3 + (1 if kind == _RLE else header >> 3)
    checksum = 4 if data[4] & 4 else 0
    return bool(last) and at + checksum == len(data)


def _size_field(frame: bytes | memoryview) -> tuple[int, int]:
    """Return where the size of a frame's content stands in its header, and in how many bytes; 0 where it is not told.

    RFC 8878, section 3.1.1.1.
    """
    if len(frame) < len(_MAGIC) + len(_DESCRIPTOR):
        return 0, 0
    descriptor = frame[4]
    single_segment, dictionary = descriptor >> 5 & 1, (0, 1, 2, 4)[descriptor & 3]
    return 5 + (1 - single_segment) + dictionary, (single_segment, 2, 4, 8)[descriptor >> 6]


def stored_bytes(read: Callable[[int, int], bytes], frame: int, start: int, length: int) -> bytes | None:
    """Return a stretch of a frame's content from a file, without reading the rest of it.

    Args:
        read: Gives so many bytes of the file from a place on: (offset, length).
        frame: Where in the file the frame begins.
        start: First byte of the content.
        length: How many.

    Returns:
        The bytes; None if the frame is not one of those that `FrameMaker` makes.
    """
    if read(frame, len(_MAGIC) + len(_DESCRIPTOR)) != _MAGIC + _DESCRIPTOR:
        return None
    at = frame + len(_MAGIC) + len(_DESCRIPTOR) + 8
    content, found = 0, b""
    while len(found) < length:
        header = int.from_bytes(read(at, 3), "little")
        kind, size = header >> 1 & 3, header >> 3
        if kind not in {_RAW, _RLE} or (header & 1 and content + size < start + length):
            return None
        if content + size > start:
            skip = max(0, start + len(found) - content)
            take = min(size - skip, length - len(found))
            found += read(at + 3 + skip, take) if kind == _RAW else read(at + 3, 1) * take
        content += size
        at += 3 + (size if kind == _RAW else 1)
    return found
