"""Checks of the numbers: every chunk decodes, values are finite, padding is zero, attention is attention.

An array is read file by file and checked in tiles of consecutive examples, so that memory stays bounded: the
writer bounds its files, and a larger file of another tool is read in parts. A tile has
five axes whatever the array: example (choices counted as examples), layer, head, position, feature.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt

from decision_traces.checks import CheckResult
from decision_traces.errors import DamagedRunError
from decision_traces.format.stages import (
    CHOICE,
    DEPTH,
    EXAMPLE,
    HEAD,
    KEY,
    KV_HEAD,
    LAYER,
    SOURCE,
    STAGES,
)
from decision_traces.store.reading.arrays import RESTORE, StoredArray
from decision_traces.store.reading.slots import Slots
from decision_traces.store.validate.checks import Tally

TILE_BYTES: Final = 16 << 20
READ_BYTES: Final = 256 << 20

SlotsOf = Mapping[str, Slots]
"""What stands on each position axis of an array (key axes too), by name."""

Finding = tuple[float, tuple[int, ...] | None]
"""A figure, and the place in the tile where it is."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A piece of an array in memory.

    Attributes:
        values: The numbers.
        bits: Their bit patterns without the sign: they order as absolute values do, and NaN and infinity are
            above all others, so that one integer maximum finds the largest value and whether all are finite.
        at: Token position in each slot of the position axis, -1 where none stands there. For whole arrays without a
            token table, all slots.
        keys: Which keys are tokens, for attention; (e, 0) for other arrays.
        examples: Row and choice of each example.
        layers: Index of the first layer or depth.
        array: Where it comes from.
    """

    values: Float[np.ndarray, "e l h t d"]
    bits: UInt[np.ndarray, "e l h t d"]
    at: Int64[np.ndarray, "e t"]
    keys: Bool[np.ndarray, "e k"]
    examples: Int64[np.ndarray, "e 2"]
    layers: int
    array: StoredArray

    def place(self, at: tuple[int, ...] | None, ids: list[str]) -> str:
        """Say in words where a place of the tile is: array, example, layer, head, position."""
        first = at or (0, 0, 0, 0, 0)
        axes, (row, choice) = self.array.spec.axes, self.examples[first[0]]
        words = [self.array.spec.name, f"example {ids[row] if row < len(ids) else row} (row {row})"]
        words += [f"choice {choice}"] if CHOICE in axes else []
        layer = next((a for a in (LAYER, DEPTH) if a in axes), None)
        words += [f"{layer} {self.array.numbers(layer)[self.layers + first[1]]}"] if layer else []
        head = next((a for a in (HEAD, KV_HEAD) if a in axes), None)
        words += [f"{head} {self.array.numbers(head)[first[2]]}"] if head and at else []
        words += [self._position(first[0], first[3])] if at else []
        return ", ".join(words)

    def _position(self, example: int, slot: int) -> str:
        kept = "all" if self.array.dims is None else self.array.dims.positions
        if kept == "all" or self.array.spec.axes[self.array.spec.position_axis] == SOURCE:
            return f"position {slot}"
        position = int(self.at[example, slot])
        return f"position {position}" if position >= 0 else f"slot {slot} of the positions"


def finite(tile: Tile) -> Finding:
    """Return the largest absolute value; infinite where one is not finite."""
    at = _largest(tile.bits)
    value = abs(float(tile.values[at]))
    return (value if np.isfinite(value) else np.inf), at


def padding(tile: Tile) -> Finding:
    """Return the largest absolute value at a slot of no token (for attention: of a query or a key)."""
    pad = (tile.at < 0)[:, None, None, :, None]
    if tile.keys.shape[1]:
        pad = pad | ~tile.keys[:, None, None, None, :]
    return _largest_value(tile, pad)


def causal(tile: Tile) -> Finding:
    """Return the largest attention paid to a later position."""
    whole = tile.array.dims is None or tile.array.dims.positions == "all"
    # Where all positions are kept, padded queries are held to it too; otherwise they have no position.
    n_queries, n_keys = tile.values.shape[-2:]
    queries = np.arange(n_queries)[None] if whole else np.where(tile.at >= 0, tile.at, n_keys)
    return _largest_value(tile, (np.arange(n_keys) > queries[..., None])[:, None, None])


def sums_of_rows(tile: Tile) -> Finding:
    """Return the largest deviation from 1 of a sum over keys, at query rows that are tokens. Float32 sums."""
    sums = tile.values.sum(axis=-1, dtype=np.float32)
    asked = (tile.at >= 0) & tile.keys.any(axis=-1, keepdims=True)
    off = np.where(asked[:, None, None, :], np.abs(sums - np.float32(1)), np.float32(0))
    off = np.where(np.isnan(off), np.float32(np.inf), off)
    at = np.unravel_index(int(off.argmax()), off.shape)
    return float(off[at]), (*(int(i) for i in at), 0)


def outside(tile: Tile, bounds: tuple[float, float]) -> Finding:
    """Return the largest distance of a value from where values can be."""
    off = np.maximum(bounds[0] - tile.values, tile.values - bounds[1])
    off = np.where(np.isnan(off), np.float32(np.inf), off)
    at = tuple(int(i) for i in np.unravel_index(int(off.argmax()), off.shape))
    return max(0.0, float(off[at])), at


def row_sum_tolerance(n_keys: int, model_dtype: str) -> float:
    """Return by how much a stored row of attention may miss 1.

    A model that computes in bfloat16 rounds each probability by up to 2^-8 of it, half the distance to the next one,
    and so a row that sums to 1 by as much. float16, in which others are stored, rounds by 2^-11 of it, of which there
    may be several. Below 6e-5 it is subnormal and rounds by up to 2^-25, each of the n keys.
    """
    return (2.0**-8 if model_dtype == "bfloat16" else 2.0**-9) + n_keys * 2.0**-25


def _largest(bits: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(bits.argmax()), bits.shape))


def _largest_value(tile: Tile, where: np.ndarray) -> Finding:
    picked = np.where(where, tile.bits, tile.bits.dtype.type(0))
    at = _largest(picked)
    if picked[at] == 0:
        return 0.0, at
    value = abs(float(tile.values[at]))
    return (value if np.isfinite(value) else np.inf), at


@dataclass(frozen=True, slots=True)
class Promise:
    """What must hold of every tile of an array.

    Attributes:
        figure: Finds the worst figure of a tile, and where it is.
        limit: The largest figure allowed.
        tally: Keeps the worst over all tiles.
    """

    figure: Callable[[Tile], Finding]
    limit: float
    tally: Tally


def promises(array: StoredArray, *, row_sums: float | None, padding_promised: bool, with_tokens: bool) -> list[Promise]:
    """Return what must hold of an array; see `check_values`."""
    name = array.spec.name
    result = [Promise(finite, float(np.finfo(array.dtype).max), Tally("values finite", name, "largest absolute value"))]
    if with_tokens:
        tally = Tally("padding is zero", name, "largest value at a padded slot")
        result.append(Promise(padding, 0.0 if padding_promised else np.inf, tally))
    if with_tokens and row_sums is not None and KEY in array.spec.axes:
        tally = Tally("attention rows sum to 1", name, f"|sum − 1|, allowed {row_sums:.2g}")
        result.append(Promise(sums_of_rows, row_sums, tally))
    if bounds := STAGES[array.spec.stage].bounds:
        tally = Tally(f"values between {bounds[0]:g} and {bounds[1]:g}", name, "largest distance outside")
        result.append(Promise(partial(outside, bounds=bounds), 0.0, tally))
    if array.causal:
        tally = Tally("attention is causal", name, "largest weight on a later position")
        result.append(Promise(causal, 0.0, tally))
    return result


Seen = dict[Hashable, dict[str, tuple[float, str]]]
"""Pieces that passed, by identity, with the figure and place of each check."""


def check_values(
    array: StoredArray,
    slots: SlotsOf | None,
    ids: list[str],
    *,
    row_sums: float | None,
    padding_promised: bool,
    seen: Seen,
    step: Callable[[int], None],
) -> tuple[list[CheckResult], float]:
    """Read one array from end to end and check its numbers.

    Args:
        array: The array.
        slots: Where the tokens are, or None where the token table cannot be read or does not fit.
        ids: example_id of each row, for the messages.
        row_sums: By how much a row of attention may miss 1; None where rows are not promised to sum to it.
        padding_promised: Whether zeros at padding are promised (older tools did not).
        seen: Filled with the pieces that pass: a file under several names is read once.
        step: Called with the uncompressed bytes of each tile.

    Returns:
        The results, and the largest absolute value met.
    """
    name = array.spec.name
    what = "every chunk's CRC-32C and length" if array.zarr.shards else "length only: chunks have no checksums"
    decode, checks = (
        Tally("chunks decode", name, what),
        promises(array, row_sums=row_sums, padding_promised=padding_promised, with_tokens=slots is not None),
    )
    for start, stop, picks in pieces(array):
        key = array.identity(array.box(**{EXAMPLE: slice(start, stop)}, **picks))
        if key is None or not _passed_before(seen.get(key, {}), checks, decode):
            passed = _check_piece(array, slots, (start, stop), picks, checks, decode, ids, step)
            if key is not None and passed is not None:
                seen[key] = passed
    results = [decode.result(), *(check.tally.result() for check in checks)]
    if slots is None:
        reason = "no token table that fits the array"
        results.append(CheckResult("padding is zero", False, where=name, detail=reason, array=name))
    if KEY in array.spec.axes and row_sums is None:
        reason = "not checked: the model's rows need not sum to 1 (attention_rows_sum_to_one is false)"
        results.append(CheckResult("attention rows sum to 1", True, where=name, detail=reason, array=name))
    return results, checks[0].tally.worst or 0.0


def _passed_before(known: dict[str, tuple[float, str]], checks: list[Promise], decode: Tally) -> bool:
    """Count a piece that passed all of these checks under another name."""
    if not known.keys() >= {check.tally.name for check in checks}:
        return False
    decode.add(0.0, "", ok=True)
    for check in checks:
        check.tally.add(*known[check.tally.name], ok=True)
    return True


def _check_piece(
    array: StoredArray,
    slots: SlotsOf | None,
    rows: tuple[int, int],
    picks: dict[str, slice],
    checks: list[Promise],
    decode: Tally,
    ids: list[str],
    step: Callable[[int], None],
) -> dict[str, tuple[float, str]] | None:
    """Check one piece; return its figures if all is well with it."""
    failed, figures = decode.failed, dict[str, tuple[float, str]]()
    for tile in tiles(array, slots, rows, picks, decode, ids):
        step(tile.values.nbytes)
        for check in checks:
            with np.errstate(invalid="ignore"):
                figure, at = check.figure(tile)
            where, ok = tile.place(at, ids), figure <= check.limit
            check.tally.add(figure, where, ok=ok)
            failed -= not ok
            figures[check.tally.name] = max(figures.get(check.tally.name, (0.0, "")), (figure, where))
    return figures if decode.failed == failed else None


def pieces(array: StoredArray) -> Iterator[tuple[int, int, dict[str, slice]]]:
    """Yield first row, last row + 1 and the layers of each tile of an array."""
    rows, layers = tile_shape(array)
    axis = next((a for a in (LAYER, DEPTH) if a in array.spec.axes), None)
    for start in range(0, array.shape[0], rows):
        stop = min(start + rows, array.shape[0])
        for layer in range(0, array.size(axis) if axis else 1, layers):
            yield start, stop, {axis: slice(layer, layer + layers)} if axis else {}


def tiles(
    array: StoredArray,
    slots: SlotsOf | None,
    rows: tuple[int, int],
    picks: dict[str, slice],
    decode: Tally,
    ids: list[str],
) -> Iterator[Tile]:
    """Yield one piece as tiles; rows that do not decode are counted in `decode` and left out."""
    layer = next((part.start for part in picks.values()), 0)
    for low, values in _decoded(array, *rows, picks, decode, ids):
        n = max(1, TILE_BYTES // max(1, values[0].nbytes))
        for start in range(0, len(values), n):
            yield make_tile(array, values[start : start + n], slots, low + start, layer)


def tile_shape(array: StoredArray) -> tuple[int, int]:
    """Return rows and layers to read at a time: one file, or as much of it as the budget allows."""
    axis = next((a for a in (LAYER, DEPTH) if a in array.spec.axes), None)
    layers = array.files_shape[array.spec.axes.index(axis)] if axis else 1
    row_bytes = max(1, array.row_nbytes * layers // max(1, array.size(axis) if axis else 1))
    return max(1, min(array.files_shape[0], READ_BYTES // row_bytes)), layers


def _decoded(
    array: StoredArray, start: int, stop: int, picks: dict[str, slice], decode: Tally, ids: list[str]
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield what decodes of some rows: all at once, or row by row once something is wrong among them."""
    try:
        values = array.read(**{EXAMPLE: slice(start, stop)}, **picks)
    except DamagedRunError as error:
        if stop - start == 1:
            example = f"example {ids[start]}: " if start < len(ids) else ""
            decode.add(1.0, f"{example}{str(error).removesuffix(RESTORE).strip()}", ok=False)
            return
        for row in range(start, stop):
            yield from _decoded(array, row, row + 1, picks, decode, ids)
        return
    decode.add(0.0, "", ok=True)
    if values.size:
        yield start, values


