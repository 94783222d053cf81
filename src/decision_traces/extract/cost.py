"""What a run will take, known before its first forward pass: bytes on disk, array by array, and files."""

from collections.abc import Sequence
from math import prod
from typing import Final

import numpy as np

from decision_traces.capture.buffers import site_shape
from decision_traces.schema import ATTN, side_of, stage_of
from decision_traces.store.layout import SMALL_CHUNK, RunLayout
from decision_traces.tokens import Encoding

_MOST_ROWS: Final = 256
"""Padding takes 2.1 % of the slots of WikiText-2 in blocks of 250, 1.4 % in one block of 500, 4 % in blocks of 100."""
_MOST_SMALL_ROWS: Final = 4096
_WAITING: Final = 128 << 20
_ROUND: Final = 16


def row_bytes(layout: RunLayout) -> int:
    """Return the bytes of one example, with all its choices, with all the room it has."""
    item = np.dtype(layout.dtype).itemsize * layout.dims.n_choices
    return item * sum(_values(name, layout) for name, _ in layout.places())


def _values(name: str, layout: RunLayout) -> int:
    return prod(site_shape(name, layout.sides[side_of(name)]))


def block_rows(layout: RunLayout, encodings: Sequence[Encoding], block_bytes: int) -> int:
    """Return how many examples a block should have.

    As many as take `block_bytes` on disk, for examples of middling length, but not more than are needed to sort texts
    of like length together; many more where they take little, so that there are not too many files. Examples that
    share a chunk wait in memory for one another, and bound it too.

    Args:
        layout: What the run holds; its own number of rows does not matter.
        encodings: Every example (every choice of it).
        block_bytes: What a block may take on disk.
    """
    n = layout.dims.n_examples
    mean = max(1, disk_estimate(layout, encodings, links=True) // n)
    rows = max(_MOST_ROWS, min(_MOST_SMALL_ROWS, _WAITING // max(1, row_bytes(layout))))
    item = np.dtype(layout.dtype).itemsize
    sizes = [_values(name, layout) * item for name, _ in layout.places()]
    waiting = layout.dims.n_choices * sum(size for size in sizes if size < SMALL_CHUNK)
    rows = max(1, min(rows, block_bytes // mean, _WAITING // max(1, waiting), n))
    even = -(-n // -(-n // rows))  # blocks of one size, rather than a last one of a few rows
    return min(rows, -(-even // _ROUND) * _ROUND)


def disk_estimate(layout: RunLayout, encodings: Sequence[Encoding], *, links: bool) -> int:
    """Return how many bytes the arrays can take at most: tokens only, causal attention without its empty triangle.

    Args:
        layout: What the run holds.
        encodings: Every example (every choice of it).
        links: Whether the file system has hard links, so that each distinct tensor is stored once.
    """
    total = 0
    for (name, _layer), places in layout.places().items():
        dims = layout.sides[side_of(name)]
        n = np.asarray([(e.main if side_of(name) == "dec" else e).n_tokens for e in encodings], dtype=np.int64)
        per_row = _values(name, layout)
        if dims.positions != "all":
            values = per_row * len(n)
        elif stage_of(name) == ATTN:
            heads = per_row // max(1, dims.n_positions**2)
            values = heads * int((n * (n + 1) // 2 if side_of(name) == "dec" else n * n).sum())
        else:
            values = per_row * int(n.sum()) // max(1, dims.n_positions)
        total += values * (1 if links else len(places))
    return total * np.dtype(layout.dtype).itemsize
