"""Files of a folder that may come from a stranger: opened only where they are files, and lie in the folder itself."""

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader, FileIO
from pathlib import Path
from typing import BinaryIO, Final

from decision_traces.errors import DamagedRunError
from decision_traces.folders.removal import files_in

_KINDS: Final = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_ADVICE: Final = (
    "A run holds plain files and folders only. If you know who made this one, `cp -rL` makes a copy without links; "
    "else do not use it."
)
# Linux and macOS; Windows has neither links that everybody can make nor pipes in folders.
_SAFELY: Final = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def strange_kind(path: Path) -> str | None:
    """Return what a path is where it is neither file nor folder ("a pipe", "a symbolic link"); None where it is.

    Raises:
        OSError: There is nothing, or it cannot be looked at.
    """
    return _KINDS.get(stat.S_IFMT(path.lstat().st_mode))


def strange_files(root: Path) -> Iterator[tuple[str, str]]:
    """Yield what a folder holds beside files and folders: relative path with forward slashes, and what it is."""
    for name in files_in(root):
        kind = strange_kind(root / name)
        if kind is not None:
            yield name, kind


def plain_files(root: Path) -> Iterator[Path]:
    """Yield the files of a folder."""
    paths = (root / name for name in files_in(root))
    return (path for path in paths if strange_kind(path) is None)


class PlainFolder:
    """A folder that may come from a stranger: nothing in it is opened that is, or lies behind, a link or a device.

    The folder itself may be reached through links: that is the user's own doing. What its files lie in is looked at
    once and remembered, a file each time.
    """

    def __init__(self, root: Path) -> None:
        """Name the folder; nothing is looked at."""
        self._root = root
        self._plain = {str(root)}

    def has(self, path: Path) -> bool:
        """Return whether there is a file; see `size`."""
        return self.size(path) is not None

    def size(self, path: Path) -> int | None:
        """Return how many bytes a file has, None where there is none.

        Raises:
            DamagedRunError: It is, or leads through, a link, or is a pipe, a socket or a device.
        """
        if str(path).rpartition(os.sep)[0] not in self._plain:  # on every read of a few numbers: no Path is made for it
            self._look_at(path.parent)
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        kind = stat.S_IFMT(status.st_mode)
        if kind in _KINDS:
            raise _refused(path, _KINDS[kind])
        return status.st_size if stat.S_ISREG(status.st_mode) else None

    def open(self, path: Path) -> FileIO:
        """Open a file for reading, without a buffer.

        Raises:
            DamagedRunError: As for `size`.
            OSError: It is not there, or cannot be read.
        """
        file = self.find(path)
        if file is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
        return file

    def find(self, path: Path) -> FileIO | None:
        """Open a file as `open` does, where there is one; None where there is none."""
        if not self.has(path):
            return None
        file = FileIO(path, "rb", opener=lambda name, _: os.open(name, _SAFELY))
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # exchanged since
            file.close()
            raise _refused(path, "no file")
        return file

    def _look_at(self, folder: Path) -> None:
        if str(folder) in self._plain:
            return
        if not folder.is_relative_to(self._root) or ".." in folder.parts[len(self._root.parts) :]:
            raise DamagedRunError(f"{folder} does not lie in {self._root}. {_ADVICE}")
        self._look_at(folder.parent)
        try:
            kind = strange_kind(folder)
        except (FileNotFoundError, NotADirectoryError):
            return
        if kind is not None:
            raise _refused(folder, kind)
        self._plain.add(str(folder))


def refuse_strange(root: Path, path: Path) -> None:
    """Raise if a path inside a folder is, or leads through, a link, or is a pipe, a socket or a device.

    What is not there is not strange.

    Raises:
        DamagedRunError: Names what it is.
    """
    PlainFolder(root).has(path)


def refuse_strange_inside(root: Path, folder: Path) -> None:
    """Raise as `refuse_strange` does for a folder and for all that is in it."""
    if folder != root:
        refuse_strange(root, folder)
    for name, kind in strange_files(folder):
        raise _refused(folder / name, kind)


def _refused(path: Path, kind: str) -> DamagedRunError:
    return DamagedRunError(f"{path} is {kind}. {_ADVICE}")


def open_plain(root: Path, path: Path) -> BufferedReader:
    """Open a file inside a folder for reading, never through a link, and without waiting for a pipe.

    Raises:
        DamagedRunError: It is, or leads through, a link, or is no file.
        OSError: It is not there, or cannot be read.
    """
    return BufferedReader(PlainFolder(root).open(path))


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """Write a file whole or not at all: beside its name, under one that nothing has, and renamed at the end.

    A link that stands under the name is replaced, never written through.

    Raises:
        OSError: It cannot be written; what stood there is as it was.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    try:
        with partial.open("xb") as file:
            yield file
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
