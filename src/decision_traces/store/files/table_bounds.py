"""What a Parquet file would take in memory, found out from its own page headers before any page is decoded.

A page of a few bytes can say that it holds a value two thousand million times, whatever the footer says. What a table
may take is bounded by the bytes of its file. Padding compresses well: tables of texts of 12 tokens padded to 4,096 take
704 to 720 bytes in memory for each on disk, one padded to 131,072 takes 1,218.
"""

import os
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_LARGEST: Final = 64 << 20  # bytes in memory of a table of whatever size on disk
_PER_BYTE: Final = 1 << 13
_ROWS, _COLUMNS, _DEPTH, _ELEMENTS = 1000, 10_000, 16, 1 << 17
_FOOTER: Final = 512 << 10
_HEADER: Final = 4 << 10  # what is read of a page's header at first; statistics may make it longer
_LEVELS: Final = 4  # bytes that a value's place in nested lists takes while it is read
_WIDTHS: Final = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 12, "FLOAT": 4, "DOUBLE": 8, "BYTE_ARRAY": 4}
_DICTIONARY_PAGE, _DELTA_BYTE_ARRAY = 2, 7


def open_bounded(raw: BinaryIO, columns: Sequence[str] | None) -> pq.ParquetFile:
    """Open a Parquet file some columns of which can be read: they take no more than a file of its size can need.

    Args:
        raw: The file.
        columns: Names; all of them where None.

    Raises:
        ValueError: They take more, or the footer has more rows, columns or levels than the file can hold.
        pyarrow.ArrowException: It is not Parquet.
    """
    size = os.fstat(raw.fileno()).st_size
    _refuse_footer(raw, size)
    raw.seek(0)
    file = pq.ParquetFile(raw, page_checksum_verification=True, thrift_container_size_limit=_ELEMENTS)
    if file.metadata.created_by.startswith("parquet-mr"):  # Arrow reads past the end of a column of its early versions
        raise ValueError("it was written by parquet-mr, whose tables no run has")
    groups = range(file.metadata.num_row_groups)
    rows = max(file.metadata.num_rows, sum(file.metadata.row_group(g).num_rows for g in groups))
    if rows > _ROWS + size:
        raise ValueError(f"it says {rows} rows, more than its {size} bytes can hold")
    _refuse_large(raw, file, columns, size)
    return file


def _refuse_large(raw: BinaryIO, file: pq.ParquetFile, columns: Sequence[str] | None, size: int) -> None:
    """Raise if some columns take more memory than a file of this size can need."""
    most, numbers, texts = _LARGEST + _PER_BYTE * size, 0, 0
    leaves = enumerate(map(file.metadata.schema.column, range(file.metadata.num_columns)))
    wanted = {number: leaf for number, leaf in leaves if _is_of(leaf.path, columns)}
    for group in range(file.metadata.num_row_groups):
        row_group = file.metadata.row_group(group)
        for number, leaf in wanted.items():
            values, page_bytes, dictionary = _told(raw, row_group.column(number), size)
            numbers += values * ((_WIDTHS.get(leaf.physical_type) or leaf.length) + _LEVELS) + page_bytes
            texts += values * dictionary  # if each were as long as all of them
            if numbers > most:
                raise ValueError(f"{leaf.path} would take over {most} bytes, more than a file of {size} can need")
    if numbers + texts > most:
        paths = [leaf.path for leaf in wanted.values() if leaf.physical_type == "BYTE_ARRAY"]
        _refuse_texts(raw, paths, most - numbers, size)


def _is_of(path: str, columns: Sequence[str] | None) -> bool:
    return columns is None or any(path == name or path.startswith(f"{name}.") for name in columns)


def _refuse_texts(raw: BinaryIO, paths: Sequence[str], most: int, size: int) -> None:
    """Raise if the texts of some columns have too many bytes, each counted as often as it stands there."""
    file = pq.ParquetFile(raw, read_dictionary=list(paths), page_checksum_verification=True)
    total = 0
    for group in range(file.metadata.num_row_groups):
        for column in file.read_row_group(group, columns=list(paths)).columns:
            total += sum(map(_text_bytes, column.chunks))
            if total > most:
                raise ValueError(f"its texts would take over {most} bytes, more than a file of {size} can need")


def _text_bytes(part: pa.Array) -> int:
    while isinstance(part, pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray):
        part = part.flatten()
    coded = isinstance(part, pa.DictionaryArray)
    lengths = pc.binary_length(part.dictionary if coded else part).cast(pa.int64())
    return pc.sum(lengths.take(part.indices) if coded else lengths).as_py() or 0


