"""Files of a folder that may come from a stranger: opened only where they are files, and lie in the folder itself."""

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from decision_traces.errors import DamagedRunError

_KINDS: Final = {
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_ADVICE: Final = "A run holds plain files and folders only; do not use this one unless you know who made it."
# Linux and macOS; Windows has neither links that everybody can make nor pipes in folders.
_SAFELY: Final = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)


def strange_kind(path: Path) -> str | None:
    """Return what a path is where it is neither file nor folder ("a pipe", "a symbolic link"); None where it is.

    Raises:
        OSError: There is nothing, or it cannot be looked at.
    """
    return _KINDS.get(stat.S_IFMT(path.lstat().st_mode))


def refuse_strange(root: Path, path: Path) -> None:
    """Raise if a path inside a folder is, or leads through, a link, or is a pipe, a socket or a device.

    The folder itself may be reached through links: that is the user's own doing. What is not there is not strange.

    Raises:
        DamagedRunError: Names what it is.
    """
    at = root
    for part in path.relative_to(root).parts:
        at = at / part
        try:
            kind = strange_kind(at)
        except (FileNotFoundError, NotADirectoryError):
            return
        if kind is not None:
            raise DamagedRunError(f"{at} is {kind}. {_ADVICE}")


def open_plain(root: Path, path: Path) -> BinaryIO:
    """Open a file inside a folder for reading, never through a link, and without waiting for a pipe.

    Raises:
        DamagedRunError: It is, or leads through, a link, or is no file.
        OSError: It is not there, or cannot be read.
    """
    refuse_strange(root, path)
    number = os.open(path, _SAFELY)
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise DamagedRunError(f"{path} is no file. {_ADVICE}")
    return os.fdopen(number, "rb")


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
