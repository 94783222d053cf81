"""The page and all it shows as plain files, at the same addresses, for any file server."""

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from decision_traces.errors import DamagedRunError, RunExistsError, UsageError
from decision_traces.folders.disk import disk_errors
from decision_traces.folders.place import FolderKind, FolderPlace
from decision_traces.folders.removal import files_in
from decision_traces.page import resources
from decision_traces.page.app import STATIC
from decision_traces.page.runs import PageRun, opened
from decision_traces.store import read_sealed, refuse_in_run, write_sealed

FILES_FILE: Final = "bundle.json"
_BEGUN_FILE: Final = "bundle_begun.json"
_MADE_BY: Final = {"made_by": "decision-traces view --bundle"}
_MOST_BYTES: Final = 1 << 28
_WRITTEN: Final = re.compile(
    rf"api/.+\.(json|bin|u8|f16)|{_BEGUN_FILE}|{FILES_FILE}"
    rf"|\.({_BEGUN_FILE}|{FILES_FILE})\.[0-9a-f]{{16}}\.partial"
)
_UNCHANGED: Final = "Nothing was changed. Free some space, or choose another place with --bundle"


@dataclass(frozen=True, slots=True)
class Written:
    """What a bundle came to."""

    files: int
    size: int


def write_bundle(
    run_dirs: Sequence[Path],
    folder: Path,
    *,
    results: Sequence[Path] = (),
    limit: int | None = None,
    drawn_only: bool = False,
    overwrite: bool = False,
) -> Written:
    """Write a static site that shows some runs.

    Attention takes most of it: a head of a text of 256 tokens is 64 kB as it is drawn, and 128 kB as numbers. Numbers
    as JSON, which a server has besides, are left out.

    Args:
        run_dirs: The runs; the first is shown first.
        folder: Where.
        results: Folders with results that are kept outside the runs.
        limit: The first so many examples of each.
        drawn_only: Leave attention out as numbers.
        overwrite: Replace the bundle that is there, once the new one is complete.

    Raises:
        RunExistsError: The folder is there and is not to be replaced, or holds something that is not of a bundle.
        RunError: One of the runs is not complete, or the bundle cannot be written.
        UsageError: A run lies in the folder, or the folder in a run.
    """
    folder = folder.resolve()
    for given in (*run_dirs, *results):
        if Path(given).resolve().is_relative_to(folder):
            raise UsageError(f"--bundle {folder}: {given}, which is to be shown, lies there. Name another folder.")
    refuse_in_run(folder, "--bundle")
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: needs at least 1.")
    runs = opened(run_dirs, results)
    with FolderPlace(folder, BUNDLE, overwrite=overwrite) as place, disk_errors(folder, kept=_UNCHANGED):
        place.begin()
        try:
            write_sealed(place.folder / _BEGUN_FILE, _MADE_BY)
            written = _write(place.folder, runs, limit, drawn_only=drawn_only)
            place.finish()
        except BaseException:
            place.discard()
            raise
    return written


def _write(folder: Path, runs: Sequence[PageRun], limit: int | None, *, drawn_only: bool) -> Written:
    """Write everything, and last the sealed list of it."""
    shutil.copytree(STATIC, folder, dirs_exist_ok=True)
    _put(folder / "api" / "runs.json", resources.runs(runs, bundle=True, exact=not drawn_only))
    for run in runs:
        n = run.store.n if limit is None else min(limit, run.store.n)
        for path, make in resources.bundle_paths(run, n, exact=not drawn_only):
            _put(folder / "api" / run.key / path, make())
    ours = sorted(unfinished_files(folder) - {_BEGUN_FILE})
    files = {name: (folder / name).stat().st_size for name in ours}
    write_sealed(folder / FILES_FILE, {**_MADE_BY, "files": files})
    return Written(len(files), sum(files.values()))


def _put(path: Path, found: resources.Resource) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(found.body)


# -- whose it is --------------------------------------------------------------------------------------------


def is_begun(folder: Path) -> bool:
    """Return whether a folder is a bundle in the making."""
    try:
        return read_sealed(folder, folder / _BEGUN_FILE, _MOST_BYTES) == _MADE_BY
    except (DamagedRunError, OSError):
        return False


def is_whole(folder: Path) -> bool:
    """Return whether a folder is a bundle of which no file is missing or cut short."""
    try:
        files = _listed(folder)
        return bool(files) and all((folder / name).lstat().st_size == size for name, size in files.items())
    except (DamagedRunError, OSError):
        return False


def owned_files(folder: Path) -> set[str]:
    """Return the files of a bundle that are proved to be ours.

    Raises:
        RunExistsError: Nothing proves that it is one.
    """
    try:
        return {*_listed(folder), FILES_FILE} | ({_BEGUN_FILE} if is_begun(folder) else set())
    except (DamagedRunError, OSError) as error:
        raise RunExistsError(
            f"{folder} is not proved to be a bundle of decision-traces ({FILES_FILE}: {error}), so nothing of it is "
            "removed. Move it away, or name another folder."
        ) from error


def unfinished_files(folder: Path) -> set[str]:
    """Return the files of a bundle in the making that are proved to be ours.

    Raises:
        RunExistsError: Nothing proves that it is one.
    """
    there = set(files_in(folder))
    if not is_begun(folder) and not all(name.startswith(f".{_BEGUN_FILE}.") for name in there):
        raise RunExistsError(
            f"{folder} is where the bundle would be built, and nothing proves that decision-traces made what is there. "
            "Move it away, or name another folder; it was left as it is."
        )
    static = set(files_in(STATIC))
    return {name for name in there if name in static or _WRITTEN.fullmatch(name)}


def _listed(folder: Path) -> dict[str, int]:
    value = read_sealed(folder, folder / FILES_FILE, _MOST_BYTES)
    try:
        if value.get("made_by") != _MADE_BY["made_by"]:
            raise DamagedRunError("it is not of a bundle")
        return {str(name): int(size) for name, size in value["files"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DamagedRunError("it lists no files") from error


BUNDLE: Final = FolderKind(
    "bundle",
    FILES_FILE,
    _BEGUN_FILE,
    (FILES_FILE,),
    is_begun,
    is_whole,
    owned_files,
    unfinished_files,
    flag="--bundle",
    resumable=False,
)
