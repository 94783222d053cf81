"""The user's own texts (`--text_file`): one a line, or a column of a table whose other columns go with them."""

import csv
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from decision_traces.data.example import TARGET_FIELD, Example, FieldValue, make_example_id
from decision_traces.errors import DataError, first_line
from decision_traces.printable import printable
from decision_traces.tasks import column_names

TEXT_SUFFIXES: Final = (".txt", ".jsonl", ".csv", ".parquet")
TEXT: Final = "text"
_LOG: Final = logging.getLogger("decision_traces")
_LONGEST_CELL: Final = (1 << 31) - 1
_LARGEST_INT: Final = 1 << 63


@dataclass(frozen=True, slots=True)
class TextRow:
    """One row of a file of texts.

    Attributes:
        number: Of the row in the file, from 0.
        text: The text.
        fields: The other columns, under names that no column of a run has.
    """

    number: int
    text: str
    fields: Mapping[str, FieldValue]


@dataclass(frozen=True, slots=True)
class Record:
    """A row of a table, and the location that messages name."""

    number: int
    location: str
    values: Mapping[str, Any]


def text_rows(path: Path, column: str = TEXT, flag: str = "--text_file") -> Iterator[TextRow]:
    """Yield the rows of a .txt (one text a line, empty lines left out), .jsonl, .csv or .parquet file.

    Args:
        path: The file.
        column: Which column of a file that has columns holds the text. A number is taken as it is written, null as an
            empty text.
        flag: The flag that named the file, for the messages.

    Raises:
        DataError: No such file, unknown suffix, no such column, malformed content, or a text that is no text.
    """
    suffix = path.suffix.lower()
    if suffix not in TEXT_SUFFIXES:
        raise DataError(f"{flag} {path}: expected one of {', '.join(TEXT_SUFFIXES)}, got {suffix or 'no suffix'!r}.")
    if not path.is_file():
        raise DataError(f"{flag} {path}: there is no such file.")
    where = f"{flag} {path}"
    try:
        if suffix == ".txt":
            yield from _lines(path)
        else:
            yield from rows_of_records(_FORMATS[suffix](path, where, column), column)
    except UnicodeDecodeError as error:
        raise DataError(f"{where}: not UTF-8 ({error.reason} at byte {error.start}).") from error


def text_file_examples(path: Path) -> Iterator[Example]:
    """Yield the texts of a file; see `text_rows`. A row of a table with an empty text is an example too."""
    for row in text_rows(path):
        yield Example(make_example_id(path.stem, "all", row.number, row.text), row.text, row.fields)


def field_name(column: str) -> str:
    """Return what a column of the user's is called in `tokens.parquet`: its own name where no column of ours has it."""
    return f"field_{column}" if column == TARGET_FIELD or column in column_names() else column


# -- the formats --------------------------------------------------------------------------------------------


def _lines(path: Path) -> Iterator[TextRow]:
    with path.open(encoding="utf-8-sig", newline=None) as stream:
        for number, line in enumerate(stream):
            text = line.rstrip("\n")
            if text:
                yield TextRow(number, text, {})


def _jsonl(path: Path, where: str, column: str) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as stream:
        for number, line in enumerate(stream):
            if not line.strip():
                continue
            location = f"{where}, line {number + 1}"
            try:
                record = json.loads(line, object_pairs_hook=_named_once)
            except (ValueError, RecursionError) as error:  # ValueError: a number of thousands of digits, too
                raise DataError(f"{location}: not JSON ({first_line(error)}).") from error
            if not isinstance(record, dict):
                raise DataError(f"{location}: expected an object with a column {column}, got {_kind(record)}.")
            yield Record(number, location, record)


