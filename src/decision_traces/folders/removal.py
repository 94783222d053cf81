"""Removing a folder file by file, and only what is proved to be ours."""

import os
import stat
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Final

from decision_traces.errors import RunExistsError

_NAMED: Final = 8


def files_in(folder: Path) -> Iterator[str]:
    """Yield everything below a folder that is not itself a folder, as relative paths with forward slashes.

    Links are named and not followed; so are pipes, sockets and devices.
    """
    for at, folders, files in os.walk(folder, followlinks=False):
        links = [name for name in folders if stat.S_ISLNK(os.lstat(f"{at}/{name}").st_mode)]
        inside = Path(at).relative_to(folder).as_posix()
        prefix = "" if inside == "." else f"{inside}/"
        yield from (prefix + name for name in sorted([*files, *links]))


def refuse_strangers(folder: Path, ours: Collection[str], what: str) -> None:
    """Raise if a folder holds something that is not ours; to be called before anything of it is touched.

    Args:
        folder: What is to be removed or replaced.
        ours: The files in it that are proved ours, as relative paths with forward slashes.
        what: What the user asked for, for the message: `--overwrite`.

    Raises:
        RunExistsError: Names what is not known.
    """
    unknown = [name for name in files_in(folder) if name not in ours]
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        raise RunExistsError(
            f"{what}: {folder} holds files that no record in it proves to be of decision-traces "
            f"({', '.join(unknown[:_NAMED])}{more}): your own, or an earlier version's. Move them away, or remove them "
            "yourself, and try again; nothing was changed."
        )


def remove(folder: Path, ours: Collection[str], proof: Sequence[str] = ()) -> list[str]:
    """Remove the named files of a folder, and the folders that are empty then; return what is left, usually nothing.

    A file that came after `refuse_strangers` stays, with the folders it lies in.

    Args:
        folder: Where; nothing happens where it is gone, or is a link.
        ours: The files, as relative paths with forward slashes.
        proof: Those of them that prove the others ours: they go last, in this order, so that after a kill what is left
            can still be proved.

    Raises:
        OSError: Something cannot be removed.
    """
    if folder.is_symlink() or not folder.is_dir():
        return []
    there = [name for name in files_in(folder) if name in ours and name not in proof]
    for name in (*there, *(name for name in proof if name in ours)):
        (folder / name).unlink(missing_ok=True)
    for at, folders, _ in os.walk(folder, topdown=False, followlinks=False):
        for name in folders:
            _remove_if_empty(Path(at) / name)
    _remove_if_empty(folder)
    return list(files_in(folder))


def _remove_if_empty(folder: Path) -> None:
    if not folder.is_symlink() and not any(folder.iterdir()):
        folder.rmdir()
