"""One writer for an unfinished run: a lock that the system gives up when its process ends, however it ends."""

from pathlib import Path
from typing import Final

from filelock import FileLock, Timeout

from decision_traces.errors import RunExistsError

LOCK_FILE: Final = ".lock"


class FolderLock:
    """Held by the process that writes a partial folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = FileLock(folder / LOCK_FILE)

    def take(self) -> None:
        """Take the lock.

        Raises:
            RunExistsError: Another process holds it.
        """
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunExistsError(
                f"{self._folder} is being written by another process now. Wait for it to end, or choose another "
                "--out_dir; it was left as it is."
            ) from None

    def release(self) -> None:
        """Give the lock up; nothing happens where it is not held."""
        self._lock.release()
