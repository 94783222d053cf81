"""One writer for a folder, from its first write to its last rename, and for what is computed on it."""

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from filelock import FileLock, Timeout

from decision_traces.errors import RunError, RunExistsError

LOCK_SUFFIX: Final = ".lock"


class FolderLock:
    """Held by the process that writes a folder; the system gives it up when that process ends, however it ends.

    The lock file stands beside the folder, which is renamed and exchanged while the lock is held. Only where nothing
    can be written beside the folder (and so nobody can exchange it) it stands inside.
    """

    def __init__(self, folder: Path) -> None:
        """Name the lock of a folder, which need not be there; symbolic links are followed first."""
        self._folder = folder.resolve()
        beside = os.access(self._folder.parent, os.W_OK) or not self._folder.is_dir()
        name = f".{self._folder.name}{LOCK_SUFFIX}" if beside else LOCK_SUFFIX
        self.path: Path = (self._folder.parent if beside else self._folder) / name
        self._lock = FileLock(self.path)

    def take(self) -> None:
        """Take the lock.

        Raises:
            RunExistsError: Another process (or another object of this one) holds it.
            RunError: The lock file cannot be made.
        """
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunExistsError(
                f"{self._folder} is being written by another process now. Wait for it to end, or choose another "
                "place; it was left as it is."
            ) from None
        except OSError as error:
            raise RunError(f"{self.path} cannot be written ({error.strerror or error}).") from error

    def release(self) -> None:
        """Give the lock up and take its file away, if it is an empty one; nothing happens where it is not held."""
        if self._lock.is_locked:
            # While it is held: who has opened this file already finds it nameless, and tries again.
            with suppress(OSError):  # it may be gone with its folder; one that cannot be removed locks nobody out
                if self.path.lstat().st_size == 0:
                    self.path.unlink()
            self._lock.release()

    def __enter__(self) -> "FolderLock":
        """Take the lock; see `take`."""
        self.take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give it up."""
        self.release()
