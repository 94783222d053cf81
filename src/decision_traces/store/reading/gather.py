"""One position of every example in one pass: the read that probes, lenses and depth curves need."""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from jaxtyping import Float, Int64

from decision_traces.errors import DamagedRunError, SelectionError, UsageError
from decision_traces.format.stages import CHOICE, EXAMPLE, SOURCE
from decision_traces.store.reading.arrays import StoredArray
from decision_traces.store.reading.examples import Examples
from decision_traces.store.reading.selection import Index, checked_index
from decision_traces.store.reading.slots import Slots

Position = str | Index | Sequence[int] | np.ndarray

# Uncompressed bytes read at a time. Large enough for all cores to decode, small beside any model.
_STEP_BYTES: Final = 64 << 20


def resolve_positions(array: StoredArray, examples: Examples, position: Position) -> Int64[np.ndarray, "*examples"]:
    """Return the slot to read of every example on the array's position axis, -1 where it has no token there.

    In runs that keep all positions, the slot is the position.

    Args:
        array: The array to be read.
        examples: The rows of the run.
        position: As `TraceStore.gather` takes it.

    Returns:
        (N,), or (N, C) for runs with choices.
    """
    slots = array.slots(array.position_axis)
    spans = slots.spans
    if len(spans.start) != array.size(EXAMPLE):
        rows = array.size(EXAMPLE)
        raise DamagedRunError(f"The token table has {len(spans.start)} rows, but {array.folder} {rows}.")
    if isinstance(position, str):
        wanted = _named(array, examples, position)
    elif isinstance(position, int | np.integer):
        wanted = _numbered(slots, position)
    else:
        wanted = np.asarray(position)
        if wanted.shape not in {spans.start.shape, spans.start.shape[:1]} or wanted.dtype.kind not in "iu":
            raise UsageError(
                f"position must be integers of shape {spans.start.shape}, one per example; "
                f"got {wanted.dtype} of shape {wanted.shape}."
            )
        if wanted.size and not -1 <= wanted.min() <= wanted.max() < slots.size:
            got = f"{wanted.min()} to {wanted.max()}"
            raise SelectionError(f"Positions go from 0 to {slots.size - 1} (-1 means none), got {got}.")
    if wanted.ndim < spans.start.ndim:
        wanted = wanted[:, None]
    return slots.find(np.where((wanted >= spans.start) & (wanted < spans.stop), wanted, -1).astype(np.int64))


def _named(array: StoredArray, examples: Examples, position: str) -> np.ndarray:
    if position == "last":
        return array.slots(array.position_axis).spans.stop - 1
    if position != "next":
        raise UsageError(f"No position {position!r}: valid are 'next', 'last', an int, or one int per row.")
    return examples.prediction("enc" if array.position_axis == SOURCE else array.spec.side)


def _numbered(slots: Slots, position: Index) -> np.ndarray:
    index = checked_index(position, slots.size, "position")
    if position < 0:
        wanted: np.ndarray = slots.spans.stop + int(position)
        return wanted
    if isinstance(slots.kept, tuple) and index not in slots.kept:
        raise SelectionError(f"No position {index} here: {slots.words()}.")
    wanted = slots.spans.start + index
    return wanted


def gather(
    array: StoredArray, examples: Examples, picks: Mapping[str, int], position: Position
) -> Float[np.ndarray, "..."]:
    """Read one position of every example; see `TraceStore.gather`.

    Memory: the result, and `_STEP_BYTES` (or one example, where that is more) of the array at a time.
    """
    positions = resolve_positions(array, examples, position)
    axes, n = array.spec.axes, array.size(EXAMPLE)
    token_axis = array.spec.position_axis
    dropped = {axes[token_axis], *picks}
    result = np.full([array.size(a) for a in axes if a not in dropped], np.nan, dtype=array.dtype)
    step = rows_per_step(array, picks)
    for start in range(0, n, step):
        stop = min(start + step, n)
        here = positions[start:stop]
        if (here < 0).all():
            continue
        rows = slice(start, stop)
        if set(axes[:-2]) == {EXAMPLE, *picks} and token_axis == len(axes) - 2:
            lines = array.read_slots(here.reshape(-1), example=rows, **picks)
            result[rows] = np.where((here >= 0).reshape(-1, 1), lines, np.asarray(np.nan, dtype=array.dtype))
            continue
        values = array.read(example=rows, **{axis: slice(index, index + 1) for axis, index in picks.items()})
        taken = _take(values, here, here >= 0, token_axis, with_choice=CHOICE in axes)
        result[rows] = taken.squeeze(tuple(axes.index(a) for a in dropped))
    return result


def rows_per_step(array: StoredArray, picks: Mapping[str, int]) -> int:
    """Return how many examples to read at a time: whole files where they fit the budget."""
    row_bytes = array.row_nbytes
    for axis in picks:
        row_bytes //= max(1, array.size(axis))
    rows, per_file = max(1, _STEP_BYTES // max(1, row_bytes)), array.files_shape[0]
    return rows // per_file * per_file if rows >= per_file else rows


def _take(values: np.ndarray, at: np.ndarray, valid: np.ndarray, axis: int, *, with_choice: bool) -> np.ndarray:
    """Pick `at` on one axis, row by row, and put NaN where it is not valid."""
    lead = at.shape if with_choice else at.shape[:1]
    spread = (*lead, *(1,) * (values.ndim - len(lead)))
    taken = np.take_along_axis(values, np.where(valid, at, 0).reshape(spread), axis=axis)
    return np.where(valid.reshape(spread), taken, np.asarray(np.nan, dtype=values.dtype))
