"""The disk a run goes to: whether there is room, and what its errors mean."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from decision_traces.errors import DiskSpaceError, RunError

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
                f"{folder} is gone: it was removed or renamed while it was being written. Run the command again."
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
