"""Writing what an analysis computed: beside the old result, and exchanged with it when all of it is there."""

import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from decision_traces._version import __version__
from decision_traces.errors import (
    DamagedRunError,
    DiskSpaceError,
    ReplacedRunError,
    RunError,
    RunExistsError,
    TraceError,
    first_line,
)
from decision_traces.folders.disk import is_full
from decision_traces.folders.exchange import leftovers, put_in_place, staging_folder
from decision_traces.folders.lock import FolderLock
from decision_traces.folders.plain import refuse_strange
from decision_traces.folders.removal import files_in, refuse_strangers, remove
from decision_traces.format.analyses import RECORD_FILE, RESULTS
from decision_traces.store.files.folder import FileRecord, checksum, run_digest, write_sealed
from decision_traces.store.files.proof import refuse_in_run
from decision_traces.store.files.results_place import ResultsPlace
from decision_traces.store.reading.opened import OpenRun
from decision_traces.store.reading.results import other_run, read_record

_HALF_A_RECORD: Final = re.compile(rf"\.{re.escape(RECORD_FILE)}\.[0-9a-f]{{16}}\.partial")


@dataclass(frozen=True, slots=True)
class NewResult:
    """A result that is being written.

    Attributes:
        folder: Where its files go; another folder than where they will lie.
        notes: What the user should be told of the old result, a sentence each.
    """

    folder: Path
    notes: list[str] = field(default_factory=list)


@contextmanager
def new_result(
    store: OpenRun, name: str, options: Mapping[str, Any], *, command: str | None = None
) -> Iterator[NewResult]:
    """Write the result of a command: whole and in place at the end of the block, or, after any error, not at all.

    The run (or the folder that the user named for results) is locked from the beginning to the end. Nothing that is
    not proved ours is removed.

    Args:
        store: The run; it knows where its results lie.
        name: The command: one of `RESULTS`, which says what files there may be.
        options: How it was called, for the record; of paths, the last part.
        command: What makes it, where that is another command.

    Raises:
        RunExistsError: Another process writes the run or a result of it, or files that are not ours lie where it goes.
        UsageError: The folder that the user named lies in a run.
        DamagedRunError: The analysis folder is a link.
        ReplacedRunError: Another run came to its place meanwhile.
        DiskSpaceError: No space left.
        RunError: The folder cannot be written.
    """
    place = store.results
    target = place.result(name)
    _refuse_no_place(place)
    _refuse_read_only(place)
    with FolderLock(place.root), _sentences(place, name):
        new = NewResult(_begin(place, name, target))
        try:
            about = _about(store, command or name, options)
            write_sealed(new.folder / RECORD_FILE, about | {"files": None})
            yield new
            _finish(store, name, new, about)
        except BaseException:
            with suppress(OSError):  # what cannot be removed now is swept by the next writer
                _discard(place.root, new.folder, name)
                _remove_empty(place.folder)
            raise


def result_files(run: Path) -> set[str]:
    """Return every file below a run's analysis folder that a record proves ours, relative to the run."""
    place = ResultsPlace(run)
    if place.folder.is_symlink():
        return set()
    found = set()
    for name in RESULTS:
        target = place.result(name)
        for folder in (*leftovers(target), *([target] if target.is_dir() and not target.is_symlink() else [])):
            found |= {(folder / file).relative_to(run).as_posix() for file in _ours(run, folder, name)}
    return found


def _refuse_no_place(place: ResultsPlace) -> None:
    """Raise where the folder that the user named is none, or lies in a run, which could not be replaced any more."""
    if place.out is None:
        return
    out = place.out.resolve()
    if out.exists() and not out.is_dir():
        raise RunExistsError(f"--out {place.out} is a file. Name a folder.")
    refuse_in_run(out, "--out", or_a_run=True)


def _refuse_read_only(place: ResultsPlace) -> None:
    """Raise before anything is computed, where no result can be written."""
    there = next(folder for folder in (place.folder, *place.folder.absolute().parents) if folder.exists())
    if there.is_dir() and not os.access(there, os.W_OK):
        raise RunError(f"{there} cannot be written: read-only. --out DIR keeps the results in another folder.")


def _begin(place: ResultsPlace, name: str, target: Path) -> Path:
    """Look at what is there, sweep what killed processes left, and return the folder to write into."""
    refuse_strange(place.root, target)
    if target.exists() and not target.is_dir():
        raise RunExistsError(f"{target} is a file; the result is to lie there. Move it away first.")
    _refuse_strangers(place, name, target)
    _refuse_of_another(place, name)
    for every in RESULTS:
        for left in leftovers(place.result(every)):
            _discard(place.root, left, every)
    place.folder.mkdir(exist_ok=True, parents=place.out is not None)
    return staging_folder(target)


