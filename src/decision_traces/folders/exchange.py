"""Putting a finished folder in the place of another, so that one of the two has the name at every instant."""

import ctypes
import errno
import os
import re
import secrets
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final

_AT_FDCWD: Final = -100
_EXCHANGE: Final = 2  # RENAME_EXCHANGE of Linux' renameat2; RENAME_SWAP of macOS' renamex_np
_CANNOT: Final = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM})
_OLD: Final = ".old"
_PARTIAL: Final = ".partial"
_OURS: Final = re.compile(rf"\.(.+)\.[0-9a-f]{{16}}(?:{re.escape(_OLD)}|{re.escape(_PARTIAL)})", re.DOTALL)
_WAIT_S: Final = 1.0


def staging_folder(target: Path) -> Path:
    """Make a new, empty, hidden folder beside a target, under a name that nothing else has, and return it."""
    return _new(target, _PARTIAL)


def leftovers(target: Path) -> list[Path]:
    """Return the folders beside a target that a killed process may have left: built, or put aside, under our names."""
    named = (path for path in target.parent.glob(f".{_quoted(target.name)}.*") if name_of_leftover(path) == target.name)
    return sorted(path for path in named if path.is_dir() and not path.is_symlink())


def name_of_leftover(path: Path) -> str | None:
    """Return the name of the folder that a path was built for or put aside from; None where its name is not of ours."""
    found = _OURS.fullmatch(path.name)
    return found[1] if found else None


def put_in_place(new: Path, target: Path) -> Path | None:
    """Give a finished folder its name, and return where what had the name before now lies; None where nothing had.

    Where the system can exchange two names at once it does. Elsewhere there is an instant between two renames when
    nothing has the name; `put_back` mends what a kill in that instant leaves. To be called under the target's lock.

    Args:
        new: The finished folder, on the same file system.
        target: Its name. A link is not followed.

    Raises:
        OSError: It cannot be renamed; the target is as it was.
    """
    if not target.is_dir():
        new.rename(target)
        return None
    aside = _unused(target, _OLD)
    if _exchanged(new, target):
        new.rename(aside)
        return aside
    target.rename(aside)
    try:
        new.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    return aside


def put_back(target: Path, whole: Callable[[Path], bool]) -> bool:
    """Give a target that is gone its name again, where a kill between two renames has left it aside.

    Args:
        target: What is missing.
        whole: Whether a folder that was put aside is what it should be.

    Returns:
        Whether there is a folder under the name now.

    Raises:
        OSError: It cannot be renamed.
    """
    until = time.monotonic() + _WAIT_S
    while not target.is_dir():
        aside = [path for path in leftovers(target) if path.name.endswith(_OLD) and whole(path)]
        if not aside:
            return target.is_dir()
        if time.monotonic() >= until:  # a living process would have finished by now
            with suppress(FileNotFoundError):  # another reader was as quick
                aside[-1].rename(target)
            return target.is_dir()
        time.sleep(0.02)
    return True


def _new(target: Path, suffix: str) -> Path:
    folder = _unused(target, suffix)
    folder.mkdir(parents=False)
    return folder


def _unused(target: Path, suffix: str) -> Path:
    return target.with_name(f".{target.name}.{secrets.token_hex(8)}{suffix}")


def _quoted(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _exchanged(one: Path, other: Path) -> bool:
    """Exchange two names at once; False where this system or file system cannot.

    Raises:
        OSError: It can, and did not.
    """
    swap = _swap()
    if swap is None:
        return False
    failed = swap(os.fsencode(one), os.fsencode(other))
    if not failed:
        return True
    if failed in _CANNOT:
        return False
    raise OSError(failed, os.strerror(failed), str(one), None, str(other))


@cache
def _swap() -> Callable[[bytes, bytes], int] | None:
    """Return what exchanges two paths and gives 0 or an errno, where the C library has it."""
    if os.name != "posix":
        return None
    library = ctypes.CDLL(None, use_errno=True)
    if sys.platform == "linux" and hasattr(library, "renameat2"):
        rename = library.renameat2
        rename.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
        return lambda a, b: ctypes.get_errno() if rename(_AT_FDCWD, a, _AT_FDCWD, b, _EXCHANGE) else 0
    if sys.platform == "darwin" and hasattr(library, "renamex_np"):
        rename = library.renamex_np
        rename.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint]
        return lambda a, b: ctypes.get_errno() if rename(a, b, _EXCHANGE) else 0
    return None
