"""The Parquet tables of a run folder: written with page checksums, read only when their bytes are right."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

import pyarrow as pa
import pyarrow.parquet as pq

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
