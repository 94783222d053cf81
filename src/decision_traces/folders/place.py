"""The name of a folder and where it is built: held by one process, replaced at once, cleared of what is ours."""

import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final

from decision_traces.errors import RunError, RunExistsError
from decision_traces.folders.disk import disk_errors
from decision_traces.folders.exchange import leftovers, put_back, put_in_place
from decision_traces.folders.lock import FolderLock
from decision_traces.folders.plain import refuse_strange_inside
from decision_traces.folders.removal import files_in, refuse_strangers, remove

UNTOUCHED: Final = "Nothing was written. Free some space, or choose another place with --out_dir"


@dataclass(frozen=True, slots=True)
class FolderKind:
    """What folders of one kind are called, and how it is proved that this package made them.

    Attributes:
        name: What a complete one is: run.
        mark: File that every complete one has.
        begun_mark: File of one in the making, written before all others; it goes when the folder has its name.
        proof: What proves the files of a complete one, in the order in which it is removed, after them.
        is_begun: Whether a folder is one in the making.
        is_whole: Whether a folder is a complete one, with all its files.
        owned_files: The files of a complete one that are ours. Raises RunExistsError where nothing proves it.
        unfinished_files: The files of one in the making that are ours. Raises RunExistsError where nothing proves it.
        flag: What the user names the folder with.
        resumable: Whether one in the making is worth keeping.
    """

    name: str
    mark: str
    begun_mark: str
    proof: tuple[str, ...]
    is_begun: Callable[[Path], bool]
    is_whole: Callable[[Path], bool]
    owned_files: Callable[[Path], set[str]]
    unfinished_files: Callable[[Path], set[str]]
    flag: str = "--out_dir"
    resumable: bool = True


_LONGEST_NAME: Final = 255 - len(".") - len(".0123456789abcdef.partial")  # bytes; file systems have 255


def partial_folder(target: Path) -> Path:
    """Return where a folder is built before it gets its name."""
    return target.with_name(f".{target.name}.partial")


