"""Paths as users give them: as text, with backslashes, with a `~`; what is no path is refused."""

import os
import re
from dataclasses import fields
from os import PathLike
from pathlib import Path
from reprlib import repr as short
from typing import Any, Final, get_args, get_type_hints

from decision_traces.errors import PathError, UsageError

_ADDRESS: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # one letter is a drive of Windows


def portable_path(path: str | PathLike[str]) -> Path:
    r"""Return a path as given, with its backslashes as slashes (the usage document has `traces\RUN`) and `~` expanded.

    Args:
        path: A path. Backslashes, and the `~` of another user, are left where something exists under the literal name.

    Raises:
        PathError: It is an address of an object store or a server, `~` stands for nobody, or the system cannot follow
            it, as where a symbolic link leads back to itself.
    """
    portable = Path(path)
    if _ADDRESS.match(str(path)):
        raise PathError(
            f"{path} is an address, where a path of this machine belongs: object stores and servers cannot be read or "
            "written yet. Copy or mount it, and give that folder."
        )
    if os.sep == "/" and "\\" in str(path) and not _is_there(portable):
        portable = Path(str(path).replace("\\", "/"))
    if portable.parts[:1] != ("~",) and _is_there(portable):
        return portable
    try:
        expanded = portable.expanduser()
    except RuntimeError as error:
        raise PathError(f"{path}: there is no home folder of {portable.parts[0]}. Give the path from / on.") from error
    _is_there(expanded)
    return expanded


def _is_there(path: Path) -> bool:
    """Return whether there is something at a path, through links; raise where that cannot be known."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:  # ValueError: a zero byte
        why = error.strerror if isinstance(error, OSError) else str(error)
        raise PathError(f"{path} is no path that can be followed: {why}. Give another.") from error
    return True


def portable_fields(command: Any) -> dict[str, Any]:
    """Return those fields of a dataclass that hold paths (one or several, as paths or as text), made portable.

    Raises:
        PathError: One is none of this machine.
        UsageError: One is no path at all.
    """
    values: dict[str, Any] = {}
    hints = get_type_hints(type(command))
    for name in (f.name for f in fields(command)):
        types, value = {hints[name], *get_args(hints[name])}, getattr(command, name)
        if Path not in types or value is None:
            continue
        if isinstance(value, str | PathLike):
            values[name] = portable_path(value)
        elif isinstance(value, tuple | list) and all(isinstance(v, str | PathLike) for v in value):
            values[name] = tuple(map(portable_path, value))
        else:
            raise UsageError(f"{name}={short(value)}: give a path, as text or as a pathlib.Path.")
    return values
