"""The plain files of a run folder: meta.json, manifest.json, and the checksums that tie everything together.

`manifest.json` lists every file of the run but the three JSON files themselves with its size and CRC-32C;
`meta.json` carries the manifest's CRC-32C and a SHA-256 of its own content. One changed byte anywhere is
found.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final, NoReturn

from crc32c import crc32c

from decision_traces.errors import DamagedRunError, RunError, first_line
from decision_traces.folders.plain import PlainFolder, new_file, open_plain
from decision_traces.folders.removal import files_in
from decision_traces.format.analyses import ANALYSIS_DIR
from decision_traces.format.arrays import INDEX_FILE, MANIFEST_FILE, META_FILE

_CHUNK: Final = 1 << 22
_LARGEST_JSON: Final = 2 << 20  # bytes; that of the largest models' runs has 100 kB. Parsed it is 40 times as much.
_MANIFEST_BYTES_PER_FILE, _MANIFEST_PARTS_PER_FILE = 256, 12  # three times what a manifest has of each file
UNLISTED: Final = frozenset({META_FILE, MANIFEST_FILE, INDEX_FILE})

FileRecord = tuple[int, str]
"""Size in bytes and CRC-32C in hex of one file."""


def canonical_json(value: object) -> str:
    """Return the one text form in which this package writes a JSON value."""
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write_json(path: Path, value: object) -> None:
    """Write a JSON file so that a reader sees the old file or the new one, never half of it."""
    with new_file(path) as file:
        file.write(canonical_json(value).encode())


def checksum(path: Path) -> FileRecord:
    """Return size and CRC-32C of one file, read in pieces.

    Raises:
        DamagedRunError: It is a link, or no file.
        OSError: It is not there, or cannot be read.
    """
    with open_plain(path.parent, path) as stream:
        return stream_checksum(stream)


def stream_checksum(stream: BinaryIO) -> FileRecord:
    """Return size and CRC-32C of what is left of an open file, read in pieces."""
    crc, size = 0, 0
    while piece := stream.read(_CHUNK):
        crc = crc32c(piece, crc)
        size += len(piece)
    return size, f"{crc:08x}"


def problem_of(plain: PlainFolder, path: Path, expected: FileRecord) -> str | None:
    """Return how a file of a run differs from what is recorded of it, None where it does not."""
    try:
        with plain.open(path) as stream:
            size, crc = stream_checksum(stream)
    except DamagedRunError as error:
        return str(error)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if size != expected[0]:
        return f"{size} bytes instead of {expected[0]}"
    return None if crc == expected[1] else "CRC-32C differs"


def inode_of(path: Path) -> tuple[int, int] | tuple[Path]:
    """Return what is equal for two names of one file; the name itself where there is none."""
    try:
        status = path.lstat()
    except OSError:
        return (path,)
    return status.st_dev, status.st_ino


def _digest(meta: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(dict(meta)).encode()).hexdigest()


def write_manifest(run: Path, files: Mapping[str, FileRecord]) -> str:
    """Write `manifest.json` and return its CRC-32C."""
    write_json(run / MANIFEST_FILE, {"files": {name: list(files[name]) for name in sorted(files)}})
    return checksum(run / MANIFEST_FILE)[1]


def write_sealed(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object with the digest of its content as the last key."""
    body = {k: v for k, v in value.items() if k != "digest"}
    write_json(path, {**body, "digest": _digest(body)})


def read_sealed(run: Path, path: Path, most: int) -> dict[str, Any]:
    """Return the content of a file of `write_sealed` that lies in a run, its digest left out.

    Args:
        run: The run folder.
        path: The file.
        most: Bytes that it may have.

    Raises:
        DamagedRunError: It is not what was written, or larger than it can be.
        OSError: It is not there, or cannot be read.
    """
    with open_plain(run, path) as file:
        raw = file.read(most + 1)
    if len(raw) > most:
        raise DamagedRunError(f"{path.name} has more than {most} bytes")
    try:
        value = json.loads(raw)
        body = {k: v for k, v in value.items() if k != "digest"} if isinstance(value, dict) else {}
        expected = canonical_json({**body, "digest": _digest(body)}).encode()
    except (ValueError, RecursionError) as error:
        raise DamagedRunError(f"{path.name} is not JSON ({first_line(error)})") from error
    if raw != expected:
        raise DamagedRunError(f"{path.name} differs from its own digest")
    return body


def run_digest(run: Path) -> str:
    """Return what tells a run from every other: SHA-256 of its manifest, or of the meta of runs of older tools.

    Raises:
        DamagedRunError: The file is a link, or no file.
        OSError: It cannot be read.
    """
    name = MANIFEST_FILE if PlainFolder(run).has(run / MANIFEST_FILE) else META_FILE
    with open_plain(run, run / name) as file:
        digest = hashlib.sha256()
        while piece := file.read(_CHUNK):
            digest.update(piece)
    return digest.hexdigest()


def write_meta(run: Path, meta: Mapping[str, Any]) -> None:
    """Write `meta.json` with its digest as the last key."""
    write_sealed(run / META_FILE, meta)


def _load_object(path: Path, help_: str) -> dict[str, Any]:
    return _object(path, _whole(path, _LARGEST_JSON, help_), help_)