class FolderPlace:
    """A folder's name. In `with FolderPlace(…)` no other process writes there, and what is in the way may be removed.

    Attributes:
        target: The folder, links followed.
        folder: Where it is built.
    """

    def __init__(self, target: Path, kind: FolderKind, *, overwrite: bool = False, resume: bool = False) -> None:
        """Name it.

        Args:
            target: The folder.
            kind: What it is.
            overwrite: Whether a complete one there may be replaced once the new one is complete, and an unfinished
                one be discarded.
            resume: Whether an unfinished one is to be gone on with.

        Raises:
            RunExistsError: It is the root of the file system, beside which nothing can be built, or its name is so long
                that none beside it could be.
        """
        self.target = target.resolve()
        if not self.target.name:
            raise RunExistsError(f"{self.target} cannot be a {kind.name}. Name a folder in it with {kind.flag}.")
        if len(os.fsencode(self.target.name)) > _LONGEST_NAME:
            raise RunExistsError(f"{self.target} has too long a name. Name a shorter one with {kind.flag}.")
        self.folder = partial_folder(self.target)
        self._kind = kind
        self._overwrite, self._resume = overwrite, resume
        self._lock = FolderLock(self.target)
        self._made: list[Path] = []

    def __enter__(self) -> "FolderPlace":
        """Take the name, and look at what is there.

        Raises:
            RunExistsError: Another process is writing there, or something is in the way; nothing was touched.
            RunError: The place cannot be written.
        """
        self._refuse_unwritable()
        try:
            with disk_errors(self.target.parent, kept=UNTOUCHED):
                self._make_parents()
                self._lock.take()
                if not (self._resume and self.complete):
                    put_back(self.target, self._kind.is_whole)
                self._replaceable()
                self._refuse_unfinished()
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let others write there; folders that were made for it, and not used, go."""
        self._let_go()

    def begin(self) -> None:
        """Make the empty folder; one in the making in its place goes.

        Raises:
            RunExistsError: There is something that is not ours.
            OSError: It cannot be written.
        """
        self.sweep()
        self._refuse_unfinished()
        self.discard()
        self.folder.mkdir(exist_ok=self._resume)

    def discard(self) -> None:
        """Remove the folder in the making; what is not ours stays.

        Raises:
            OSError: Something cannot be removed.
        """
        if self.folder.is_dir():
            remove(self.folder, self._kind.unfinished_files(self.folder), (self._kind.begun_mark,))

    def finish(self) -> None:
        """Give the finished folder its name; one that is replaced goes only then.

        Raises:
            RunExistsError: Something that is not ours has come into the way.
            OSError: It cannot be renamed.
        """
        old, mark = self._replaceable(), self.target / self._kind.begun_mark
        mark.unlink(missing_ok=True)  # so that a folder with this mark is always the new one
        aside = put_in_place(self.folder, self.target)
        mark.unlink(missing_ok=True)
        if aside is not None:
            self._clear_away(aside, old)
        self.sweep()

    def sweep(self) -> None:
        """Remove what a killed process left beside the name when it had replaced it.

        Raises:
            OSError: Something cannot be removed.
        """
        for folder in (*leftovers(self.target), self.folder):
            if self._is_replaced(folder):
                self._clear_away(folder, self._kind.owned_files(folder))
            elif not any(files_in(folder)):
                remove(folder, ())

    @property
    def complete(self) -> bool:
        """Whether the folder in the making lacks nothing but its name: a kill came just before it got it."""
        return self._kind.is_begun(self.folder) and self._kind.is_whole(self.folder)

    def _make_parents(self) -> None:
        for folder in reversed([p for p in self.target.parents if not p.exists()]):
            folder.mkdir(exist_ok=True)
            self._made.insert(0, folder)

    def _let_go(self) -> None:
        self._lock.release()
        for folder in self._made:
            with suppress(OSError):  # it is in use by now
                folder.rmdir()

    def _refuse_unwritable(self) -> None:
        there = next(p for p in (self.target, *self.target.parents) if p.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            what = "is a read-only folder" if there.is_dir() else "is a file"
            raise RunError(f"{self.target} cannot be written: {there} {what}. Choose another {self._kind.flag}.")

    def _replaceable(self) -> set[str]:
        """Return the files that go when the target is replaced; raise if it must not be."""
        target, kind = self.target, self._kind
        if not target.exists() or not any(target.iterdir()):
            return set()
        if not (target / kind.mark).is_file():
            raise RunExistsError(
                f"{target} is there and is not a {kind.name} folder (no {kind.mark}); it will not be touched."
            )
        if not self._overwrite:
            raise RunExistsError(
                f"{target} already holds a {kind.name}. Replace it with --overwrite, or choose another {kind.flag}."
            )
        ours = kind.owned_files(target)
        refuse_strangers(target, ours, "--overwrite")
        return ours

    def _refuse_unfinished(self) -> None:
        """Raise if what lies where the folder is built must not be discarded, or gone on with, as was asked."""
        folder = self.folder
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise RunExistsError(
                f"{folder} is where the {self._kind.name} is built, and is no folder. Move it away first."
            )
        if not folder.is_dir() or self._is_replaced(folder):
            return
        ours = self._kind.unfinished_files(folder)
        if not self._kind.is_begun(folder):  # killed before there was anything to go on with
            return
        if self._resume:
            refuse_strange_inside(folder, folder)
        elif self._overwrite or not self._kind.resumable:
            refuse_strangers(folder, ours, self._kind.flag)
        else:
            raise RunExistsError(
                f"{folder} holds an unfinished {self._kind.name}. Go on with it by --resume, discard it by "
                f"--overwrite, or choose another {self._kind.flag}."
            )

    def _is_replaced(self, folder: Path) -> bool:
        """Return whether a folder without a name is one that was replaced: one in the making bears its mark."""
        if folder.is_symlink() or not folder.is_dir() or self._kind.is_begun(folder):
            return False
        try:
            self._kind.owned_files(folder)
        except RunExistsError:
            return False
        return True

    def _clear_away(self, folder: Path, ours: set[str]) -> None:
        """Remove a replaced folder; what came into it at the last moment is kept where it can be seen."""
        if remove(folder, ours, self._kind.proof):
            name = folder.name.removeprefix(".").rsplit(".", 1)[0]
            folder.rename(folder.with_name(f"{name}.set-aside-{secrets.token_hex(4)}"))
