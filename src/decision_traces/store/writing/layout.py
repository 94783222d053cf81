"""What a run will hold, fixed before the first forward pass: arrays, files, chunks and coordinates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np

from decision_traces.format.arrays import ArraySpec, Dims, Side, Site, StorageDtype
from decision_traces.format.stages import CHOICE, DEPTH, EXAMPLE, HEAD, KV_HEAD, LAYER, POSITION, QUERY
from decision_traces.store.shards.shape import ShardShape

SMALL_CHUNK: Final = 32 << 10
"""Bytes below which one example at one layer is no chunk of its own."""


@dataclass(frozen=True, slots=True)
class RunLayout:
    """What a run will hold: fixed before the first forward pass.

    Attributes:
        specs: The arrays.
        sides: Sizes of each side of the model that has arrays here.
        dtype: Type on disk.
        block_rows: Examples in a block; a block is the unit of writing and of resuming.
    """

    specs: tuple[ArraySpec, ...]
    sides: Mapping[Side, Dims]
    dtype: StorageDtype
    block_rows: int

    @property
    def dims(self) -> Dims:
        """Sizes of the main side: the decoder's where there is one."""
        return self.sides["dec"] if "dec" in self.sides else self.sides["enc"]

    def dims_of(self, spec: ArraySpec) -> Dims:
        """Return the sizes of the side that an array is about."""
        return self.sides[spec.side]

    @property
    def n_blocks(self) -> int:
        """Number of blocks."""
        return -(-self.dims.n_examples // self.block_rows)

    def rows(self, block: int) -> range:
        """Return the rows of one block."""
        start = block * self.block_rows
        return range(start, min(start + self.block_rows, self.dims.n_examples))

    def places(self) -> dict[Site, list[tuple[ArraySpec, int]]]:
        """Return for every distinct tensor the arrays where it stands, each with the index on its layer axis."""
        places: dict[Site, list[tuple[ArraySpec, int]]] = {}
        for spec in self.specs:
            dims = self.dims_of(spec)
            for index, number in enumerate(layer_numbers(spec, dims)):
                places.setdefault(spec.source(number, dims.n_layers), []).append((spec, index))
        return places

    def chunk(self, spec: ArraySpec) -> tuple[int, ...]:
        """Return the shape of what readers ask for: one example (one choice of it) at one layer, whole.

        Where that is very little, it is several examples: as many as make `SMALL_CHUNK`, of the divisors of a block.
        """
        single = {spec.axes.index(axis) for axis in (EXAMPLE, CHOICE) if axis in spec.axes} | {spec.layer_axis}
        chunk = [1 if i in single else max(1, n) for i, n in enumerate(self.dims_of(spec).shape(spec))]
        size = int(np.prod(chunk, dtype=np.int64)) * np.dtype(self.dtype).itemsize
        divisors = (n for n in range(1, self.block_rows + 1) if self.block_rows % n == 0)
        chunk[0] = next((n for n in divisors if n * size >= SMALL_CHUNK), self.block_rows)
        return tuple(chunk)

    def room(self, spec: ArraySpec) -> tuple[int, ...]:
        """Return the shape of one example (one choice of it) at one layer: (heads, slots, width) or (slots, width)."""
        single = {EXAMPLE, CHOICE, LAYER, DEPTH}
        return tuple(n for axis, n in zip(spec.axes, self.dims_of(spec).shape(spec), strict=True) if axis not in single)

    def shard(self, spec: ArraySpec) -> tuple[int, ...]:
        """Return the shape of one file: a block of examples with all their choices at one layer."""
        shape = [max(1, n) for n in self.dims_of(spec).shape(spec)]
        shape[0] = self.block_rows
        if spec.layer_axis is not None:
            shape[spec.layer_axis] = 1
        return tuple(shape)

    def shard_shape(self, spec: ArraySpec) -> ShardShape:
        """Return what the shard files of an array are like."""
        whole = self.dims_of(spec).positions == "all"
        return ShardShape(
            self.shard(spec),
            self.chunk(spec),
            self.room(spec),
            self.dtype,
            rows_each=self.dims.n_choices if CHOICE in spec.axes else 1,
            triangular=spec.causal and whole,
        )

    def coordinates(self) -> dict[str, tuple[int, ...]]:
        """Return the coordinate arrays of the run: `group/axis` to the numbers along it."""
        return {
            f"{spec.group}/{axis}": numbers
            for spec in self.specs
            for axis, numbers in coordinates(spec, self.dims_of(spec)).items()
        }


def layer_numbers(spec: ArraySpec, dims: Dims) -> tuple[int, ...]:
    """Return the model's own numbers along the layer or depth axis of an array; (0,) for one without."""
    numbers = dims.numbers(spec)
    return next((numbers[axis] for axis in (LAYER, DEPTH) if axis in numbers), (0,))


def coordinates(spec: ArraySpec, dims: Dims) -> dict[str, tuple[int, ...]]:
    """Return the axes of an array that need a coordinate: those that are not simply all of 0, 1, 2, ….

    Args:
        spec: The array.
        dims: The sizes of its side.

    Returns:
        Axis name to the model's own numbers (token positions) along it.
    """
    whole = {LAYER: dims.n_layers, DEPTH: dims.n_layers + 1, HEAD: dims.n_heads, KV_HEAD: dims.n_kv_heads}
    numbers = dims.numbers(spec)
    if isinstance(dims.positions, tuple):
        own = {axis: dims.positions for axis in (POSITION, QUERY) if axis in spec.axes}
        numbers, whole = numbers | own, whole | dict.fromkeys(own, dims.n_positions)
    return {axis: along for axis, along in numbers.items() if along != tuple(range(whole[axis]))}