def _whole(path: Path, most: int, help_: str) -> bytes:
    """Return the bytes of a file in a run's own folder, which must not be more than it can have."""
    try:
        with open_plain(path.parent, path) as file:
            raw = file.read(most + 1)
    except OSError as error:
        raise DamagedRunError(f"{path} cannot be read ({error.strerror}). {help_}") from error
    if len(raw) > most:
        raise DamagedRunError(f"{path} is damaged: it has more than the {most} bytes that it can have. {help_}")
    return raw


def _object(path: Path, raw: bytes, help_: str) -> dict[str, Any]:
    try:
        value = json.loads(raw.decode(), parse_constant=_no_json)
    except (ValueError, RecursionError) as error:
        raise DamagedRunError(f"{path} is damaged: it is not JSON ({first_line(error)}). {help_}") from error
    if not isinstance(value, dict):
        got = type(value).__name__
        raise DamagedRunError(f"{path} is damaged: expected a JSON object, got {got}. {help_}")
    return value


def _load_sealed(path: Path, help_: str) -> dict[str, Any]:
    """Return the content of a file of `write_sealed`, or of an older tool's."""
    value = _load_object(path, help_)
    try:
        canonical_json(value).encode()
    except (ValueError, RecursionError) as error:  # half a surrogate pair, or lists in lists without end
        raise DamagedRunError(f"{path} is damaged: it has no canonical form ({first_line(error)}). {help_}") from error
    return value


def _no_json(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number of JSON")


def read_meta(run: Path) -> dict[str, Any]:
    """Return the content of `meta.json`.

    Raises:
        RunError: There is no such folder, or it has no `meta.json` (so it is not a complete run).
        DamagedRunError: The file is not JSON.
    """
    if not run.is_dir():
        raise RunError(f"No run folder at {run}. `decision-traces ls` lists the runs that are there.")
    path = run / META_FILE
    if not PlainFolder(run).has(path):
        raise RunError(f"{run} is not a complete run: it has no {META_FILE}, which is written last.")
    return _load_sealed(path, "Restore it from a copy, or extract the run again.")


def meta_problem(run: Path) -> str | None:
    """Return what is wrong with the bytes of `meta.json`, or None; see `sealed_problem`."""
    return sealed_problem(run / META_FILE)


def sealed_problem(path: Path) -> str | None:
    """Return what is wrong with the bytes of a file of `write_sealed`, or None.

    Files of older tools carry neither digest nor format_version, and nothing can be said against them.
    """
    try:
        value = _load_sealed(path, "Restore it from a copy.")
    except DamagedRunError as error:
        return str(error)
    if "format_version" not in value and "digest" not in value:
        return None
    body = {k: v for k, v in value.items() if k != "digest"}
    expected = canonical_json({**body, "digest": _digest(body)}).encode()
    with open_plain(path.parent, path) as file:
        return None if file.read() == expected else f"{path.name} differs from its own digest"


def read_manifest(run: Path) -> dict[str, FileRecord]:
    """Return the listed files with size and CRC-32C; empty for runs of older tools, which have no manifest.

    Raises:
        DamagedRunError: The run should have a manifest and has none, or it is not the one meta.json names.
    """
    meta, path = read_meta(run), run / MANIFEST_FILE
    named = meta.get("manifest_crc32c")
    there = PlainFolder(run).has(path)
    if named is None and not there:
        return {}
    if not there:
        raise DamagedRunError(f"{path} is missing. Restore it from a copy, or extract the run again.")
    help_ = "Restore it from a copy, or extract the run again."
    raw = _manifest_bytes(run, path, help_)
    if f"{crc32c(raw):08x}" != named:
        raise DamagedRunError(f"{path} is damaged: its CRC-32C is not the one {META_FILE} names. {help_}")
    try:
        return _listed(_object(path, raw, help_).get("files"))
    except ValueError as error:
        raise DamagedRunError(f"{path} is damaged: {error}. {help_}") from error


def _manifest_bytes(run: Path, path: Path, help_: str) -> bytes:
    """Return the bytes of a manifest: a large one must be one of many files."""
    size = PlainFolder(run).size(path) or 0
    if size <= _LARGEST_JSON:
        return _whole(path, _LARGEST_JSON, help_)
    files = sum(1 for _ in files_in(run))
    raw = _whole(path, files * _MANIFEST_BYTES_PER_FILE, help_)
    if raw.count(b"[") + raw.count(b",") > files * _MANIFEST_PARTS_PER_FILE:
        raise DamagedRunError(f"{path} is damaged: it lists far more than the {files} files there. {help_}")
    return raw


def _listed(files: object) -> dict[str, FileRecord]:
    """Return the entries of a manifest.

    Raises:
        ValueError: It is not names with size and CRC-32C.
    """
    if not isinstance(files, dict):
        raise ValueError("it lists no files")  # noqa: TRY004
    for name, record in files.items():
        name.encode()
        if not isinstance(record, list) or [type(part) for part in record] != [int, str]:
            raise ValueError(f"{name!r:.80} has no size and CRC-32C")
    return {name: (size, crc) for name, (size, crc) in files.items()}


def run_files(run: Path) -> Iterable[str]:
    """Yield what the run has beside folders, as relative paths with forward slashes.

    Links are named, not followed. The JSON files of `UNLISTED` and what analyses have put into the run's analysis
    folder do not count.
    """
    for name in files_in(run):
        if name not in UNLISTED and not name.startswith(f"{ANALYSIS_DIR}/"):
            yield name
