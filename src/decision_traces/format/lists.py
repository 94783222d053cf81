"""Columns of lists as arrays: where an example's tokens are, the value at a position, how long lists are."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Int, Int64, Num

from decision_traces.errors import DamagedRunError


@dataclass(frozen=True, slots=True)
class Spans:
    """Where each example's tokens lie on the position axis.

    Attributes:
        start: First position that is a token; 0 for all runs of this package. (N,), or (N, C) with choices.
        stop: One past the last token; equal to `start` where there is none. Same shape.
    """

    start: Int64[np.ndarray, "*examples"]
    stop: Int64[np.ndarray, "*examples"]

    @property
    def n_tokens(self) -> Int64[np.ndarray, "*examples"]:
        """Tokens per example."""
        counts: np.ndarray = self.stop - self.start
        return counts


def is_label(kind: pa.DataType) -> bool:
    """Return whether a column of a type has one value an example, to group or sort by."""
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    return bool(text or pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind))


def list_levels(column: pa.ChunkedArray) -> tuple[int, ...] | None:
    """Return the common lengths of a nested list column, outermost first, or None where they differ."""
    array, sizes = pa.chunked_array(column.chunks, column.type).combine_chunks(), []
    rows = len(array)
    while isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        if array.null_count:
            return None
        inner = array.flatten()
        if rows and len(inner) % rows:
            return None
        size = len(inner) // rows if rows else 0
        if not isinstance(array, pa.FixedSizeListArray) and np.any(np.diff(array.offsets.to_numpy()) != size):
            return None
        sizes.append(size)
        array, rows = inner, len(inner)
    return tuple(sizes)


def has_levels(column: pa.ChunkedArray, levels: int) -> bool:
    """Return whether a column is of lists nested so deep, of one length at every level."""
    sizes = list_levels(column)
    return sizes is not None and len(sizes) == levels


def rectangle(column: pa.ChunkedArray) -> np.ndarray:
    """Return a nested list column whose lists all have the same lengths as one array.

    Raises:
        DamagedRunError: The lists have different lengths, or hold nulls.
    """
    sizes = list_levels(column)
    if sizes is None:
        raise DamagedRunError("a list column has lists of different lengths, or nulls")
    array = column.combine_chunks()
    for _ in sizes:
        array = array.flatten()
    flat: np.ndarray = np.asarray(array.to_numpy(zero_copy_only=False))
    return flat.reshape(len(column), *sizes)


def unnested(column: pa.ChunkedArray) -> tuple[Int64[np.ndarray, " rows"], pa.Array]:
    """Return the length of every list of a column, and the values of all of them, one list behind the other.

    Raises:
        DamagedRunError: It is not a column of lists, or holds nulls.
    """
    array = pa.chunked_array(column.chunks, column.type).combine_chunks()
    if not isinstance(array, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray) or array.null_count:
        raise DamagedRunError("a column of lists holds something else, or nulls")
    flat = array.flatten()
    if flat.null_count:
        raise DamagedRunError("a list column has lists with nulls in them")
    return np.asarray(pc.list_value_length(array).to_numpy(zero_copy_only=False), np.int64), flat


def entries_at(
    column: pa.ChunkedArray, rows: Int[np.ndarray, " m"], positions: Int[np.ndarray, " m"]
) -> Num[np.ndarray, " m"]:
    """Return the values at some positions of some rows' lists.

    Raises:
        DamagedRunError: A list ends before the position, or holds nulls or lists.
    """
    lengths, flat = unnested(column)
    if ((positions < 0) | (positions >= lengths[rows])).any():
        raise DamagedRunError("a list column has lists that are too short")
    if pa.types.is_nested(flat.type):
        raise DamagedRunError("a list column has lists where values belong")
    entries: np.ndarray = flat.take(pa.array((np.cumsum(lengths) - lengths)[rows] + positions)).to_numpy()
    return entries


def filled(column: pa.ChunkedArray, size: int, blank: object, *, by_choice: bool = False) -> np.ndarray:
    """Return a column of lists of tokens as one array, filled up.

    Args:
        column: Its lists; with a level of choices above where `by_choice`.
        size: How long each is to be.
        blank: What fills them up.
        by_choice: Whether every row holds a list of each choice.

    Returns:
        (rows, size, ...) or (rows, choices, size, ...).

    Raises:
        DamagedRunError: A list is longer, there are nulls, or rows have different numbers of choices.
    """
    lengths, flat = unnested(column)
    if by_choice:
        if len(set(lengths)) > 1:
            raise DamagedRunError("a list column has rows of different numbers of choices")
        lists = filled(pa.chunked_array([flat]), size, blank)
        return lists.reshape(len(lengths), int(lengths[:1].sum()), *lists.shape[1:])
    if lengths.max(initial=0) > size:
        raise DamagedRunError(f"a list column has lists of over {size} values")
    values = rectangle(pa.chunked_array([flat]))
    padded = np.full((len(lengths), size, *values.shape[1:]), blank, values.dtype)
    padded[np.arange(size) < lengths[:, None]] = values
    return padded


def mask_spans(mask: Bool[np.ndarray, "*examples positions"]) -> Spans:
    """Return the span of tokens in each row of a mask; (0, 0) for rows without any.

    Older tools padded on the left, so the start is looked for and not assumed.
    """
    n_positions = mask.shape[-1]
    if n_positions == 0:
        empty = np.zeros(mask.shape[:-1], np.int64)
        return Spans(empty, empty.copy())
    some = mask.any(axis=-1)
    start = np.where(some, mask.argmax(axis=-1), 0)
    stop = np.where(some, n_positions - mask[..., ::-1].argmax(axis=-1), 0)
    return Spans(start.astype(np.int64), stop.astype(np.int64))
