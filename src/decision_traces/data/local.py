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


def _jsonl(path: Path) -> Iterator[tuple[int, str]]:
    with path.open(encoding="utf-8-sig") as stream:
        for row, line in enumerate(stream):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise DataError(f"--text_file {path}, line {row + 1}: not JSON ({error.msg}).") from error
            yield row, _text_of(record, path, f"line {row + 1}")


def _text_of(record: object, path: Path, where: str) -> str:
    if not isinstance(record, dict) or "text" not in record:
        keys = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise DataError(f"--text_file {path}, {where}: needs a column named text; it has: {keys}.")
    text = "" if record["text"] is None else str(record["text"])
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise DataError(f"--text_file {path}, {where}: half a surrogate pair is not valid Unicode.")
    return text


def _table(path: Path) -> Iterator[tuple[int, str]]:
    import pandas as pd

    try:
        frame = (
            pd.read_csv(path, keep_default_na=False, dtype=str)
            if path.suffix.lower() == ".csv"
            else pd.read_parquet(path)
        )
    except (ValueError, OSError) as error:  # pandas and pyarrow errors for malformed files are both
        reason = str(error).splitlines()[0]
        raise DataError(f"--text_file {path}: cannot be read as {path.suffix[1:]} ({reason}).") from error
    if "text" not in frame.columns:
        raise DataError(f"--text_file {path}: needs a column named text; it has: {', '.join(map(str, frame.columns))}.")
    for row, text in enumerate(frame["text"]):
        yield row, "" if pd.isna(text) else str(text)


def text_file_examples(path: Path) -> Iterator[Example]:
    """Yield the texts of a .txt (one a line, empty lines are no examples), .jsonl, .csv or .parquet file.

    In the last three a `text` column is needed, and a row with an empty text is an example of no characters.

    Raises:
        DataError: No such file, unknown suffix, no `text` column, malformed content.
    """
    suffix = path.suffix.lower()
    if suffix not in TEXT_SUFFIXES:
        raise DataError(
            f"--text_file {path}: expected one of {', '.join(TEXT_SUFFIXES)}, got {suffix or 'no suffix'!r}."
        )
    if not path.is_file():
        raise DataError(f"--text_file {path}: there is no such file.")
    rows = {".txt": _txt, ".jsonl": _jsonl}.get(suffix, _table)(path)
    try:
        for row, text in rows:
            yield Example(make_example_id(path.stem, "all", row, text), text)
    except UnicodeDecodeError as error:
        raise DataError(f"--text_file {path}: not UTF-8 ({error.reason} at byte {error.start}).") from error


def fingerprint(examples: list[Example]) -> str:
    """Return the SHA-256 over ids, texts and fields in order: two runs with the same value saw the same data."""
    digest = hashlib.sha256()
    for example in examples:
        for part in (example.text, json.dumps(dict(example.fields), sort_keys=True)):
            encoded = part.encode("utf-8", errors="surrogatepass")
            digest.update(f"{example.example_id} {len(encoded)}\n".encode())
            digest.update(encoded)
    return digest.hexdigest()
