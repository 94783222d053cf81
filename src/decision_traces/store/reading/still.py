"""Whether the run that lies at a path is still the one that was opened there."""

import hashlib
import os
import time
from pathlib import Path
from typing import Final

from decision_traces.errors import DamagedRunError, ReplacedRunError, RunError
from decision_traces.folders.plain import open_plain
from decision_traces.format.arrays import META_FILE

_WAIT_S: Final = 0.05
_TRIES: Final = 20

FileStamp = tuple[int, int, int, int]
"""Device, inode, time of the last change in ns, and size: another stamp is another file, or changed bytes."""


_SETTLED_NS: Final = 50_000_000
"""A file changed twice within one tick of the clock has one time of change: one so young is checked again."""


def settled(status: os.stat_result) -> bool:
    """Return whether a file is old enough for another stamp after the next change."""
    return time.time_ns() - status.st_mtime_ns > _SETTLED_NS


def file_stamp(status: os.stat_result) -> FileStamp:
    """Return the stamp of a file from its status."""
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


class StillThere:
    """Finds that a run was replaced: in `with still: …`, what was read is of the run that was opened, or it raises.

    The run is known by its `meta.json`, which is written last and names everything else: one look at the file's status,
    and at its bytes only where that is another one. A run that was copied over itself is the same run.

    Attributes:
        digest: SHA-256 of `meta.json` as it was opened; empty where it could not be read.
    """

    def __init__(self, run: Path) -> None:
        """Look at the run as it is now."""
        self._run = run
        self._file = run / META_FILE
        self._stamp, self.digest = self._look()

    def check(self) -> None:
        """Raise if the run is not the one that was opened.

        For a moment between two renames no run is there: that is waited for.

        Raises:
            ReplacedRunError: It was replaced.
            RunError: It is gone.
        """
        for _ in range(_TRIES):
            try:
                status = self._file.lstat()
            except OSError:
                time.sleep(_WAIT_S)
                continue
            if file_stamp(status) != self._stamp:
                self._compare()
            return
        raise RunError(f"{self._run} is gone: its {META_FILE} was there when it was opened.")

    def _compare(self) -> None:
        stamp, digest = self._look()
        if digest != self.digest:
            raise ReplacedRunError(f"{self._run} was replaced since it was opened: open it again.")
        self._stamp = stamp

    def _look(self) -> tuple[FileStamp | None, str]:
        try:
            with open_plain(self._run, self._file) as file:
                return file_stamp(os.fstat(file.fileno())), hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, DamagedRunError):
            return None, ""

    def __enter__(self) -> None:
        """Begin to read: nothing is looked at yet."""

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Look, whatever the read came to: of another run's files it may have called some damaged."""
        if kind is None or issubclass(kind, Exception):
            self.check()
