"""Which files of a run folder are proved to be this package's: what may be removed when the run is replaced.

A complete run is proved by its sealed `meta.json`, which names its manifest, which names its files. An unfinished one
is proved by the first line of its ledger, which is written before anything else; its files go by the names of the
format.
"""

import re
from pathlib import Path
from typing import Final

from decision_traces.errors import DamagedRunError, RunExistsError
from decision_traces.folders.lock import LOCK_SUFFIX
from decision_traces.folders.place import FolderKind, FolderPlace
from decision_traces.folders.removal import files_in
from decision_traces.format.arrays import (
    ARRAYS,
    HEAD_FILES,
    INDEX_FILE,
    MANIFEST_FILE,
    META_FILE,
    OUTCOMES_FILE,
    TOKENS_FILE,
    UNEMBED_DIR,
)
from decision_traces.store.files.folder import read_sealed
from decision_traces.store.files.proof import MOST_BYTES, PROOF, is_whole, proved_files, refuse_in_run
from decision_traces.store.writing.ledger import LEDGER_FILE, is_begun
from decision_traces.store.writing.new_result import result_files

PARTS_DIR: Final = "parts"
PROBES: Final = ("probe", "probe-link")
_TABLES: Final = (TOKENS_FILE, OUTCOMES_FILE)
_SEALED: Final = (META_FILE, MANIFEST_FILE, INDEX_FILE)


def _any_of(*names: str) -> str:
    return "|".join(re.escape(name) for name in names)


# The libraries, too, write under other names first, and a kill leaves these.
_HALF_WRITTEN: Final = re.compile(rf"\.({_any_of(*_SEALED, LEDGER_FILE)})\.[0-9a-f]{{16}}\.partial")
_GROUPS: Final = _any_of(*dict.fromkeys(spec.group for spec in ARRAYS.values()))
_ARRAYS: Final = _any_of(*(spec.path for spec in ARRAYS.values()))
_AXES: Final = _any_of(*dict.fromkeys(axis for spec in ARRAYS.values() for axis in spec.axes))
_KEPT: Final = re.compile(
    rf"({_GROUPS})/zarr\.json|({_ARRAYS})/(zarr\.json|c(/\d+)+)|({_GROUPS})/({_AXES})/(zarr\.json|c/\d+)"
    rf"|{UNEMBED_DIR}/({_any_of(*HEAD_FILES)})|{_any_of(*_TABLES)}"
)
_PART: Final = re.compile(rf"\d+-({_any_of(*_TABLES)})")
_SCAFFOLD: Final = re.compile(
    rf"{PARTS_DIR}/({_PART.pattern})|{_any_of(LEDGER_FILE, *PROBES, *_SEALED)}|({_HALF_WRITTEN.pattern})"
    rf"|({_GROUPS})/([\w./]+/)?(zarr|\d+)\.[0-9a-f]{{32}}\.partial"
)


def is_kept(name: str) -> bool:
    """Return whether a file of an unfinished run, by its name, stays in the complete one."""
    return bool(_KEPT.fullmatch(name))


def is_part(name: str) -> bool:
    """Return whether a file in the folder of parts, by its name, is a block's table."""
    return bool(_PART.fullmatch(name))


def owned_files(run: Path) -> set[str]:
    """Return the files of a complete run that are proved to be ours, whether they are there or not.

    Raises:
        RunExistsError: Nothing proves that this folder is a run of this package, or its proof is damaged.
    """
    try:
        listed = proved_files(run)
    except (DamagedRunError, OSError) as error:
        raise RunExistsError(
            f"{run} is not proved to be a run of decision-traces ({error}), so nothing of it is removed. Move it away, "
            "or remove it yourself."
        ) from error
    files = {name for name in files_in(run) if _HALF_WRITTEN.fullmatch(name)}
    if _is_sealed(run, INDEX_FILE):
        files.add(INDEX_FILE)
    if (run / LOCK_SUFFIX).is_file() and not (run / LOCK_SUFFIX).stat().st_size:
        files.add(LOCK_SUFFIX)
    if is_begun(run):  # a kill after the last rename
        files.add(LEDGER_FILE)
    return files | {*PROOF, *listed} | result_files(run)


def unfinished_files(folder: Path) -> set[str]:
    """Return the files of an unfinished run that are proved to be ours.

    Raises:
        RunExistsError: Nothing proves that it is one.
    """
    there = set(files_in(folder))
    if not is_begun(folder) and not all(_HALF_WRITTEN.fullmatch(name) for name in there):
        raise RunExistsError(
            f"{folder} is where the run would be built, and nothing proves that decision-traces made what is there. "
            "Move it away, or choose another --out_dir; it was left as it is."
        )
    return {name for name in there if is_kept(name) or _SCAFFOLD.fullmatch(name)}


RUN: Final = FolderKind("run", META_FILE, LEDGER_FILE, PROOF, is_begun, is_whole, owned_files, unfinished_files)


def run_place(run: Path, *, overwrite: bool = False, resume: bool = False) -> FolderPlace:
    """Return the place of a run, to be held while it is written; see `FolderPlace`.

    Raises:
        UsageError: It would lie in another run.
    """
    refuse_in_run(run, RUN.flag)
    return FolderPlace(run, RUN, overwrite=overwrite, resume=resume)


def _is_sealed(run: Path, name: str) -> bool:
    try:
        read_sealed(run, run / name, MOST_BYTES)
    except (DamagedRunError, OSError):
        return False
    return True
