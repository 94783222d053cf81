"""The page and all it shows as plain files, at the same addresses, for any file server."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from decision_traces.errors import RunError, UsageError
from decision_traces.page import resources
from decision_traces.page.app import STATIC
from decision_traces.page.runs import opened

_MARK: Final = "index.html"


@dataclass(frozen=True, slots=True)
class Written:
    """What a bundle came to."""

    files: int
    size: int


def write_bundle(
    run_dirs: Sequence[Path],
    folder: Path,
    *,
    limit: int | None = None,
    drawn_only: bool = False,
    overwrite: bool = False,
) -> Written:
    """Write a static site that shows some runs.

    Attention takes most of it: a head of a text of 256 tokens is 64 kB as it is drawn, and 128 kB as numbers. Numbers
    as JSON, which a server has besides, are left out.

    Args:
        run_dirs: The runs; the first is shown first.
        folder: Where.
        limit: The first so many examples of each.
        drawn_only: Leave attention out as numbers.
        overwrite: Replace the folder if it holds a bundle already.

    Raises:
        RunError: One of the folders is no complete run, or the bundle cannot be written.
        UsageError: The folder is there and is not to be replaced, or holds something else.
    """
    folder = folder.resolve()
    _make_room(folder, [Path(run).resolve() for run in run_dirs], overwrite=overwrite)
    if limit is not None and limit < 1:
        raise UsageError(f"--limit {limit}: needs at least 1.")
    runs = opened(run_dirs)
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(STATIC, partial)
        files = [path for path in partial.rglob("*") if path.is_file()]
        written = Written(len(files), sum(path.stat().st_size for path in files))
        written = _put(partial / "api" / "runs.json", resources.runs(runs, bundle=True, exact=not drawn_only), written)
        for run in runs:
            n = run.store.n if limit is None else min(limit, run.store.n)
            for path, make in resources.bundle_paths(run, n, exact=not drawn_only):
                written = _put(partial / "api" / run.key / path, make(), written)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    except OSError as error:
        raise RunError(f"{folder} cannot be written ({error.strerror or error}).") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return written


def _put(path: Path, found: resources.Resource, written: Written) -> Written:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(found.body)
    return Written(written.files + 1, written.size + len(found.body))


def _make_room(folder: Path, runs: Sequence[Path], *, overwrite: bool) -> None:
    """Refuse a folder that must not be replaced."""
    if any(run.is_relative_to(folder.resolve()) for run in runs):
        raise UsageError(f"--bundle {folder}: the run itself lies there. Name another folder.")
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / _MARK).is_file() or not (folder / "api" / "runs.json").is_file():
        raise UsageError(f"--bundle {folder}: this is there and is no bundle. Name another folder.")
    if not overwrite:
        raise UsageError(f"--bundle {folder}: there is a bundle already. --overwrite replaces it.")
