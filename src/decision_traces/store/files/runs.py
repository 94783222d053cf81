"""Finding run folders: by path, and all of a directory."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Final

from decision_traces.errors import RunError
from decision_traces.folders.exchange import name_of_leftover
from decision_traces.format.arrays import META_FILE, TOKENS_FILE
from decision_traces.paths import portable_path
from decision_traces.store.files.folder import read_meta
from decision_traces.store.files.proof import found_run
from decision_traces.store.reading.about import read_about

PARTIAL_SUFFIX: Final = ".partial"
_FAR: Final = 1 << 36
"""Seconds since 1970 that no run was made at: the year 4147."""


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What `ls` says about one run folder.

    Attributes:
        path: The folder.
        run_id: From the meta; from the folder's name where there is no meta.
        state: "complete"; "uncertified": complete, but its certificate failed; "random head": complete, but
            its predictions come from a head that the checkpoint did not have; "partial": interrupted, `--resume`
            continues it; or "damaged": it cannot be opened.
        model: From the meta, as are the following; empty where unknown.
        dataset: Data set and split, `wikitext2/validation`.
        objective: next_token or the like.
        n_examples: Number of examples, or None.
        capture: The `--capture` words.
        modified: When the run was made, seconds since 1970: the meta's time, else that of the file.
        why: Of a damaged run, why it cannot be opened.
    """

    path: Path
    run_id: str
    state: str
    model: str
    dataset: str
    objective: str
    n_examples: int | None
    capture: tuple[str, ...]
    modified: float
    why: str = ""

    @property
    def complete(self) -> bool:
        """Whether the run can be opened."""
        return self.state in {"complete", "uncertified", "random head"}


def list_runs(root: str | PathLike[str]) -> list[RunSummary]:
    """Return the run folders directly under `root`, newest first; reads nothing but their meta."""
    folder = portable_path(root)
    if not folder.is_dir():
        return []
    for name in {target for path in folder.iterdir() if (target := name_of_leftover(path)) is not None}:
        found_run(folder / name)
    runs = (_summary(path) for path in folder.iterdir() if name_of_leftover(path) is None)
    return sorted((run for run in runs if run is not None), key=lambda run: (-run.modified, run.run_id))


def _summary(path: Path) -> RunSummary | None:
    """Return what there is to say of a folder, None where it is no run."""
    try:
        return _read(path) if path.is_dir() else None
    except OSError as error:
        return _damaged(path, 0.0, error.strerror or str(error))


def _damaged(path: Path, modified: float, why: str) -> RunSummary:
    return RunSummary(path, path.name, "damaged", "", "", "", None, (), modified, why)


def _read(path: Path) -> RunSummary | None:
    if path.name.startswith(".") and path.name.endswith(PARTIAL_SUFFIX):
        run_id = path.name.removeprefix(".").removesuffix(PARTIAL_SUFFIX)
        return RunSummary(path, run_id, "partial", "", "", "", None, (), path.stat().st_mtime)
    if not os.path.lexists(path / META_FILE):
        return None
    modified = (path / META_FILE).lstat().st_mtime
    try:
        about = read_about(path, read_meta(path))
    except RunError as error:
        return _damaged(path, modified, str(error))
    if not about.ours and not _holds_data(path):  # a meta.json of something else
        return None
    return RunSummary(
        path=path,
        run_id=about.run_id or path.name,
        state="uncertified" if about.uncertified else "random head" if about.random_head else "complete",
        model=about.model,
        dataset=about.data,
        objective=about.objective,
        n_examples=about.n_examples,
        capture=about.capture,
        modified=_when(about.time, modified),
    )


def _holds_data(path: Path) -> bool:
    return os.path.lexists(path / TOKENS_FILE) or any(child.suffix == ".zarr" for child in path.iterdir())


def _when(time: str | float | None, otherwise: float) -> float:
    """Return the meta's time in seconds since 1970; older tools wrote it in other ways, or not at all."""
    if isinstance(time, int | float):
        return float(time) if 0 <= time < _FAR else otherwise
    try:
        moment = datetime.fromisoformat(str(time))
    except ValueError:
        return otherwise
    seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    return seconds if 0 <= seconds < _FAR else otherwise
