"""What the analyses computed on a run: a folder for each, whole or not at all, with a sealed record of its own.

`analysis/lens/record.json` says which run the lens is of, what made it, and every file with its size and CRC-32C. A
result is used only where all of that holds; of a file no byte is used before all of them were checked.
"""

import os
import shlex
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from decision_traces.errors import DamagedRunError, ResultError
from decision_traces.folders.exchange import put_back
from decision_traces.folders.plain import open_plain, refuse_strange
from decision_traces.folders.removal import files_in
from decision_traces.schema import ANALYSIS_DIR, RECORD_FILE, RESULTS
from decision_traces.store.folder import FileRecord, read_sealed, run_digest, stream_checksum
from decision_traces.store.still import FileStamp, file_stamp, settled
from decision_traces.store.table import TableFile

_RECORD_BYTES: Final = 1 << 16
_RECORD_BYTES_PER_FILE: Final = 1 << 8
_NAMED: Final = 4


@dataclass(frozen=True, slots=True)
class Record:
    """What a result says of itself.

    Attributes:
        run: `run_digest` of the run that it was computed on.
        run_id: The name of that run.
        command: What made it.
        options: With which options.
        version: Of this package.
        time: When (ISO 8601, UTC).
        files: Every file but the record with size and CRC-32C; None as long as it is being written.
    """

    run: str
    run_id: str
    command: str
    options: Mapping[str, Any]
    version: str
    time: str
    files: Mapping[str, FileRecord] | None


def result_folder(run: Path, name: str) -> Path:
    """Return where the result of a command lies."""
    return run / ANALYSIS_DIR / name


def command_for(run: Path, name: str) -> str:
    """Return the command that makes a result, as it is typed into a shell."""
    command = "compare --by COLUMN" if name == "compare_by" else name
    return f"decision-traces {command} {shlex.quote(str(run))}"


def read_record(run: Path, folder: Path) -> Record:
    """Return the record in the folder of a result.

    Raises:
        DamagedRunError: It is not what was written.
        OSError: There is none, or it cannot be read.
    """
    most = _RECORD_BYTES + _RECORD_BYTES_PER_FILE * sum(1 for _ in files_in(folder))
    value = read_sealed(run, folder / RECORD_FILE, most)
    try:
        listed = value["files"]
        files = None if listed is None else {str(f): (int(size), str(crc)) for f, (size, crc) in listed.items()}
        words = {key: str(value[key]) for key in ("run", "run_id", "command", "version", "time")}
        return Record(**words, options=dict(value["options"]), files=files)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedRunError(f"{RECORD_FILE} is not a record of this package") from error


@dataclass(frozen=True, slots=True)
class Result:
    """A result that is of this run, with all its files there; see `find_result`.

    Attributes:
        run: The run folder.
        name: The command.
        record: What it says of itself.
        files: Every file but the record with size and CRC-32C.
    """

    run: Path
    name: str
    record: Record
    files: Mapping[str, FileRecord]
    _checked: dict[str, FileStamp] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return result_folder(self.run, self.name)

    def damaged(self, what: str) -> ResultError:
        """Return the error that says what of this result is damaged."""
        return _damaged(self.run, self.name, what)

    def file(self, name: str) -> Path:
        """Return the path of a file whose bytes are those that were written; they are read once, as long as it stays.

        Raises:
            ResultError: It is not in the record, missing, or changed.
        """
        path = self.folder / name
        if name not in self.files:
            raise self.damaged(f"{name} is not in its record")
        try:
            with open_plain(self.run, path) as raw:
                status = os.fstat(raw.fileno())
                if self._checked.get(name) == file_stamp(status):
                    return path
                if status.st_size != self.files[name][0] or stream_checksum(raw) != self.files[name]:
                    raise self.damaged(f"{name} has not the size or CRC-32C that its record names")
        except OSError as error:
            raise self.damaged(f"{name} cannot be read ({error.strerror})") from error
        except DamagedRunError as error:
            raise self.damaged(f"{name}: {error}") from error
        if settled(status):
            self._checked[name] = file_stamp(status)
        return path

    def table(
        self, name: str, columns: Sequence[str] | None = None, where: tuple[str, int | str] | None = None
    ) -> pa.Table:
        """Return a table of the result, or some columns and rows of it; see `TableFile.read`.

        Raises:
            ResultError: It is not in the record, missing, changed, or has no such columns.
        """
        try:
            return TableFile(self.file(name)).read(columns, where)
        except DamagedRunError as error:
            raise self.damaged(f"{name}: {error}") from error

    def check(self) -> None:
        """Check the bytes of every file.

        Raises:
            ResultError: Names the first that is changed.
        """
        for name in self.files:
            self.file(name)


def find_result(run: Path, name: str) -> Result | None:
    """Return the result of a command on a run; None where there is none.

    Args:
        run: The run folder.
        name: The command: one of `RESULTS`.

    Raises:
        ResultError: It is damaged, of another run, or made by an earlier version, which wrote no record.
    """
    folder = result_folder(run, name)
    try:
        refuse_strange(run, folder)
        if not put_back(folder, lambda aside: _is_whole(run, aside)):
            _refuse_older(run, name)
            return None
        return _checked(run, name, read_record(run, folder))
    except OSError as error:
        raise _damaged(run, name, f"it cannot be read ({error.strerror}: {error.filename})") from error
    except DamagedRunError as error:
        raise _damaged(run, name, str(error).removesuffix(".")) from error


def _checked(run: Path, name: str, record: Record) -> Result:
    """Return a result of which all but the bytes of the files is known to be right."""
    if record.files is None:
        raise _damaged(run, name, f"{RECORD_FILE} is that of a result that was never finished")
    if record.run != run_digest(run):
        raise ResultError(f"{result_folder(run, name)} was made from another run.", command_for(run, name))
    _refuse_other_files(run, name, record.files)
    return Result(run, name, record, record.files)


def _refuse_other_files(run: Path, name: str, files: Mapping[str, FileRecord]) -> None:
    """Raise unless exactly the files of the record are there, with their sizes."""
    folder = result_folder(run, name)
    there = set(files_in(folder)) - {RECORD_FILE}
    for what, names in (("missing", files.keys() - there), ("not part of it", there - files.keys())):
        if names:
            raise _damaged(run, name, f"{_some(names)} {'is' if len(names) == 1 else 'are'} {what}")
    for file, (size, _) in files.items():
        status = (folder / file).lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            raise _damaged(run, name, f"{file} is no file of {size} bytes")


def _refuse_older(run: Path, name: str) -> None:
    if older := older_files(run, name):
        why = f"{_some(older)} in {run / ANALYSIS_DIR}: made by an earlier version, without a record."
        raise ResultError(why, command_for(run, name))


def older_files(run: Path, name: str) -> list[str]:
    """Return what an earlier version may have left of a result: tables and arrays directly in the analysis folder."""
    return [file for file in RESULTS[name] if not file.endswith(".png") and os.path.lexists(run / ANALYSIS_DIR / file)]


def _is_whole(run: Path, folder: Path) -> bool:
    try:
        files = read_record(run, folder).files
        return files is not None and files.keys() <= set(files_in(folder))
    except (OSError, DamagedRunError):
        return False


def _damaged(run: Path, name: str, what: str) -> ResultError:
    return ResultError(f"{result_folder(run, name)} is damaged: {what}.", command_for(run, name))


def _some(names: Collection[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(sorted(names)[:_NAMED]) + more
