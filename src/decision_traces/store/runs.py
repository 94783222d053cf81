"""Finding run folders: by path, and all of a directory."""

import os
from dataclasses import dataclass
from datetime import UTC, datetime
from os import PathLike
from pathlib import Path
from typing import Any, Final

from decision_traces.errors import DamagedRunError
from decision_traces.schema import META_FILE
from decision_traces.store.folder import read_meta

PARTIAL_SUFFIX: Final = ".partial"


@dataclass(frozen=True, slots=True)
class RunSummary:
    """What `ls` says about one run folder.

    Attributes:
        path: The folder.
        run_id: From the meta; from the folder's name where there is no meta.
        state: "complete"; "uncertified": complete, but its certificate failed; "partial": interrupted, `--resume`
            continues it; or "damaged": unreadable meta.
        model: From the meta, as are the following; empty where unknown.
        dataset: Data set and split, `wikitext2/validation`.
        objective: next_token or the like.
        n_examples: Number of examples, or None.
        capture: The `--capture` words.
        modified: When the run was made, seconds since 1970: the meta's time, else that of the file.
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

    @property
    def complete(self) -> bool:
        """Whether the run can be opened."""
        return self.state in {"complete", "uncertified"}


def portable_path(path: str | PathLike[str]) -> Path:
    r"""Return a path as given, or with its backslashes as slashes: the usage document has `traces\RUN`.

    Args:
        path: A path. The replacement is made only where nothing exists under the literal name.
    """
    given = Path(path)
    if os.sep == "/" and "\\" in str(path) and not given.exists():
        return Path(str(path).replace("\\", "/"))
    return given


def list_runs(root: str | PathLike[str]) -> list[RunSummary]:
    """Return the run folders directly under `root`, newest first; reads nothing but their meta."""
    folder = portable_path(root)
    if not folder.is_dir():
        return []
    runs = (_summary(path) for path in folder.iterdir() if path.is_dir())
    return sorted((run for run in runs if run is not None), key=lambda run: (-run.modified, run.run_id))


def _summary(path: Path) -> RunSummary | None:
    if path.name.startswith(".") and path.name.endswith(PARTIAL_SUFFIX):
        run_id = path.name.removeprefix(".").removesuffix(PARTIAL_SUFFIX)
        return RunSummary(path, run_id, "partial", "", "", "", None, (), path.stat().st_mtime)
    if not (path / META_FILE).is_file():
        return None
    modified = (path / META_FILE).stat().st_mtime
    try:
        meta = read_meta(path)
    except DamagedRunError:
        return RunSummary(path, path.name, "damaged", "", "", "", None, (), modified)
    count = meta.get("n_examples")
    return RunSummary(
        path=path,
        run_id=str(meta.get("run_id") or path.name),
        state="uncertified" if meta.get("uncertified") else "complete",
        model=str(meta.get("model") or ""),
        dataset="/".join(str(meta[key]) for key in ("dataset", "split") if meta.get(key)),
        objective=str(meta.get("objective") or ""),
        n_examples=count if isinstance(count, int) else None,
        capture=tuple(str(word) for word in meta.get("capture") or ()),
        modified=_when(meta.get("time"), modified),
    )


def _when(time: Any, otherwise: float) -> float:
    """Return the meta's time in seconds since 1970; older tools wrote it in other ways, or not at all."""
    if isinstance(time, int | float):
        return float(time)
    try:
        moment = datetime.fromisoformat(str(time))
    except ValueError:
        return otherwise
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
