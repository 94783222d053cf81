"""The name of a run and the folder it is built in: held by one process, replaced at once, cleared of what is ours."""

import os
import secrets
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Final

from decision_traces.errors import RunError, RunExistsError
from decision_traces.folders.exchange import leftovers, put_in_place
from decision_traces.folders.lock import FolderLock
from decision_traces.folders.plain import refuse_strange
from decision_traces.folders.removal import files_in, refuse_strangers, remove
from decision_traces.schema import META_FILE
from decision_traces.store.disk import disk_errors
from decision_traces.store.ledger import LEDGER_FILE, is_begun
from decision_traces.store.owned import PARTS_DIR, owned_files, unfinished_files
from decision_traces.store.proof import PROOF, found_run, is_whole

UNTOUCHED: Final = "Nothing was written. Free some space, or choose another place with --out_dir"


def partial_folder(run: Path) -> Path:
    """Return where a run is built before it gets its name."""
    return run.with_name(f".{run.name}.partial")


class RunPlace:
    """A run's name. In `with RunPlace(…)` no other process writes there, and all that is in the way may be removed.

    Attributes:
        run: The run's folder, links followed.
        folder: Where it is built.
    """

    def __init__(self, run: Path, *, overwrite: bool = False, resume: bool = False) -> None:
        """Name it.

        Args:
            run: The run's folder.
            overwrite: Whether a complete run there may be replaced once the new one is complete, and an unfinished
                one be discarded.
            resume: Whether an unfinished one is to be gone on with.
        """
        self.run = run.resolve()
        self.folder = partial_folder(self.run)
        self._overwrite, self._resume = overwrite, resume
        self._lock = FolderLock(self.run)
        self._made: list[Path] = []

    def __enter__(self) -> "RunPlace":
        """Take the name, and look at what is there.

        Raises:
            RunExistsError: Another process is writing there, or something is in the way; nothing was touched.
            RunError: The place cannot be written.
        """
        self._refuse_unwritable()
        try:
            with disk_errors(self.run.parent, kept=UNTOUCHED):
                self._make_parents()
                self._lock.take()
                if not (self._resume and self.complete):
                    found_run(self.run)
                self._replaceable()
                self._refuse_unfinished()
        except BaseException:
            self._let_go()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let others write there; folders made for a run that did not come to be go."""
        self._let_go()

    def begin(self) -> None:
        """Make the empty folder; an unfinished run in its place goes.

        Raises:
            RunExistsError: There is something that is not ours.
            OSError: It cannot be written.
        """
        self.sweep()
        self._refuse_unfinished()
        self.discard()
        self.folder.mkdir(exist_ok=self._resume)

    def discard(self) -> None:
        """Remove the unfinished run; what is not ours stays.

        Raises:
            OSError: Something cannot be removed.
        """
        if self.folder.is_dir():
            remove(self.folder, unfinished_files(self.folder), (LEDGER_FILE,))

    def finish(self) -> None:
        """Give the finished run its name; one that is replaced goes only then.

        Raises:
            RunExistsError: Something that is not ours has come into the way.
            OSError: It cannot be renamed, or what only the writing needed cannot be removed.
        """
        parts = self.folder / PARTS_DIR
        ours = {name.removeprefix(f"{PARTS_DIR}/") for name in unfinished_files(self.folder)}
        remove(parts, ours)
        old = self._replaceable()
        (self.run / LEDGER_FILE).unlink(missing_ok=True)  # so that a folder with a ledger is always the new one
        aside = put_in_place(self.folder, self.run)
        (self.run / LEDGER_FILE).unlink(missing_ok=True)
        if aside is not None:
            _clear_away(aside, old)
        self.sweep()

    def sweep(self) -> None:
        """Remove complete runs that a killed process left beside the name when it had replaced them.

        Raises:
            OSError: Something cannot be removed.
        """
        for folder in (*leftovers(self.run), self.folder):
            if _is_replaced(folder):
                _clear_away(folder, owned_files(folder))
            elif not any(files_in(folder)):
                remove(folder, ())

    @property
    def complete(self) -> bool:
        """Whether the unfinished run lacks nothing but its name: a commit that was interrupted after `meta.json`."""
        return is_begun(self.folder) and is_whole(self.folder)

    def _make_parents(self) -> None:
        for folder in reversed([p for p in self.run.parents if not p.exists()]):
            folder.mkdir(exist_ok=True)
            self._made.insert(0, folder)

    def _let_go(self) -> None:
        self._lock.release()
        for folder in self._made:
            with suppress(OSError):  # it is in use by now
                folder.rmdir()

    def _refuse_unwritable(self) -> None:
        there = next(p for p in (self.run, *self.run.parents) if p.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            what = "is a read-only folder" if there.is_dir() else "is a file"
            raise RunError(f"{self.run} cannot be written: {there} {what}. Choose another --out_dir.")

    def _replaceable(self) -> set[str]:
        """Return the files that go when the run is replaced; raise if it must not be."""
        run = self.run
        if not run.exists() or not any(run.iterdir()):
            return set()
        if not (run / META_FILE).is_file():
            raise RunExistsError(f"{run} is there and is not a run folder (no {META_FILE}); it will not be touched.")
        if not self._overwrite:
            raise RunExistsError(
                f"{run} already holds a run. Replace it with --overwrite, or choose another --out_dir."
            )
        ours = owned_files(run)
        refuse_strangers(run, ours, "--overwrite")
        return ours

    def _refuse_unfinished(self) -> None:
        """Raise if what lies where the run is built must not be discarded, or gone on with, as was asked."""
        folder = self.folder
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise RunExistsError(f"{folder} is where the run would be built, and is no folder. Move it away first.")
        if not folder.is_dir() or _is_replaced(folder):
            return
        ours = unfinished_files(folder)
        if not is_begun(folder):  # killed before there was anything to go on with
            return
        if self._resume:
            for name in files_in(folder):
                refuse_strange(folder, folder / name)
        elif self._overwrite:
            refuse_strangers(folder, ours, "--overwrite")
        else:
            raise RunExistsError(
                f"{folder} holds an unfinished run. Go on with it by --resume, discard it by --overwrite, or choose "
                "another --out_dir."
            )


def _is_replaced(folder: Path) -> bool:
    """Return whether a folder without a name is a complete run that was replaced: one in the making has a ledger."""
    if folder.is_symlink() or not folder.is_dir() or is_begun(folder):
        return False
    try:
        owned_files(folder)
    except RunExistsError:
        return False
    return True


def _clear_away(folder: Path, ours: set[str]) -> None:
    """Remove a replaced run; what came into it at the last moment is kept where it can be seen."""
    if remove(folder, ours, PROOF):
        name = folder.name.removeprefix(".").rsplit(".", 1)[0]
        folder.rename(folder.with_name(f"{name}.set-aside-{secrets.token_hex(4)}"))
