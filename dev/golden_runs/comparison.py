"""Two folders of golden runs compared: every file byte for byte, but for a few named fields of JSON files."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

DROPPED: Final[Mapping[str, frozenset[str]]] = {
    "meta.json": frozenset({"time", "timings", "environment", "digest"}),
    "record.json": frozenset({"time", "version", "digest"}),
    "index.json": frozenset({"validation.time", "digest", "bytes_on_disk"}),
}
"""File name to the fields that two makes of the same code need not share.

A digest is of the file itself, so it follows its time; the bytes on disk count the digits of the timings.
"""


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs in a file.

    Attributes:
        file: Its path in the folder, with forward slashes.
        where: The path in its JSON, such as `sides.dec.layers[1]`; empty where the file as a whole is meant.
        what: How it differs.
    """

    file: str
    where: str
    what: str

    def __str__(self) -> str:
        """Return `run/meta.json: seed: 1 | 2`."""
        return ": ".join(part for part in (self.file, self.where, self.what) if part)

    def matches(self, patterns: Collection[str]) -> bool:
        """Return whether a pattern fits the file, or the file and the path in it as `FILE:WHERE`."""
        return any(fnmatchcase(name, p) for p in patterns for name in (self.file, f"{self.file}:{self.where}"))


def compare_folders(one: Path, other: Path, ignore: Collection[str] = ()) -> dict[str, list[Difference]]:
    """Return the differences by kind: by the outermost folder (or file) that they lie in, an empty list where none.

    Args:
        one: A folder of golden runs.
        other: Another.
        ignore: What is known to differ: patterns as `Difference.matches` takes them.

    Raises:
        FileNotFoundError: One of them holds no files.
    """
    files = _files(one) | _files(other)
    found: dict[str, list[Difference]] = {file.split("/")[0]: [] for file in sorted(files)}
    for file in sorted(files):
        differences = _compare_files(file, one / file, other / file)
        found[file.split("/")[0]] += [each for each in differences if not each.matches(ignore)]
    return found


def _files(folder: Path) -> set[str]:
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    if not files:
        raise FileNotFoundError(f"{folder} holds no files.")
    return files


def _compare_files(file: str, one: Path, other: Path) -> list[Difference]:
    for path, folder in ((one, "first"), (other, "second")):
        if not path.is_file():
            return [Difference(file, "", f"not in the {folder} folder")]
    left, right = one.read_bytes(), other.read_bytes()
    if left == right:
        return []
    values = _parsed(left, right) if one.suffix == ".json" else None
    found = list(_compare_values(*values)) if values else []
    dropped = DROPPED.get(one.name, frozenset())
    if found:
        return [Difference(file, where, what) for where, what in found if not _within(where, dropped)]
    pairs = enumerate(zip(left, right, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(left), len(right)))
    return [Difference(file, "", f"bytes differ from {first} on ({len(left)} | {len(right)} bytes)")]


def _parsed(*texts: bytes) -> list[Any] | None:
    """Return the values of JSON texts, or None where one of them is no JSON."""
    try:
        return [json.loads(text, parse_constant=str) for text in texts]  # NaN as a word: it would not equal itself
    except ValueError:
        return None


def _within(where: str, fields: Collection[str]) -> bool:
    return any(where == field or where.startswith(f"{field}.") for field in fields)


def _compare_values(one: Any, other: Any, where: str = "") -> Iterator[tuple[str, str]]:
    """Yield where in two JSON values they differ, and how; `1`, `1.0` and `true` are three things."""
    if type(one) is not type(other):
        yield where, f"{_short(one)} | {_short(other)}"
    elif isinstance(one, dict):
        yield from _compare_objects(one, other, where)
    elif isinstance(one, list):
        if len(one) != len(other):
            yield where, f"{len(one)} | {len(other)} entries"
        for i, (left, right) in enumerate(zip(one, other, strict=False)):
            yield from _compare_values(left, right, f"{where}[{i}]")
    elif one != other:
        yield where, f"{_short(one)} | {_short(other)}"


def _compare_objects(one: dict[str, Any], other: dict[str, Any], where: str) -> Iterator[tuple[str, str]]:
    for key in one | other:
        inner = f"{where}.{key}" if where else key
        if key not in other or key not in one:
            yield inner, f"not in the {'second' if key in one else 'first'} folder"
        else:
            yield from _compare_values(one[key], other[key], inner)
    if one.keys() == other.keys() and list(one) != list(other):
        yield where, "fields in another order"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."
