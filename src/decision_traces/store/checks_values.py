"""Checks of the numbers: every chunk decodes, values are finite, padding is zero, attention is attention.

An array is read file by file and checked in tiles of consecutive examples, so that memory stays bounded: the
writer bounds its files, and a larger file of another tool is read in parts. A tile has
five axes whatever the array: example (choices counted as examples), layer, head, position, feature.
"""

from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Int64, UInt

from decision_traces.errors import DamagedRunError
from decision_traces.schema import CHOICE, DEPTH, EXAMPLE, HEAD, KV_HEAD, LAYER
from decision_traces.store.arrays import RESTORE, StoredArray
from decision_traces.store.checks import CheckResult, Tally
from decision_traces.store.table import Spans

TILE_BYTES: Final = 16 << 20
READ_BYTES: Final = 256 << 20

Finding = tuple[float, tuple[int, ...] | None]
"""A figure, and the place in the tile where it is."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A piece of an array in memory.

    Attributes:
        values: The numbers.
        bits: Their bit patterns without the sign: they order as absolute values do, and NaN and infinity are
            above all others, so that one integer maximum finds the largest value and whether all are finite.
        real: Which positions are tokens.
        examples: Row and choice of each example.
        layers: Number of the first layer or depth.
        array: Where it comes from.
    """

    values: Float[np.ndarray, "e l h t d"]
    bits: UInt[np.ndarray, "e l h t d"]
    real: Bool[np.ndarray, "e t"]
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
        words += [f"{layer} {self.layers + first[1]}"] if layer else []
        head = next((a for a in (HEAD, KV_HEAD) if a in axes), None)
        words += [f"{head} {first[2]}"] if head and at else []
        words += [f"position {first[3]}"] if at else []
        return ", ".join(words)


def finite(tile: Tile) -> Finding:
    """Return the largest absolute value; infinite where one is not finite."""
    at = _largest(tile.bits)
    value = abs(float(tile.values[at]))
    return (value if np.isfinite(value) else np.inf), at


def padding(tile: Tile) -> Finding:
    """Return the largest absolute value at a position that is no token (for attention: query or key)."""
    pad = ~tile.real[:, None, None, :, None]
    if tile.array.spec.stage == "attn":
        pad = pad | ~tile.real[:, None, None, None, :]
    return _largest_value(tile, pad)


def causal(tile: Tile) -> Finding:
    """Return the largest attention paid to a later position."""
    t = tile.values.shape[-1]
    return _largest_value(tile, ~np.tri(t, dtype=bool)[None, None, None])


def row_sums(tile: Tile) -> Finding:
    """Return the largest deviation from 1 of a sum over keys, at query rows that are tokens. Float32 sums."""
    sums = tile.values.sum(axis=-1, dtype=np.float32)
    off = np.where(tile.real[:, None, None, :], np.abs(sums - np.float32(1)), np.float32(0))
    off = np.where(np.isnan(off), np.float32(np.inf), off)
    at = np.unravel_index(int(off.argmax()), off.shape)
    return float(off[at]), (*(int(i) for i in at), 0)


def row_sum_tolerance(n_keys: int) -> float:
    """Return by how much a stored row of attention may miss 1.

    A probability is rounded when the model computes in bfloat16 (relative 2^-9, the coarsest type models use;
    float16 has 2^-11), which errs by at most 2^-9 over a row that sums to 1. Stored as float16, a probability
    below 6e-5 is subnormal and rounds by up to 2^-25, each of the n keys.
    """
    return 2.0**-9 + n_keys * 2.0**-25


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


def promises(array: StoredArray, *, sums_to_one: bool, padding_promised: bool, with_tokens: bool) -> list[Promise]:
    """Return what must hold of an array; see `check_values`."""
    name, limit = array.spec.name, row_sum_tolerance(array.shape[-1])
    result = [Promise(finite, float(np.finfo(array.dtype).max), Tally("values finite", name, "largest absolute value"))]
    if with_tokens:
        tally = Tally("padding is zero", name, "largest value at a padded slot")
        result.append(Promise(padding, 0.0 if padding_promised else np.inf, tally))
    if with_tokens and sums_to_one and array.spec.stage == "attn":
        tally = Tally("attention rows sum to 1", name, f"|sum − 1|, allowed {limit:.2g}")
        result.append(Promise(row_sums, limit, tally))
    if name == "dec_self_attn":
        tally = Tally("attention is causal", name, "largest weight on a later position")
        result.append(Promise(causal, 0.0, tally))
    return result


Seen = dict[Hashable, dict[str, tuple[float, str]]]
"""Pieces that passed, by identity, with the figure and place of each check."""


def check_values(
    array: StoredArray,
    spans: Spans | None,
    ids: list[str],
    *,
    sums_to_one: bool,
    padding_promised: bool,
    seen: Seen,
    step: Callable[[int], None],
) -> tuple[list[CheckResult], float]:
    """Read one array from end to end and check its numbers.

    Args:
        array: The array.
        spans: Where the tokens are, or None where the token table cannot be read or does not fit.
        ids: example_id of each row, for the messages.
        sums_to_one: Whether attention rows are promised to sum to 1.
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
        promises(array, sums_to_one=sums_to_one, padding_promised=padding_promised, with_tokens=spans is not None),
    )
    for start, stop, picks in pieces(array):
        key = array.identity(array.box(**{EXAMPLE: slice(start, stop)}, **picks))
        if key is None or not _passed_before(seen.get(key, {}), checks, decode):
            passed = _check_piece(array, spans, (start, stop), picks, checks, decode, ids, step)
            if key is not None and passed is not None:
                seen[key] = passed
    results = [decode.result(), *(check.tally.result() for check in checks)]
    if spans is None:
        reason = "no token table that fits the array"
        results.append(CheckResult("padding is zero", False, where=name, detail=reason, array=name))
    if array.spec.stage == "attn" and not sums_to_one:
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
    spans: Spans | None,
    rows: tuple[int, int],
    picks: dict[str, slice],
    checks: list[Promise],
    decode: Tally,
    ids: list[str],
    step: Callable[[int], None],
) -> dict[str, tuple[float, str]] | None:
    """Check one piece; return its figures if all is well with it."""
    failed, figures = decode.failed, dict[str, tuple[float, str]]()
    for tile in tiles(array, spans, rows, picks, decode, ids):
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
    spans: Spans | None,
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
            yield make_tile(array, values[start : start + n], spans, low + start, layer)


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


def make_tile(array: StoredArray, values: np.ndarray, spans: Spans | None, row: int, layer: int) -> Tile:
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
    real = np.ones((n * choices, shape[3]), dtype=bool)
    if spans is not None:
        at = np.arange(shape[3])
        start, stop = (s[row : row + n].reshape(-1, 1) for s in (spans.start, spans.stop))
        real = (at >= start) & (at < stop)
    numbers = np.stack(np.divmod(np.arange(n * choices), choices), axis=1) + np.array([row, 0])
    return Tile(values, bits, real, numbers.astype(np.int64), layer, array)
