"""The disk a run goes to: whether there is room, whether something is in the way, and what its errors mean."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from decision_traces.errors import DiskSpaceError, RunError, RunExistsError
from decision_traces.schema import META_FILE

_DISK_FULL: Final = {errno.ENOSPC, errno.EDQUOT}
_KEPT: Final = (
    "Nothing was committed; finished blocks are kept there. Free some space and run the same command with --resume, "
    "or with --overwrite to start over"
)


@contextmanager
def disk_errors(folder: Path, kept: str = _KEPT) -> Iterator[None]:
    """Turn what a full or read-only disk raises, through whichever library, into one sentence.

    Args:
        folder: Where the writing goes.
        kept: What is left, and what to do about it.

    Raises:
        DiskSpaceError: No space left.
        RunError: The folder cannot be written.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, RunError):
            raise
        if is_full(error):
            raise DiskSpaceError(f"The disk of {folder} is full. {kept}.") from error
        if isinstance(error, OSError) and (error.errno == errno.ENOENT or not folder.exists()):
            raise RunError(
                f"{folder} is gone: it was removed or renamed while the run was being written. Run the command again."
            ) from error
        if isinstance(error, OSError):
            raise RunError(f"{folder} cannot be written: {error.strerror or error}.") from error
        raise


def is_full(error: BaseException) -> bool:
    """Return whether an error, raised by whichever library, says that a disk is full."""
    return getattr(error, "errno", None) in _DISK_FULL or os.strerror(errno.ENOSPC).lower() in str(error).lower()


def free_bytes(folder: Path) -> int:
    """Return the free space of the disk that a folder (or the nearest parent that exists) lies on."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    return shutil.disk_usage(there).free


def refuse_existing(run: Path, *, overwrite: bool) -> None:
    """Raise if a run cannot go where it is to go: found out before a model is loaded.

    Raises:
        RunError: The place cannot be written.
        RunExistsError: Says what is there.
    """
    there = next(p for p in (run, *run.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        what = "is a read-only folder" if there.is_dir() else "is a file"
        raise RunError(f"{run} cannot be written: {there} {what}. Choose another --out_dir.")
    if not run.exists() or not any(run.iterdir()):
        return
    if not (run / META_FILE).is_file():
        raise RunExistsError(f"{run} is there and is not a run folder (no {META_FILE}); it will not be touched.")
    if not overwrite:
        raise RunExistsError(f"{run} already holds a run. Replace it with --overwrite, or choose another --out_dir.")
