"""Indexing a run: what it holds, what it takes, and how the last validation went, as `index.json`."""

import errno
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any, Final

import numpy as np

from decision_traces.checks import CheckResult
from decision_traces.errors import DamagedRunError, RunError
from decision_traces.folders.lock import FolderLock
from decision_traces.folders.plain import plain_files
from decision_traces.format.arrays import FORMAT_VERSION, INDEX_FILE
from decision_traces.store.files.folder import write_sealed
from decision_traces.store.reading.about import doubts
from decision_traces.store.reading.opened import OpenRun
from decision_traces.store.validate.run import Progress, failures, validate_run

_READ_ONLY: Final = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})


@dataclass(frozen=True, slots=True)
class ArrayIndex:
    """One array in the index.

    Attributes:
        name: As `TraceStore.arrays()` calls it.
        path: Where it lies in the run.
        shape: Sizes of its axes.
        dtype: float16 or float32.
        dims: Names of its axes.
        files: Files that hold its values.
        bytes_on_disk: What they take; hard links of another array's files count here too.
        nominal_bytes: What the values take uncompressed.
    """

    name: str
    path: str
    shape: tuple[int, ...]
    dtype: str
    dims: tuple[str, ...]
    files: int
    bytes_on_disk: int
    nominal_bytes: int


@dataclass(frozen=True, slots=True)
class RunIndex:
    """The index of a run.

    Attributes:
        run_id: From the meta, as are model and dataset.
        model: Name of the model.
        dataset: Name of the data set.
        n_examples: Rows of the token table.
        bytes_on_disk: All files of the run, each counted once however many names it has.
        arrays: What is stored.
        columns: Column names of tokens.parquet.
        checks: Every check, empty without validation.
        validated: When it was validated (ISO 8601, UTC), or None.
        path: Where the index was written.
        not_written: Why it could not be.
        read_only: Whether that is because the run is read-only, as shared ones may be.
        uncertified: What is to be said of a run whose certificate failed, or whose head is random; see `doubts`.
    """

    run_id: str
    model: str
    dataset: str
    n_examples: int
    bytes_on_disk: int
    arrays: tuple[ArrayIndex, ...]
    columns: tuple[str, ...]
    checks: tuple[CheckResult, ...]
    validated: str | None
    path: Path
    not_written: str | None = None
    read_only: bool = False
    uncertified: str | None = None

    @property
    def valid(self) -> bool | None:
        """Whether all checks hold; None without validation."""
        return None if self.validated is None else all(check.ok for check in self.checks)


def index_run(
    run_dir: str | PathLike[str],
    *,
    validate: bool = False,
    results: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> RunIndex:
    """Write `index.json` and return what is in it.

    A damaged run is indexed as far as it can be read; what cannot is among the failed checks.

    Args:
        run_dir: The run folder.
        validate: Check the run from end to end first.
        results: Where the results of analyses lie, where not in the run (`--out`).
        progress: Told how far the validation is.

    Raises:
        RunError: There is no complete run.
        DamagedRunError: `meta.json` is not readable; or, without `validate`, anything else is not.
    """
    checks = validate_run(run_dir, progress, results=results) if validate else []
    try:
        store = OpenRun(run_dir, lenient=validate)
        index = _build(store, checks, validate=validate)
    except DamagedRunError:
        if not failures(checks):
            raise
        return _unreadable(Path(run_dir), checks)
    return _written(index, store)


def _written(index: RunIndex, store: OpenRun) -> RunIndex:
    """Write the index; where it cannot be, its checks are worth having all the same."""
    if not os.access(store.run_dir, os.W_OK):
        return replace(index, not_written="the folder is read-only", read_only=True)
    try:
        with FolderLock(store.run_dir):
            store.still.check()
            write_sealed(index.path, _as_json(index))
    except RunError as error:
        return replace(index, not_written=str(error).removesuffix("."))
    except OSError as error:
        return replace(index, not_written=error.strerror or str(error), read_only=error.errno in _READ_ONLY)
    return index


def _build(store: OpenRun, checks: Sequence[CheckResult], *, validate: bool) -> RunIndex:
    arrays, about = [], store.about
    for name in store.stored():
        try:
            arrays.append(_array(store, name))
        except DamagedRunError:
            # Among the failed checks already; without validation the caller has to know.
            if not validate:
                raise
    columns = _columns(store, validate=validate)
    return RunIndex(
        run_id=about.run_id or store.run_dir.name,
        model=about.model,
        dataset=about.data,
        n_examples=arrays[0].shape[0] if arrays else about.n_examples or 0,
        bytes_on_disk=_bytes(store.run_dir),
        arrays=tuple(arrays),
        columns=columns,
        checks=tuple(checks),
        validated=datetime.now(UTC).isoformat(timespec="seconds") if validate else None,
        path=store.run_dir / INDEX_FILE,
        uncertified=doubts(about),
    )


def _columns(store: OpenRun, *, validate: bool) -> tuple[str, ...]:
    try:
        return store.columns
    except DamagedRunError:
        if not validate:
            raise
        return ()


def _array(store: OpenRun, name: str) -> ArrayIndex:
    array = store.array(name)
    files = [p for p in plain_files(array.folder) if not _is_metadata(p)]
    return ArrayIndex(
        name=name,
        path=array.spec.path,
        shape=array.shape,
        dtype=array.dtype.name,
        dims=array.spec.axes,
        files=len(files),
        bytes_on_disk=sum(p.stat().st_size for p in files),
        nominal_bytes=int(np.prod(array.shape, dtype=np.int64)) * array.dtype.itemsize,
    )


def _is_metadata(path: Path) -> bool:
    return path.name in {"zarr.json", ".zarray", ".zattrs", ".zgroup", ".zmetadata"}


def _bytes(run: Path) -> int:
    sizes = {}
    for path in plain_files(run):
        if path.name != INDEX_FILE:
            status = path.stat()
            sizes[status.st_dev, status.st_ino] = status.st_size
    return sum(sizes.values())


def _unreadable(run: Path, checks: Sequence[CheckResult]) -> RunIndex:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return RunIndex(run.name, "", "", 0, 0, (), (), tuple(checks), now, run / INDEX_FILE)


def _as_json(index: RunIndex) -> dict[str, Any]:
    """Return the index as JSON; figures that JSON has no word for (infinity) become strings."""
    body = asdict(index)
    del body["path"], body["checks"], body["validated"], body["not_written"], body["read_only"]
    summary = None
    if index.validated is not None:
        failed = failures(list(index.checks))
        summary = {
            "time": index.validated,
            "ok": not failed,
            "checks": len(index.checks),
            "failed": [{"name": c.name, "array": c.array, "where": c.where, "detail": c.detail} for c in failed],
        }
    return {"format_version": FORMAT_VERSION, **body, "validation": summary}
