"""The ledger of an unfinished run: one JSON line for its plan and one for every finished block, fsynced.

The first line is there before anything else of the run, and whole: it proves that the folder is one of this package.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Thread
from typing import Any, Final

from decision_traces.errors import DamagedRunError, RunError
from decision_traces.folders.plain import new_file, open_plain

LEDGER_FILE: Final = "ledger.jsonl"
_MADE_BY: Final = {"made_by": "decision-traces"}


class Ledger:
    """Appends to a ledger: a line is there at once, and on the disk soon after, beside what comes next.

    To see a line safely on the disk can take as long as a block's numbers take to get there, which the file system may
    put there first. Were the lines lost with the power, so would be what they speak of: a resumed run looks.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._syncing: Thread | None = None
        self._failed: OSError | None = None

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line.

        Raises:
            OSError: It cannot be written, or an earlier one did not get onto the disk.
        """
        if self._failed is not None:
            raise self._failed
        with self.path.open("a", encoding="utf-8") as ledger:
            ledger.write(json.dumps(record, ensure_ascii=False) + "\n")
        if self._syncing is None or not self._syncing.is_alive():  # else the next line's takes this one along
            self._syncing = Thread(target=self._sync, name="ledger", daemon=True)
            self._syncing.start()

    def let_go(self) -> None:
        """Have no file open where its folder could not be moved then (Windows)."""
        if os.name == "nt" and self._syncing is not None:
            self._syncing.join()

    def _sync(self) -> None:
        try:
            with self.path.open("rb+", buffering=0) as ledger:
                os.fsync(ledger.fileno())
        except FileNotFoundError:  # the run has its name by now, or was discarded
            pass
        except OSError as error:
            self._failed = error


def read_ledger(path: Path) -> list[dict[str, Any]]:
    """Return the ledger's records; a last line that was cut off by a crash does not count."""
    records = []
    for line in path.read_bytes().splitlines():
        try:
            records.append(json.loads(line))
        except ValueError:  # not JSON, or half a character
            break
    if not records or "plan" not in records[0]:
        raise RunError(f"{path} is damaged: it does not begin with a plan. Discard the folder by --overwrite.")
    return records


def begin_ledger(path: Path, plan: Mapping[str, Any]) -> None:
    """Write the first line: what made the folder, and what a resumed run must agree with."""
    _write(path, [{**_MADE_BY, "plan": plan}])


def is_begun(folder: Path) -> bool:
    """Return whether a folder has a ledger of this package."""
    try:
        with open_plain(folder, folder / LEDGER_FILE) as file:
            first = json.loads(file.readline())
    except (OSError, DamagedRunError, ValueError, RecursionError):
        return False
    return isinstance(first, dict) and first.items() >= _MADE_BY.items() and isinstance(first.get("plan"), dict)


def mend_ledger(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Leave a torn last line out, so that what is appended begins on a line of its own."""
    raw = path.read_bytes()
    if not raw.endswith(b"\n") or raw.count(b"\n") != len(records):
        _write(path, records)


def _write(path: Path, records: Sequence[Mapping[str, Any]]) -> None:
    with new_file(path) as whole:
        whole.write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode())
