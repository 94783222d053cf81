"""The Parquet tables of a run folder: written with page checksums, read only when their bytes are right."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Bool, Int, Int64, Num

from decision_traces.errors import DamagedRunError
from decision_traces.folders.plain import open_plain
from decision_traces.store.files.folder import FileRecord, stream_checksum
from decision_traces.store.files.table_bounds import open_bounded
from decision_traces.store.reading.still import FileStamp, file_stamp, settled

if TYPE_CHECKING:
    import pandas

# What pyarrow raises on damaged bytes: its own tree, whose members have standard parents besides.
_PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, RuntimeError, MemoryError)
_RESTORE: Final = "Restore it from a copy, or extract the run again."


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file with a CRC on every page.

    Args:
        path: The file, replaced where it exists.
        table: Columns as the schema tables name them, and those of the data set.
    """
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


class TableFile:
    """A Parquet file of a run: all its bytes are checked once, and again when it is another file.

    What its footer says to pandas (an index, types of names) is not taken: a few words can make gigabytes of it.
    """

    def __init__(self, path: Path, expected: FileRecord | None = None) -> None:
        """Remember the path; nothing is read.

        Args:
            path: The file.
            expected: Size and CRC-32C the manifest names. Bytes that differ are not even parsed: a damaged footer can
                make a Parquet reader return other columns, or worse, without complaint.
        """
        self.path = path
        self._expected = expected
        self._checked: FileStamp | None = None

    def schema(self) -> pa.Schema:
        """Return names and types of the columns; see `read`."""
        with self._opened() as raw:
            return open_bounded(raw, []).schema_arrow.remove_metadata()

    def read(self, columns: Sequence[str] | None = None, where: tuple[str, int | str] | None = None) -> pa.Table:
        """Read the file, or some columns of it, checking the checksums of their pages.

        Args:
            columns: Names to read; all of them where left out.
            where: A column of integers or texts and the value that rows must have in it.

        Raises:
            DamagedRunError: The file is missing, cut short, changed, or not Parquet.
        """
        names = None if columns is None else list(columns)
        with self._opened() as raw:
            file = open_bounded(raw, names if names is None or where is None else [*names, where[0]])
            if where is None:
                table = file.read(columns=names)
            else:
                rows = [(where[0], "=", where[1])]
                table = pq.read_table(raw, columns=names, filters=rows, page_checksum_verification=True)
        return table.replace_schema_metadata()

    def frame(self) -> "pandas.DataFrame":
        """Return the whole file as a data frame; see `read`."""
        with self._opened() as raw:
            frame: pandas.DataFrame = open_bounded(raw, None).read().replace_schema_metadata().to_pandas()
        return frame

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """Yield the open file with its bytes checked; it must be the same at the end."""
        try:
            raw = open_plain(self.path.parent, self.path)
        except OSError as error:
            raise DamagedRunError(f"{self.path} cannot be read ({error.strerror}). {_RESTORE}") from error
        with raw:
            try:
                before = os.fstat(raw.fileno())
                if file_stamp(before) != self._checked:
                    self._check(raw, before)
                yield raw
                if file_stamp(os.fstat(raw.fileno())) != file_stamp(before):
                    raise DamagedRunError(f"{self.path} was changed while it was read. {_RESTORE}")
            except _PARQUET_ERRORS as error:
                raise DamagedRunError(f"{self.path} is damaged: {error}. {_RESTORE}") from error

    def _check(self, raw: BinaryIO, status: os.stat_result) -> None:
        if self._expected is not None and stream_checksum(raw) != tuple(self._expected):
            raise DamagedRunError(f"{self.path} is damaged: not the size or CRC-32C the manifest names. {_RESTORE}")
        raw.seek(0)
        if settled(status):
            self._checked = file_stamp(status)


def read_table(path: Path, *, columns: Sequence[str] | None = None, expected: FileRecord | None = None) -> pa.Table:
    """Read a Parquet file, checking its page checksums and, where known, the checksum of the whole file.

    Args:
        path: The file.
        columns: Names to read; all of them where left out.
        expected: Size and CRC-32C the manifest names; see `TableFile`.

    Raises:
        DamagedRunError: The file is missing, cut short, changed, or not Parquet.
    """
    return TableFile(path, expected).read(columns)


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
    """Return whether a column of a type says one thing of an example that can be grouped or sorted by."""
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
    """Return the length of every list of a column, and what stands in all of them, one behind the other.

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
    """Return what stands at some positions of some rows' lists.

    Raises:
        DamagedRunError: A list ends before the position, or holds nulls or lists.
    """
    lengths, flat = unnested(column)
    if ((positions < 0) | (positions >= lengths[rows])).any():
        raise DamagedRunError("a list column has lists that are too short")
    if pa.types.is_nested(flat.type):
        raise DamagedRunError("a list column has lists where values belong")
    found: np.ndarray = flat.take(pa.array((np.cumsum(lengths) - lengths)[rows] + positions)).to_numpy()
    return found


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
    whole = np.full((len(lengths), size, *values.shape[1:]), blank, values.dtype)
    whole[np.arange(size) < lengths[:, None]] = values
    return whole


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
