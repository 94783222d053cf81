"""Local files: the user's own texts (`--text_file`), and what to say when a published file is not there."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from decision_traces.data.example import Example, make_example_id
from decision_traces.errors import DataError

TEXT_SUFFIXES: Final = (".txt", ".jsonl", ".csv", ".parquet")


def missing_local(
    dataset: str, split: str, data_dir: Path, names: tuple[str, ...], folders: tuple[str, ...]
) -> DataError:
    """Return the error for a split that a local folder does not have, naming the files and folders that are there."""
    if not data_dir.is_dir():
        return DataError(f"--data_dir {data_dir}: there is no such folder.")
    here = [data_dir, *(place for folder in folders if (place := data_dir / folder).is_dir())]
    files = sorted(p.relative_to(data_dir).as_posix() for place in here for p in place.iterdir() if p.is_file())
    other = sorted(f"{p.name}/" for p in data_dir.iterdir() if p.is_dir() and p.name not in folders)
    return DataError(
        f"--data_dir {data_dir} has no {split} split of {dataset}: looked for {' or '.join(names)} there and under "
        f"{' or '.join(f'{folder}/' for folder in folders)}. It holds: "
        f"{', '.join([*files, *other][:12]) or 'no files'}."
    )


def _txt(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8-sig", newline=None) as stream:
        for row, line in enumerate(stream):
            text = line.rstrip("\n")
            if text:
                yield row, text


def _jsonl(path: Path, column: str, flag: str) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8-sig") as stream:
        for row, line in enumerate(stream):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"{flag} {path}, line {row + 1}: not JSON ({error.msg}).") from error
            yield row, _text_of(record, column, f"{flag} {path}, line {row + 1}")


def _text_of(record: object, column: str, where: str) -> str:
    if not isinstance(record, dict) or column not in record:
        keys = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise DataError(f"{where}: needs a column named {column}; it has: {keys}.")
    text = "" if record[column] is None else str(record[column])
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise DataError(f"{where}: half a surrogate pair is not valid Unicode.")
    return text


def _table(path: Path, column: str, flag: str) -> Iterator[tuple[int, str]]:
    import pandas as pd

    try:
        frame = (
            pd.read_csv(path, keep_default_na=False, dtype=str)
            if path.suffix.lower() == ".csv"
            else pd.read_parquet(path)
        )
    except (ValueError, OSError) as error:  # pandas and pyarrow errors for malformed files are both
        reason = str(error).splitlines()[0]
        raise DataError(f"{flag} {path}: cannot be read as {path.suffix[1:]} ({reason}).") from error
    if column not in frame.columns:
        raise DataError(f"{flag} {path}: needs a column named {column}; it has: {', '.join(map(str, frame.columns))}.")
    for row, text in enumerate(frame[column]):
        yield row, "" if pd.isna(text) else str(text)


def text_file_rows(path: Path, column: str = "text", flag: str = "--text_file") -> Iterator[tuple[int, str]]:
    """Yield row number and text of a .txt (one a line, empty lines left out), .jsonl, .csv or .parquet file.

    Args:
        path: The file.
        column: Which column of a file that has columns.
        flag: The flag that named the file, for the messages.

    Raises:
        DataError: No such file, unknown suffix, no such column, malformed content.
    """
    suffix = path.suffix.lower()
    if suffix not in TEXT_SUFFIXES:
        raise DataError(f"{flag} {path}: expected one of {', '.join(TEXT_SUFFIXES)}, got {suffix or 'no suffix'!r}.")
    if not path.is_file():
        raise DataError(f"{flag} {path}: there is no such file.")
    rows = _txt(path) if suffix == ".txt" else (_jsonl if suffix == ".jsonl" else _table)(path, column, flag)
    try:
        yield from rows
    except UnicodeDecodeError as error:
        raise DataError(f"{flag} {path}: not UTF-8 ({error.reason} at byte {error.start}).") from error


def text_file_examples(path: Path) -> Iterator[Example]:
    """Yield the texts of a file; see `text_file_rows`. A row of a table with an empty text is an example too."""
    for row, text in text_file_rows(path):
        yield Example(make_example_id(path.stem, "all", row, text), text)


def fingerprint(examples: list[Example]) -> str:
    """Return the SHA-256 over ids, texts and fields in order: two runs with the same value saw the same data."""
    digest = hashlib.sha256()
    for example in examples:
        for part in (example.text, json.dumps(dict(example.fields), sort_keys=True)):
            encoded = part.encode("utf-8", errors="surrogatepass")
            digest.update(f"{example.example_id} {len(encoded)}\n".encode())
            digest.update(encoded)
    return digest.hexdigest()
