"""Appending to files past the system's page cache, for as long as the disk is quick enough.

What goes through the cache is copied by a processor that should compute, into memory that the system has to find and
later to free, and drives out what others have there. Direct writes (`O_DIRECT`) take next to no processor time; in
exchange memory, places in the file and sizes must be multiples of a page, and the writer waits for the disk. Both are
measured in `docs/performance.md`.
"""

import errno
import mmap
import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from time import perf_counter
from typing import Final

from decision_traces.store.shards.frames import Frame

PAGE: Final = 4096
_WINDOW: Final = 2 << 20
_STRETCH: Final = 64 << 20  # bytes by which the disk is judged
_QUICK: Final = 200e6  # bytes a second; about what the slowest page cache takes, and more than two cores produce
_PAUSE: Final = 1 << 30  # bytes that go through the cache before the disk is judged anew


class Appender:
    """What one thread appends through, to however many files: a window of memory, filled and written out."""

    def __init__(self, sharing: int = 1) -> None:
        """Prepare.

        Args:
            sharing: How many write to the disk at the same time, each with a part of its speed.
        """
        self._window = memoryview(mmap.mmap(-1, _WINDOW))
        self._flag: int = getattr(os, "O_DIRECT", 0)  # where the system has direct writes
        self._quick = _QUICK / sharing
        self._bytes, self._seconds = 0, 0.0  # of direct writes, since the disk was judged
        self._pause = 0  # bytes still to go through the cache

    @property
    def direct(self) -> bool:
        """Whether the next file goes past the page cache."""
        return self._flag != 0 and self._pause <= 0

    def open(self, path: Path) -> "AppendedFile":
        """Return a file, which is there and empty, as one to append to."""
        return AppendedFile(self, path)

    def append(self, path: Path, rest: bytes, frames: Iterable[Frame]) -> bytes:
        """Append frames to a file, a page at a time.

        Args:
            path: The file, whole pages so far.
            rest: What comes before the frames and was not written yet; less than a page.
            frames: Each is used up before the next is asked for.

        Returns:
            What comes behind those pages; less than a page, for the next call or `finish`.
        """
        window, at = self._window, len(rest)
        window[:at] = rest
        with self._open(path) as file:
            for frame in frames:
                for part in frame:
                    size = len(part)
                    while at + size > _WINDOW:
                        window[at:] = part[: (taken := _WINDOW - at)]
                        self._write(file, _WINDOW)
                        at, size, part = 0, size - taken, part[taken:]
                    window[at : at + size] = part
                    at += size
            whole = at // PAGE * PAGE
            if whole:
                self._write(file, whole)
        return bytes(window[whole:at])

    def finish(self, path: Path, rest: bytes) -> None:
        """Append what is left at the end: the one part that is not a whole page."""
        with path.open("rb+") as file:
            file.seek(0, os.SEEK_END)
            file.write(rest)

    def _open(self, path: Path) -> FileIO:
        """Open a file that is there, at its end."""
        flag = self._flag if self.direct else 0
        try:
            return FileIO(path, "ab", opener=lambda name, flags: os.open(name, flags & ~os.O_CREAT | flag))
        except OSError as error:
            if error.errno != errno.EINVAL or not flag:
                raise
            self._flag = 0  # a file system without direct writes
            return self._open(path)

    def _write(self, file: FileIO, size: int) -> None:
        """Write the beginning of the window: whole pages."""
        began, left = perf_counter(), self._window[:size]
        while len(left):
            try:
                left = left[file.write(left) :]
            except OSError as error:
                if error.errno != errno.EINVAL or not self._flag:
                    raise
                self._go_through_cache(file)  # a device that wants larger pages
        if self.direct:
            self._judge(size, perf_counter() - began)
        else:
            self._pause -= size

    def _go_through_cache(self, file: FileIO) -> None:
        """Let this file and all later ones be written like any other."""
        import fcntl  # where there are direct writes there is this

        fcntl.fcntl(file, fcntl.F_SETFL, fcntl.fcntl(file, fcntl.F_GETFL) & ~self._flag)
        self._flag = 0

    def _judge(self, size: int, seconds: float) -> None:
        """Go through the page cache for a while if the disk is slow: there it works on while we compute."""
        self._bytes, self._seconds = self._bytes + size, self._seconds + seconds
        if self._bytes >= _STRETCH:
            self._pause = _PAUSE if self._bytes < self._quick * self._seconds else 0
            self._bytes, self._seconds = 0, 0.0


class AppendedFile:
    """A file in the making; what is less than a page waits for what comes behind it."""

    __slots__ = ("_appender", "_path", "_rest")

    def __init__(self, appender: Appender, path: Path) -> None:
        self._appender, self._path, self._rest = appender, path, b""

    def append(self, frames: Iterable[Frame]) -> None:
        """Append frames; see `places.SinkFile`."""
        self._rest = self._appender.append(self._path, self._rest, frames)

    def finish(self, last: bytes) -> None:
        """Append the last bytes."""
        self._appender.finish(self._path, self._rest + last)
