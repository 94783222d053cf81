"""Whether a folder is proved to be a complete run of this package, from its sealed `meta.json` down to its files."""

import json
from pathlib import Path
from typing import Any, Final

from decision_traces.errors import DamagedRunError, UsageError
from decision_traces.folders.exchange import put_back
from decision_traces.folders.plain import open_plain
from decision_traces.folders.removal import files_in
from decision_traces.format.arrays import MANIFEST_FILE, META_FILE
from decision_traces.store.files.folder import FileRecord, read_sealed, stream_checksum

PROOF: Final = (MANIFEST_FILE, META_FILE)
"""What proves the files of a complete run, in the order in which it is to be removed: after them."""
MOST_BYTES: Final = 1 << 28
"""A JSON file of a run that is larger is not read."""


def proved_files(run: Path) -> dict[str, FileRecord]:
    """Return the files that a run's manifest lists, if its meta names that manifest and is as it was written.

    Nothing is listed where the sealed `meta.json` alone is left of a run that was being removed.

    Raises:
        DamagedRunError: Something is not as it was written.
        OSError: Something is not there, or cannot be read.
    """
    meta = read_sealed(run, run / META_FILE, MOST_BYTES)
    if list(files_in(run)) == [META_FILE]:
        return {}
    with open_plain(run, run / MANIFEST_FILE) as file:
        if stream_checksum(file)[1] != meta.get("manifest_crc32c"):
            raise DamagedRunError(f"{MANIFEST_FILE} is not the one that {META_FILE} names")
        file.seek(0)
        raw = file.read(MOST_BYTES)
    try:
        listed: Any = json.loads(raw)["files"].items()
        return {str(name): (int(size), str(crc)) for name, (size, crc) in listed}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedRunError(f"{MANIFEST_FILE} lists no files") from error


def is_whole(run: Path) -> bool:
    """Return whether a folder is a complete run of which no file is missing or cut short."""
    try:
        files = proved_files(run)
        return bool(files) and all((run / name).lstat().st_size == size for name, (size, _) in files.items())
    except (DamagedRunError, OSError):
        return False


def refuse_in_run(folder: Path, flag: str, *, or_a_run: bool = False) -> None:
    """Raise where a new folder would lie in a run: nothing lists it there, so that the run could not be replaced.

    Args:
        folder: Where.
        flag: What the user named it with.
        or_a_run: Also where it is a run itself.

    Raises:
        UsageError: Names the run and the flag.
    """
    folder = folder.resolve()
    for around in (*[folder] * or_a_run, *folder.parents):
        if (around / META_FILE).is_file() and (around / MANIFEST_FILE).is_file():
            raise UsageError(f"{flag} {folder}: {around} is a run. Name a folder outside of runs.")


def found_run(run: Path) -> bool:
    """Return whether there is a folder under a run's name, after giving it back to one that a kill left aside."""
    try:
        return run.is_dir() or put_back(run.resolve(), is_whole)
    except OSError:  # who may only read here waits for somebody who may rename
        return False