def _about(store: OpenRun, command: str, options: Mapping[str, Any]) -> dict[str, Any]:
    store.still.check()
    return {
        "run": run_digest(store.run_dir),
        "run_id": store.about.run_id or store.run_dir.name,
        "command": command,
        # Where a model lies here is nobody's business but the user's: runs are passed on with their results.
        "options": {key: value.name if isinstance(value, Path) else value for key, value in options.items()},
        "version": __version__,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _finish(store: OpenRun, name: str, new: NewResult, about: Mapping[str, Any]) -> None:
    """Seal the new result and give it the name."""
    run, place = store.run_dir, store.results
    target = place.result(name)
    files = {file: list(checksum(new.folder / file)) for file in sorted(files_in(new.folder)) if file != RECORD_FILE}
    write_sealed(new.folder / RECORD_FILE, {**about, "files": files})
    try:
        store.still.check()
        same = run_digest(run) == about["run"]
    except ReplacedRunError:
        same = False
    if not same:
        raise ReplacedRunError(f"{run} was replaced while `{name}` was computed: nothing was kept. Run it again.")
    _refuse_strangers(place, name, target)
    aside = put_in_place(new.folder, target)
    if aside is not None:
        with suppress(OSError):  # the next writer sweeps it
            _clear_away(place.root, name, aside, new.notes)
    if older := place.older_files(name):
        new.notes.append(f"An earlier version left {', '.join(older)} in {place.folder}: not read, not removed.")


def _clear_away(root: Path, name: str, aside: Path, notes: list[str]) -> None:
    """Remove the old result; what of it nothing proves ours is kept under a name that can be seen."""
    if not _discard(root, aside, name):
        return
    kept = aside.with_name(f"{name}.set-aside-{secrets.token_hex(4)}")
    aside.rename(kept)
    notes.append(f"What no record proves ours of the old result lies in {kept} now.")


def _refuse_strangers(place: ResultsPlace, name: str, target: Path) -> None:
    """Raise if the user has put files into a result; in the run, one whose record is damaged is set aside whole.

    Of a folder that the user named, what has no record was never a result: it may be anything of the user's.
    """
    if target.is_dir():
        ours = _listed(place.root, target)
        if ours is not None or (place.out is not None and not os.path.lexists(target / RECORD_FILE)):
            refuse_strangers(target, {RECORD_FILE, *(ours or ())}, f"decision-traces {name}")


def _refuse_of_another(place: ResultsPlace, name: str) -> None:
    """Raise if what lies in a folder that the user named is of a run of another name, which still needs it."""
    if place.out is not None and (run_id := other_run(place, name)) is not None:
        raise RunExistsError(
            f"{place.result(name)} is the {name} of another run, {run_id}. Name another folder with --out."
        )


def _discard(root: Path, folder: Path, name: str) -> list[str]:
    """Remove what is proved ours of a folder that has lost its name, or never got it; return what is left."""
    ours, there = _ours(root, folder, name), list(files_in(folder))
    return there if there and not ours else remove(folder, ours, (RECORD_FILE,))  # not even its empty folders


def _ours(root: Path, folder: Path, name: str) -> set[str]:
    there = set(files_in(folder))
    half = {file for file in there if _HALF_A_RECORD.fullmatch(file)}
    try:
        record = read_record(root, folder)
    except (OSError, DamagedRunError):
        return half
    if record.files is not None:
        return {RECORD_FILE, *record.files} | half
    return {file for file in there if file.split("/")[0] in {RECORD_FILE, *RESULTS[name].artifacts}} | half


def _listed(root: Path, folder: Path) -> Mapping[str, FileRecord] | None:
    try:
        return read_record(root, folder).files
    except (OSError, DamagedRunError):
        return None


def _remove_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


@contextmanager
def _sentences(place: ResultsPlace, name: str) -> Iterator[None]:
    """Turn what a full, failing or read-only disk raises, through whichever library, into one sentence."""
    target = place.result(name)
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, TraceError):
            raise
        if is_full(error):
            raise DiskSpaceError(
                f"The disk of {target} is full. Nothing was changed; free some space and run the command again, "
                "or add --out DIR to keep the results in another folder."
            ) from error
        if isinstance(error, OSError):
            why = error.strerror or first_line(error)
            raise RunError(
                f"{target} cannot be written: {why}. Nothing was changed; add --out DIR to keep the results elsewhere."
            ) from error
        raise