def make_tile(array: StoredArray, values: np.ndarray, slots: SlotsOf | None, row: int, layer: int) -> Tile:
    """Bring a piece of an array to five axes."""
    axes, choices = array.spec.axes, array.size(CHOICE) if CHOICE in array.spec.axes else 1
    n = values.shape[0]
    shape = [
        n * choices,
        *(size for a, size in zip(axes, values.shape, strict=True) if a not in {EXAMPLE, CHOICE}),
    ]
    if not {LAYER, DEPTH} & set(axes):
        shape.insert(1, 1)
    if not {HEAD, KV_HEAD} & set(axes):
        shape.insert(2, 1)
    values = np.ascontiguousarray(values).reshape(shape)
    unsigned = np.dtype(f"u{values.itemsize}")
    bits = values.view(unsigned) & unsigned.type(np.iinfo(unsigned).max >> 1)
    rows = slice(row, row + n)
    at = np.broadcast_to(np.arange(shape[3]), (shape[0], shape[3])).astype(np.int64)
    keys = np.ones((shape[0], shape[4] if KEY in axes else 0), dtype=bool)
    if slots is not None:
        at = _each(slots[array.position_axis].at(rows), choices)
        keys = _each(slots[KEY].at(rows), choices) >= 0 if KEY in axes else keys
    numbers = np.stack(np.divmod(np.arange(n * choices), choices), axis=1) + np.array([row, 0])
    return Tile(values, bits, at, keys, numbers.astype(np.int64), layer, array)


def _each(at: np.ndarray, choices: int) -> np.ndarray:
    """Return (rows, slots), or (rows, choices, slots), as one row of slots per example and choice."""
    return np.repeat(at, choices, axis=0) if at.ndim == 2 else at.reshape(-1, at.shape[-1])
