"""The four formats in which data sets are published, read row by row with the line each row begins on."""

import csv
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, TextIO, TypeVar, cast

import conllu

from decision_traces.errors import DataError

Row = Mapping[str, Any]
Value = TypeVar("Value")
_KINDS: Final[Mapping[type, str]] = {str: "text", dict: "an object", list: "a list"}


class Malformed(ValueError):
    """A row that is not of the published form; who knows the file and the line makes a `DataError` of it."""


def take(row: object, key: str, kind: type[Value]) -> Value:
    """Return a value of a row.

    Raises:
        Malformed: The row has no such value, or one of another kind.
    """
    if not isinstance(row, Mapping):
        raise Malformed(f"needs an object with {key}, got {json.dumps(row)[:80]}")
    if key not in row:
        raise Malformed(f"needs {key}; it has: {', '.join(map(str, row)) or 'nothing'}")
    value = row[key]
    if not isinstance(value, kind):
        raise Malformed(f"{key} must be {_KINDS[kind]}, got {value!r}"[:120])
    return value


def lines(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield every line, the empty ones too, as `text`."""
    with path.open(encoding="utf-8", newline="\n") as stream:
        for number, line in enumerate(stream, 1):
            yield number, {"text": line}


def jsonl(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield the object on each line that is not empty."""
    with path.open(encoding="utf-8-sig", newline="\n") as stream:
        for number, line in enumerate(stream, 1):
            if line.strip():
                yield number, _json_object(line, f"{path}, line {number}")


def _json_object(line: str, location: str) -> Row:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{location}: not JSON ({error.msg}).") from error
    if not isinstance(record, dict):
        raise DataError(f"{location}: expected a JSON object, got {line.strip()[:60]}.")
    if "\\ud" in line.lower():  # Only an escape can bring half a surrogate pair into a file that is UTF-8.
        try:
            json.dumps(record, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{location}: half a surrogate pair is not valid Unicode.") from error
    return record


def tsv(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a table without a header, quoted as in CSV where a cell holds a quotation mark."""
    with path.open(encoding="utf-8-sig", newline="") as stream:
        # Without `strict` a quotation mark that is never closed would swallow the rest of the file.
        reader = csv.reader(stream, delimiter="\t", strict=True)
        while True:
            number = reader.line_num + 1
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise DataError(f"{path}, line {number}: the quotation marks do not add up ({error}).") from error
            if cells is None:
                return
            if cells and len(cells) != len(columns):
                named = ", ".join(columns)
                raise DataError(f"{path}, line {number}: expected {len(columns)} columns ({named}), got {len(cells)}.")
            if cells:
                yield number, dict(zip(columns, cells, strict=True))


def conllu_comments(path: Path) -> Iterator[tuple[int, Row]]:
    """Yield what the comments of each sentence say (`sent_id`, `text`, ...).

    The words are left unparsed: of a sentence only its comments go to the parser, a twentieth of the work.
    """
    with path.open(encoding="utf-8-sig", newline="\n") as stream:
        numbered = _Numbered(stream)
        for sentence in conllu.parse_sentences(cast(TextIO, numbered)):  # which does nothing but iterate
            comments = [line for line in sentence.split("\n") if line.startswith("#")]
            yield numbered.block, conllu.parse_token_and_metadata("\n".join(comments)).metadata if comments else {}


class _Numbered:
    """The lines of a file; `block` is the line on which the last block without empty lines began."""

    def __init__(self, stream: TextIO) -> None:
        self._lines = enumerate(stream, 1)
        self._inside = False
        self.block = 0

    def __iter__(self) -> Iterator[str]:
        for number, line in self._lines:
            filled = bool(line.strip())
            if filled and not self._inside:
                self.block = number
            self._inside = filled
            yield line