def _named_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; of two values under one name, Python would take the last."""
    if twice := _twice([name for name, _ in pairs]):
        raise ValueError(f"two values are named {twice!r}")
    return dict(pairs)


def _csv(path: Path, where: str, column: str) -> Iterator[Record]:
    """Yield the rows below the header; every row has as many cells as it, and quotation marks add up."""
    most = csv.field_size_limit(_LONGEST_CELL)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.reader(stream, strict=True)
            header = _cells(reader, where)
            if header is None:
                raise DataError(f"{where}: cannot be read as csv (it is empty).")
            _need(column, header, where)
            number = 0
            while True:
                location = f"{where}, line {reader.line_num + 1}"
                cells = _cells(reader, where)
                if cells is None:
                    return
                if cells and len(cells) != len(header):
                    named = ", ".join(header)
                    raise DataError(f"{location}: expected {len(header)} cells ({named}), got {len(cells)}.")
                if cells:
                    yield Record(number, location, dict(zip(header, cells, strict=True)))
                    number += 1
    finally:
        csv.field_size_limit(most)


def _cells(reader: Any, where: str) -> list[str] | None:
    begins = reader.line_num + 1
    try:
        cells: list[str] | None = next(reader, None)
    except csv.Error as error:
        raise DataError(f"{where}, line {begins}: the quotation marks do not add up ({error}).") from error
    return cells


def _parquet(path: Path, where: str, column: str) -> Iterator[Record]:
    try:
        file = pq.ParquetFile(path)
        _need(column, file.schema_arrow.names, where)
        # What is in bytes (pictures, sounds) is nothing a table of texts could show.
        omitted = [f.name for f in file.schema_arrow if f.name != column and _holds_bytes(f.type)]
        names = [name for name in file.schema_arrow.names if name not in omitted]
        if omitted:
            _LOG.warning(printable(f"{where}: left out, since they hold bytes: {', '.join(omitted)}"))
        number = 0
        for batch in file.iter_batches(columns=names):
            for values in batch.to_pylist():
                yield Record(number, f"{where}, row {number}", values)
                number += 1
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{where}: cannot be read as parquet ({first_line(error)}).") from error


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_nested(kind):
        return any(_holds_bytes(kind.field(i).type) for i in range(kind.num_fields))
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


_FORMATS: Final[Mapping[str, Callable[[Path, str, str], Iterator[Record]]]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
}


def _need(column: str, names: Iterable[str], where: str) -> None:
    names = list(names)
    if column not in names:
        raise DataError(f"{where}: needs a column named {column}; it has: {', '.join(names) or 'none'}.")
    if twice := _twice(names):
        raise DataError(f"{where}: two columns are named {twice!r}.")


def _twice(names: list[str]) -> str | None:
    return next((name for name, times in Counter(names).items() if times > 1), None)


# -- texts and fields ---------------------------------------------------------------------------------------


def rows_of_records(records: Iterable[Record], column: str = TEXT) -> Iterator[TextRow]:
    """Yield the rows of a table; see `text_rows`.

    Raises:
        DataError: No such column, a text that is no text, or two columns of one name.
    """
    sources: dict[str, str] = {}
    for record in records:
        _need(column, record.values, record.location)
        text = _text(record.values[column], column, record.location)
        others = {n: v for n, v in record.values.items() if n != column}
        for name in others:
            if sources.setdefault(field_name(name), name) != name:
                both = f"{sources[field_name(name)]} and {name}"
                raise DataError(f"{record.location}: {both} would both be {field_name(name)} in the run. Rename one.")
        yield TextRow(record.number, text, {field_name(n): _field(v, n, record.location) for n, v in others.items()})


def _text(value: object, column: str, location: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise DataError(f"{location}: {column} holds {_kind(value)}, where a text belongs.")
    return _unicode(str(value), location)


def _field(value: object, column: str, location: str) -> FieldValue:
    """Return a value as it may stand in a column; what has an inner structure as JSON, dates and the like as text."""
    if isinstance(value, str):
        return _unicode(value, location)
    if isinstance(value, int) and not -_LARGEST_INT <= value < _LARGEST_INT:
        return str(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, list) and all(isinstance(v, str) for v in value):
        return [_unicode(v, location) for v in value]
    if not isinstance(value, list | tuple | dict):
        return str(value)
    try:
        return _unicode(json.dumps(value, ensure_ascii=False, default=str), location)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{location}: {column} cannot be kept ({first_line(error)}).") from error


def _unicode(text: str, location: str) -> str:
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise DataError(f"{location}: half a surrogate pair is not valid Unicode.")
    return text


def _kind(value: object) -> str:
    """Return what a value is, in words."""
    if isinstance(value, list) and value and isinstance(value[0], dict) and "role" in value[0]:
        return "a list of chat messages"
    kinds = {
        list: "a list",
        dict: "an object",
        bool: "true or false",
        bytes: "bytes",
        str: "a text",
        type(None): "null",
    }
    return kinds.get(type(value), f"a {type(value).__name__}")
