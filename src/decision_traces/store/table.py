"""The Parquet tables of a run folder: written with page checksums, read only when their bytes are right."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from crc32c import crc32c
from jaxtyping import Bool, Int64

from decision_traces.errors import DamagedRunError
from decision_traces.store.folder import FileRecord

# What pyarrow raises on damaged bytes: its own tree, whose members have standard parents besides.
_PARQUET_ERRORS = (pa.ArrowException, OSError, ValueError, TypeError, KeyError, RuntimeError, MemoryError)


def write_table(path: Path, table: pa.Table) -> None:
    """Write a Parquet file with a CRC on every page.

    Args:
        path: The file, replaced where it exists.
        table: Columns as the schema tables name them, and those of the data set.
    """
    pq.write_table(table, path, compression="zstd", write_page_checksum=True)


def read_table(path: Path, *, columns: Sequence[str] | None = None, expected: FileRecord | None = None) -> pa.Table:
    """Read a Parquet file, checking its page checksums and, where known, the checksum of the whole file.

    Args:
        path: The file.
        columns: Names to read; all of them where left out.
        expected: Size and CRC-32C the manifest names. Bytes that differ are not even parsed: a damaged
            footer can make a Parquet reader return other columns, or worse, without complaint.

    Raises:
        DamagedRunError: The file is missing, cut short, changed, or not Parquet.
    """
    with _opened(path, expected) as file:
        return file.read(columns=None if columns is None else list(columns))


def column_names(path: Path, *, expected: FileRecord | None = None) -> tuple[str, ...]:
    """Return the names of a Parquet file's columns, of the file as the manifest names it; see `read_table`."""
    with _opened(path, expected) as file:
        return tuple(file.schema_arrow.names)


@contextmanager
def _opened(path: Path, expected: FileRecord | None) -> Iterator[pq.ParquetFile]:
    help_ = "Restore it from a copy, or extract the run again."
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise DamagedRunError(f"{path} cannot be read ({error.strerror}). {help_}") from error
    if expected is not None and (len(raw), f"{crc32c(raw):08x}") != tuple(expected):
        raise DamagedRunError(f"{path} is damaged: not the size or CRC-32C the manifest names. {help_}")
    try:
        yield pq.ParquetFile(io.BytesIO(raw), page_checksum_verification=True)
    except _PARQUET_ERRORS as error:
        raise DamagedRunError(f"{path} is damaged: {error}. {help_}") from error


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
