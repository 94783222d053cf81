"""Where the bytes of shard files go to and come from: a folder of this machine now, another kind of store next.

`appender.Appender` is the sink of a local folder, `LocalSource` its source.
"""

import os
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import Protocol, runtime_checkable

from decision_traces.folders.plain import PlainFolder
from decision_traces.store.shards.frames import Frame

Stamp = tuple[int, int, int]
"""Tells a file from another that stands in its place later: size, time of the last change, number."""


@runtime_checkable
class SinkFile(Protocol):
    """A file in the making."""

    def append(self, frames: Iterable[Frame]) -> None:
        """Append frames, each used up before the next is asked for.

        Raises:
            OSError: They cannot be written.
        """

    def finish(self, last: bytes) -> None:
        """Append the last bytes and close the file.

        Raises:
            OSError: They cannot be written.
        """


@runtime_checkable
class SourceFile(Protocol):
    """An open file; leaving its context closes it."""

    def __enter__(self) -> "SourceFile": ...

    def __exit__(self, *_: object) -> None: ...

    @property
    def stamp(self) -> Stamp:
        """What tells it from another."""

    def read(self, offset: int, length: int) -> bytes:
        """Return so many bytes from a place on.

        Raises:
            ValueError: The file ends before them.
            OSError: They cannot be read.
        """


@runtime_checkable
class Source(Protocol):
    """Opens files for reading."""

    def find(self, path: Path) -> SourceFile | None:
        """Open a file; None where there is none.

        Raises:
            DamagedRunError: It is no plain file.
            OSError: It cannot be opened.
        """


class LocalFile:
    """A file of this machine."""

    __slots__ = ("_file",)

    def __init__(self, file: FileIO) -> None:
        self._file = file

    def __enter__(self) -> "LocalFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def stamp(self) -> Stamp:
        """What tells it from another."""
        status = os.fstat(self._file.fileno())
        return status.st_size, status.st_mtime_ns, status.st_ino

    def read(self, offset: int, length: int) -> bytes:
        """Return so many bytes from a place on; see `SourceFile`."""
        self._file.seek(offset)
        data = self._file.read(length)
        if data is None or len(data) != length:
            raise ValueError(f"the file ends early: {0 if data is None else len(data)} bytes where {length} belong")
        return data


class LocalSource:
    """The files of a folder, which may come from a stranger."""

    __slots__ = ("_folder",)

    def __init__(self, folder: PlainFolder) -> None:
        self._folder = folder

    def find(self, path: Path) -> LocalFile | None:
        """Open a file; see `Source`."""
        file = self._folder.find(path)
        return None if file is None else LocalFile(file)