def _told(raw: BinaryIO, chunk: pq.ColumnChunkMetaData, size: int) -> tuple[int, int, int]:
    """Return what the pages of a column chunk say: values, bytes uncompressed, bytes of the dictionary."""
    starts = [at for at in (chunk.dictionary_page_offset, chunk.data_page_offset) if at]
    at, values, page_bytes, dictionary = min(starts, default=0), 0, 0, 0
    end = at + chunk.total_compressed_size
    if at < 0 or not at <= end <= size:
        raise ValueError(f"the pages of {chunk.path_in_schema} lie outside of the file")
    while at < end:
        header, length = _page_header(raw, at)
        kind, uncompressed, compressed = (header.get(key, -1) for key in (1, 2, 3))
        about = header.get(5) or header.get(7) or header.get(8) or {}
        if min(kind, uncompressed, compressed) < 0 or at + length + compressed > end:
            raise ValueError(f"a page of {chunk.path_in_schema} does not end where it should")
        if kind == _DICTIONARY_PAGE:
            dictionary = max(dictionary, uncompressed)
        elif about.get(2 if 5 in header else 4) == _DELTA_BYTE_ARRAY:
            raise ValueError(f"{chunk.path_in_schema} has texts in an encoding that is not read here")
        else:
            values += max(0, about.get(1, 0))
        page_bytes += uncompressed
        at += length + compressed
    return values, page_bytes, dictionary


def _refuse_footer(raw: BinaryIO, size: int) -> None:
    """Raise unless the schema in a footer has few columns in few levels; deeper ones overflow Arrow's stack.

    Raises:
        ValueError: It has not, or is no footer.
    """
    raw.seek(max(0, size - 8))
    length = int.from_bytes(raw.read(4), "little")
    if length > size - 8 or length > max(_FOOTER, size // 2):
        raise ValueError(f"its footer of {length} bytes is too large for a file of {size}")
    raw.seek(size - 8 - length)
    try:
        children = [element.get(5, 0) for element in _Thrift(raw.read(length)).field(2)]
    except IndexError:
        raise ValueError("its footer ends too early") from None
    open_at: list[int] = []
    for count in children:
        while open_at and not open_at[-1]:
            open_at.pop()
        if open_at:
            open_at[-1] -= 1
        open_at.append(count)
        if len(open_at) > _DEPTH or len(children) > _COLUMNS:
            raise ValueError(f"its schema has over {_DEPTH} levels or over {_COLUMNS} columns")


def _page_header(raw: BinaryIO, at: int) -> tuple[dict[int, Any], int]:
    """Return the header of a page, field by field, and its length."""
    for room in (_HEADER, 1 << 20):
        raw.seek(at)
        reader = _Thrift(raw.read(room))
        try:
            return reader.struct(), reader.at
        except IndexError:
            continue
    raise ValueError("a page has no header")


class _Thrift:
    """Reads Thrift's compact protocol, in which Parquet writes its headers: structures become field numbers to values.

    An `IndexError` says that the bytes end too early, a `ValueError` that they are something else.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def struct(self, depth: int = 0) -> dict[int, Any]:
        """Return all fields of a structure."""
        return dict(self._fields(depth))

    def field(self, number: int) -> list[dict[int, Any]]:
        """Return one field of a structure, a list of structures, and read nothing behind it."""
        found: Any = next((value for key, value in self._fields(0) if key == number), [])
        if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
            raise ValueError("its footer is no list of columns")
        return found

    def _fields(self, depth: int) -> Iterator[tuple[int, Any]]:
        if depth > _DEPTH:
            raise ValueError("a header has too many levels")
        number = 0
        while byte := self._byte():
            number = number + (byte >> 4) if byte >> 4 else self._signed()
            yield number, self._value(byte & 15, depth)

    def _value(self, kind: int, depth: int) -> Any:
        if kind in {1, 2}:
            return kind == 1
        if kind in {4, 5, 6}:
            return self._signed()
        if kind in {9, 10}:
            return self._list(depth)
        if kind == 12:
            return self.struct(depth + 1)
        if kind not in {3, 7, 8}:
            raise ValueError(f"a header has a field of kind {kind}")
        return self._skip({3: 1, 7: 8}.get(kind) or self._unsigned())

    def _list(self, depth: int) -> list[Any]:
        head = self._byte()
        count = head >> 4 if head >> 4 < 15 else self._unsigned()
        if count > len(self._data) - self.at:
            raise IndexError(count)
        kind = head & 15
        return [self._byte() if kind in {1, 2} else self._value(kind, depth + 1) for _ in range(count)]

    def _skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self._data):
            raise IndexError(count)

    def _byte(self) -> int:
        self.at += 1
        return self._data[self.at - 1]

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a header has too long a number")

    def _signed(self) -> int:
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)
