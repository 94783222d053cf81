"""What the analyses computed on a run: a folder for each, whole or not at all, with a sealed record of its own.

`analysis/lens/record.json` says which run the lens is of, what made it, and every file with its size and CRC-32C. A
result is used only where all of that holds; of a file no byte is used before all of them were checked.
"""

import os
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pyarrow as pa

from decision_traces.errors import DamagedRunError, ResultError, UsageError
from decision_traces.folders.exchange import put_back
from decision_traces.folders.plain import open_plain, refuse_strange
from decision_traces.folders.removal import files_in
from decision_traces.format.analyses import RECORD_FILE, RESULTS
from decision_traces.store.files.folder import FileRecord, read_sealed, run_digest, stream_checksum
from decision_traces.store.files.proof import found_run
from decision_traces.store.files.results_place import ResultsPlace
from decision_traces.store.files.table import TableFile
from decision_traces.store.reading.still import FileStamp, file_stamp, settled

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


def read_record(root: Path, folder: Path) -> Record:
    """Return the record in the folder of a result.

    Args:
        root: What the folder lies in, and nothing may lead out of.
        folder: That of the result.

    Raises:
        DamagedRunError: It is not what was written.
        OSError: There is none, or it cannot be read.
    """
    most = _RECORD_BYTES + _RECORD_BYTES_PER_FILE * sum(1 for _ in files_in(folder))
    value = read_sealed(root, folder / RECORD_FILE, most)
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
        place: Where the results of the run lie.
        name: The command.
        record: What it says of itself.
        files: Every file but the record with size and CRC-32C.
    """

    place: ResultsPlace
    name: str
    record: Record
    files: Mapping[str, FileRecord]
    _checked: dict[str, FileStamp] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self.place.result(self.name)

    def damaged(self, what: str) -> ResultError:
        """Return the error that says what of this result is damaged."""
        return _damaged(self.place, self.name, what)

    def file(self, name: str) -> Path:
        """Return the path of a file whose bytes are those that were written; they are read once, as long as it stays.

        Raises:
            ResultError: It is not in the record, missing, or changed.
        """
        path = self.folder / name
        if name not in self.files:
            raise self.damaged(f"{name} is not in its record")
        try:
            with open_plain(self.place.root, path) as raw:
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


def find_result(place: ResultsPlace, name: str) -> Result | None:
    """Return the result of a command on a run; None where there is none.

    Args:
        place: Where the results of the run lie.
        name: The command: one of `RESULTS`.

    Raises:
        ResultError: It is damaged, of another run, or made by an earlier version, which wrote no record.
    """
    folder = place.result(name)
    try:
        refuse_strange(place.root, folder)
        if not put_back(folder, lambda aside: _is_whole(place.root, aside)):
            _refuse_older(place, name)
            return None
        return _checked(place, name, read_record(place.root, folder))
    except OSError as error:
        raise _damaged(place, name, f"it cannot be read ({error.strerror}: {error.filename})") from error
    except DamagedRunError as error:
        raise _damaged(place, name, str(error).removesuffix(".")) from error


@dataclass(frozen=True, slots=True)
class ResultStatus:
    """Whether a result of a run is there.

    Attributes:
        name: The analysis.
        files: What it holds, relative to its folder; empty where it cannot be used.
        problem: Why it cannot be used, a sentence; empty where it can, or where nothing was computed.
        command: What computes it (anew).
    """

    name: str
    files: tuple[str, ...]
    problem: str
    command: str

    @property
    def computed(self) -> bool:
        """Whether it is there and can be used."""
        return bool(self.files)

    def __str__(self) -> str:
        """Return a sentence."""
        if self.computed:
            return f"{len(self.files)} files"
        return f"{self.problem or 'Not computed yet.'} `{self.command}` computes it."


def status_of(place: ResultsPlace, name: str) -> ResultStatus:
    """Return whether the result of an analysis is there; no byte of its files is read."""
    try:
        found = find_result(place, name)
    except ResultError as error:
        return ResultStatus(name, (), error.why, place.command(name))
    return ResultStatus(name, () if found is None else tuple(sorted(found.files)), "", place.command(name))


def places_of(runs: Sequence[Path], results: Sequence[Path]) -> list[ResultsPlace]:
    """Return where the results of some runs lie, in the runs' order.

    Args:
        runs: The run folders.
        results: Folders that `--out` filled, in any order: each goes with the run that its records name. The results
            of the other runs lie in the runs.

    Raises:
        UsageError: A folder holds no results, or none of these runs'.
        RunError: One of the folders is no complete run.
    """
    found = [ResultsPlace(run) for run in runs]
    for folder in results:
        place = ResultsPlace(runs[0], folder)
        made_from = {record.run for name in RESULTS if (record := _record(place, name)) is not None}
        if not made_from:
            raise UsageError(
                f"--results {folder}: no result lies there. `lens`, `compare` and others put some with --out."
            )
        own = [at for at, run in enumerate(runs) if found_run(run) and run_digest(run) in made_from]
        if not own:
            raise UsageError(f"--results {folder}: made from another run than {', '.join(map(str, runs))}.")
        for at in own:
            found[at] = ResultsPlace(runs[at], folder)
    return found


def other_run(place: ResultsPlace, name: str) -> str | None:
    """Return the name of the run that a result is of, if it is another one than that of the place's run."""
    record = _record(place, name)
    same = record is None or record.run_id in {place.run.name, place.run.resolve().name}
    return None if record is None or same or record.run == run_digest(place.run) else record.run_id


def _record(place: ResultsPlace, name: str) -> Record | None:
    try:
        return read_record(place.root, place.result(name))
    except (OSError, DamagedRunError):
        return None


def _checked(place: ResultsPlace, name: str, record: Record) -> Result:
    """Return a result of which all but the bytes of the files is known to be right."""
    if record.files is None:
        raise _damaged(place, name, f"{RECORD_FILE} is that of a result that was never finished")
    if record.run != run_digest(place.run):
        named = ResultsPlace(place.run, Path("DIR")) if place.out is not None and other_run(place, name) else place
        raise ResultError(f"{place.result(name)} was made from another run.", named.command(name))
    _refuse_other_files(place, name, record.files)
    return Result(place, name, record, record.files)


def _refuse_other_files(place: ResultsPlace, name: str, files: Mapping[str, FileRecord]) -> None:
    """Raise unless exactly the files of the record are there, with their sizes."""
    folder = place.result(name)
    there = set(files_in(folder)) - {RECORD_FILE}
    for what, names in (("missing", files.keys() - there), ("not part of it", there - files.keys())):
        if names:
            raise _damaged(place, name, f"{_some(names)} {'is' if len(names) == 1 else 'are'} {what}")
    for file, (size, _) in files.items():
        status = (folder / file).lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_size != size:
            raise _damaged(place, name, f"{file} is no file of {size} bytes")


def _refuse_older(place: ResultsPlace, name: str) -> None:
    if older := place.older_files(name):
        why = f"{_some(older)} in {place.folder}: made by an earlier version, without a record."
        raise ResultError(why, place.command(name))


def _is_whole(root: Path, folder: Path) -> bool:
    try:
        files = read_record(root, folder).files
        return files is not None and files.keys() <= set(files_in(folder))
    except (OSError, DamagedRunError):
        return False


def _damaged(place: ResultsPlace, name: str, what: str) -> ResultError:
    return ResultError(f"{place.result(name)} is damaged: {what}.", place.command(name))


def _some(names: Collection[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(sorted(names)[:_NAMED]) + more
