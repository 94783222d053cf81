"""What a run will take, known before its first forward pass: bytes on disk, array by array, and files."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Final

import numpy as np

from decision_traces.extract.engine import IN_FLIGHT
from decision_traces.extract.job import Prepared
from decision_traces.format.arrays import Side, side_of, stage_of
from decision_traces.format.stages import CROSS, STAGES
from decision_traces.store import BLOCK_BYTES, SMALL_CHUNK, RunLayout
from decision_traces.tokens import Encoding
from decision_traces.tracing.buffers import site_shape

_MOST_ROWS: Final = 256
"""Padding takes 2.1 % of the slots of WikiText-2 in blocks of 250, 1.4 % in one block of 500, 4 % in blocks of 100."""
_MOST_SMALL_ROWS: Final = 4096
_WAITING: Final = 128 << 20
_ROUND: Final = 16
FRAME_BYTES: Final = 37
"""What a chunk takes beside its content: the frame's header and end, its checksum, its entry in the index."""


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
    """Return how many bytes the arrays take at most: tokens only, causal attention without its empty triangle.

    Args:
        layout: What the run holds.
        encodings: Every example (every choice of it).
        links: Whether the file system has hard links, so that each distinct tensor is stored once.
    """
    sizes = _lengths(layout, encodings)
    places = layout.places()
    return sum(_stored(place[0], layout, sizes) * (1 if links else len(at)) for place, at in places.items())


def _lengths(layout: RunLayout, encodings: Sequence[Encoding]) -> dict[Side, np.ndarray]:
    """Return the number of tokens of every encoding, by side."""
    read = np.array([e.n_tokens for e in encodings], dtype=np.int64)
    written = np.array([e.main.n_tokens for e in encodings], dtype=np.int64)
    return {side: read if side == "enc" else written for side in layout.sides}


def _stored(name: str, layout: RunLayout, lengths: Mapping[Side, np.ndarray]) -> int:
    """Return the bytes of one distinct tensor of all examples, with what its chunks and their index add."""
    side, stage = side_of(name), STAGES[stage_of(name)]
    dims, item = layout.sides[side], np.dtype(layout.dtype).itemsize
    *planes, slots, width = site_shape(name, dims)
    heads = planes[0] if planes else 1
    source = lengths.get("enc", lengths[side])
    n = source if stage.of_source else lengths[side]
    if dims.positions != "all" and not stage.of_source:
        kept, values = np.minimum(n, slots), np.minimum(n, slots) * width
    elif stage.by_key and stage.part is CROSS:
        kept, values = n, n * source
    elif stage.by_key:
        kept, values = n, n * (n + 1) // 2 if side == "dec" else n * n
    else:
        kept, values = n, n * width
    blocks = kept if stage.by_key else -(-values * item // BLOCK_BYTES)
    zeros = blocks + (slots * width * item) // BLOCK_BYTES + 1
    return int((heads * (values * item + 3 * blocks + 4 * zeros) + FRAME_BYTES).sum())


@dataclass(frozen=True, slots=True)
class RunCost:
    """What a run will take.

    Attributes:
        model: Its name.
        n_examples, n_tokens: What it goes over.
        arrays: Array to its shape, and the bytes that it adds on disk: nothing for what another array has too.
        total_bytes: Of all arrays, at most.
        n_files: In the run's folder.
        block_rows, n_blocks: How it is cut for resuming.
        model_bytes: Memory that the weights take.
        capture_bytes: Memory that the captures of the batches in flight take, at most.
        seconds: How long it will take, judged by one batch; None where that was not tried.
    """

    model: str
    n_examples: int
    n_tokens: int
    arrays: Mapping[str, tuple[tuple[int, ...], int]]
    total_bytes: int
    n_files: int
    block_rows: int
    n_blocks: int
    model_bytes: int
    capture_bytes: int
    seconds: float | None = None

    @property
    def bytes_per_token(self) -> float:
        """Mean bytes that a token of text takes on disk."""
        return self.total_bytes / max(1, self.n_tokens)


def cost_of(prepared: Prepared, token_budget: int, *, n_tables: int) -> RunCost:
    """Return what a run will take, where the file system has hard links.

    Args:
        prepared: Everything that is known of it.
        token_budget: Most slots of a batch.
        n_tables: Parquet files it will have.
    """
    layout, encodings = prepared.layout, prepared.encodings
    lengths, places = _lengths(layout, encodings), layout.places()
    added = dict.fromkeys((spec.name for spec in layout.specs), 0)
    for (name, _layer), at in places.items():
        added[at[0][0].name] += _stored(name, layout, lengths)
    shards = layout.n_blocks * sum(map(len, places.values()))
    groups = len({spec.group for spec in layout.specs})
    coordinates = 2 * len(layout.coordinates())
    parameters = prepared.loaded.model.parameters()
    return RunCost(
        model=type(prepared.loaded.model).__name__,
        n_examples=layout.dims.n_examples,
        n_tokens=sum(e.n_tokens + (e.target.n_tokens if e.target else 0) for e in encodings),
        arrays={s.name: (layout.dims_of(s).shape(s), added[s.name]) for s in layout.specs},
        total_bytes=sum(added.values()),
        n_files=shards + groups + len(layout.specs) + coordinates + n_tables + len(("meta", "manifest")),
        block_rows=layout.block_rows,
        n_blocks=layout.n_blocks,
        model_bytes=sum(p.numel() * p.element_size() for p in parameters),
        capture_bytes=_in_flight(layout, lengths, token_budget),
    )


def _in_flight(layout: RunLayout, lengths: Mapping[Side, np.ndarray], token_budget: int) -> int:
    """Return the most memory that the captures of a batch take, times the batches in flight."""
    item, most = np.dtype(layout.dtype).itemsize, 0
    for n in sorted({int(n) for n in lengths["dec" if "dec" in layout.sides else "enc"] if n}):
        rows = max(1, token_budget // n)
        per_row = sum(prod(_cut(site_shape(name, layout.sides[side_of(name)]), n, name)) for name, _ in layout.places())
        most = max(most, rows * per_row * item)
    return IN_FLIGHT * most


def _cut(shape: tuple[int, ...], n: int, name: str) -> tuple[int, ...]:
    """Return the shape of a tensor's room for a text of so many tokens."""
    *planes, slots, width = shape
    return (*planes, min(slots, n), min(width, n) if STAGES[stage_of(name)].by_key else width)
