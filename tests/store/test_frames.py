"""Stored frames: whatever is put in, a Zstandard decoder that knows nothing of them gives the padded chunk back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numcodecs import Zstd

from decision_traces.store.shards import frames
from decision_traces.store.shards.frames import CRC_BYTES, FrameMaker, stored_bytes
from decision_traces.store.shards.places import LocalFile


def joined(frame):
    return b"".join(frame)


def decoded(frame, chunk, dtype):
    return np.frombuffer(Zstd().decode(joined(frame)[:-CRC_BYTES]), dtype).reshape(chunk)


def padded(piece, chunk):
    whole = np.zeros(chunk, piece.dtype)
    whole[tuple(slice(n) for n in piece.shape)] = piece
    return whole


def numbers(*shape, dtype=np.float16):
    """Random bits of numbers, none of them zero, so that a zero in the wrong place is seen."""
    return np.random.default_rng(len(shape)).integers(1, 30_000, shape).astype(dtype)


@given(
    planes=st.one_of(st.none(), st.tuples(st.integers(1, 4), st.integers(0, 3))),
    slots=st.tuples(st.integers(1, 9), st.integers(0, 5)),
    width=st.tuples(st.integers(1, 7), st.integers(0, 4)),
    dtype=st.sampled_from([np.float16, np.float32]),
)
def test_any_corner_of_a_chunk(planes, slots, width, dtype):
    """Each size is what the piece has, and what the chunk has more than that."""
    sizes = [*([planes] if planes else []), slots, width]
    piece, chunk = numbers(*(n for n, _ in sizes), dtype=dtype), tuple(n + more for n, more in sizes)
    np.testing.assert_array_equal(decoded(FrameMaker(chunk).frame(piece), chunk, dtype), padded(piece, chunk))


@given(heads=st.integers(1, 3), n=st.integers(1, 12), more=st.integers(0, 5))
def test_a_causal_piece_leaves_its_triangle_out(heads, n, more):
    piece, chunk = np.tril(numbers(heads, n, n)), (heads, n + more, n + more)
    frame = FrameMaker(chunk, triangular=True).frame(piece)
    np.testing.assert_array_equal(decoded(frame, chunk, np.float16), padded(piece, chunk))


@pytest.mark.parametrize("at", [(0, 0, 1), (0, 0, 4), (1, 2, 3)])
def test_a_piece_that_is_not_causal_after_all_is_stored_whole(at):
    piece = np.tril(numbers(2, 5, 5))
    piece[at] = 7
    frame = FrameMaker((2, 6, 6), triangular=True).frame(piece)
    np.testing.assert_array_equal(decoded(frame, (2, 6, 6), np.float16), padded(piece, (2, 6, 6)))


def test_what_is_larger_than_a_block():
    """A block holds 128 KiB: numbers, the zeros behind them, and a row of attention that is longer than that."""
    for piece, chunk in (
        (numbers(300, 600), (700, 600)),
        (numbers(2, 300, 300), (3, 300, 300)),
        (numbers(1, 2, 70_000), (1, 3, 140_000)),
    ):
        np.testing.assert_array_equal(decoded(FrameMaker(chunk).frame(piece), chunk, np.float16), padded(piece, chunk))


def test_a_view_of_a_larger_tensor_is_stored_as_it_reads():
    whole = numbers(3, 8, 8)
    piece = whole[:, :5, :5]
    frame = FrameMaker((3, 9, 9)).frame(piece)
    np.testing.assert_array_equal(decoded(frame, (3, 9, 9), np.float16), padded(piece, (3, 9, 9)))


def test_one_maker_makes_one_frame_after_another():
    maker = FrameMaker((6, 4))
    for n in (3, 6, 1, 2, 4, 5, 3, 1, 6):
        piece = numbers(n, 4) + np.float16(n)
        np.testing.assert_array_equal(decoded(maker.frame(piece), (6, 4), np.float16), padded(piece, (6, 4)))


@pytest.mark.parametrize(
    ("maker", "piece", "size"),
    [
        # Header 14; one block of numbers 3 + 3*4*2; one of zeros 3 + 1; the last, empty one 3; the checksum 4.
        (FrameMaker((5, 4)), numbers(3, 4), 14 + 27 + 4 + 3 + 4),
        (FrameMaker((3, 4)), numbers(3, 4), 14 + 27 + 3 + 4),  # no padding, no zeros
        # Three rows of 1, 2 and 3 numbers, each followed by its zeros, once a head.
        (FrameMaker((2, 5, 5), triangular=True), np.tril(numbers(2, 3, 3)), 14 + 2 * (3 * (3 + 4) + 6 * 2) + 3 + 4),
    ],
)
def test_padding_takes_no_room(maker, piece, size):
    assert len(joined(maker.frame(piece))) == size


@given(data=st.data(), n=st.integers(1, 6), width=st.sampled_from([3, 40_000]))
def test_a_stretch_is_read_without_the_rest(data, n, width, tmp_path_factory):
    """Also one that goes over the end of a block, and into the zeros."""
    piece, chunk = numbers(n, width), (8, width)
    path = tmp_path_factory.mktemp("frame") / "file"
    path.write_bytes(b"before" + joined(FrameMaker(chunk).frame(piece)))
    whole = padded(piece, chunk).tobytes()
    start = data.draw(st.integers(0, len(whole) - 1))
    length = data.draw(st.integers(1, min(2 * width, len(whole) - start)))
    with path.open("rb", buffering=0) as file:
        assert stored_bytes(LocalFile(file).read, 6, start, length) == whole[start : start + length]


def test_a_stretch_of_any_other_frame_is_not_guessed(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(Zstd(level=1).encode(numbers(4, 4)))
    with path.open("rb", buffering=0) as file:
        assert stored_bytes(LocalFile(file).read, 0, 0, 8) is None


def test_the_checksum_is_that_of_the_frame():
    """CRC-32C, computed here bit by bit."""
    frame = joined(FrameMaker((2, 2)).frame(numbers(1, 2)))
    crc = 0xFFFFFFFF
    for byte in frame[:-4]:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    assert frame[-4:] == (crc ^ 0xFFFFFFFF).to_bytes(4, "little")


def test_frames_that_are_kept_are_bounded_and_made_anew(monkeypatch):
    """Room for one: each shape is forgotten when the next comes, and right when it comes again."""
    monkeypatch.setattr(frames, "_ROOM", 1)
    maker = FrameMaker((2, 6, 4))
    for n in (3, 6, 3, 1, 3):
        piece = numbers(2, n, 4) + np.float16(n)
        np.testing.assert_array_equal(decoded(maker.frame(piece), (2, 6, 4), np.float16), padded(piece, (2, 6, 4)))
        assert len(maker._filled) == 1
