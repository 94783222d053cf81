"""One run of one contender, in this process or in one of its own, with everything that is measured of it."""

import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.contenders import CONTENDERS
from benchmarks.contenders.protocol import UnavailableError
from benchmarks.contenders.task import Task
from benchmarks.machine import on_disk, peak_rss

_ROOT: Final = Path(__file__).parents[1]
_UNAVAILABLE: Final = "unavailable"


@dataclass(frozen=True, slots=True)
class Measured:
    """What one run cost.

    Attributes:
        seconds: From the first forward pass to the last file written.
        wall_s: The whole call, with loading, tokenising and, for ours, the proof.
        disk_bytes, n_files: What it left on disk.
        peak_bytes: The most memory its process held; None where it shared a process.
        details: What the contender says besides.
    """

    seconds: float
    wall_s: float
    disk_bytes: int
    n_files: int
    peak_bytes: int | None = None
    details: Mapping[str, float] = field(default_factory=dict)


def measure(name: str, task: Task, folder: Path, *, apart: bool = False) -> Measured:
    """Let a contender do a task, measure it, and remove what it wrote.

    Args:
        name: The contender, as the command line calls it.
        task: What to do.
        folder: Where it writes; must not exist.
        apart: Run it in a process of its own even if it need not, so that its memory can be told.

    Raises:
        UnavailableError: It cannot do this.
    """
    os.sync()  # nobody pays for what another left in the page cache
    try:
        if apart or CONTENDERS[name].about.isolated:
            return _measure_apart(name, task, folder)
        return measure_here(name, task, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        gc.collect()


def measure_here(name: str, task: Task, folder: Path) -> Measured:
    """Let a contender do a task in this process, and measure it."""
    start = time.perf_counter()
    ran = CONTENDERS[name].run(task, folder)
    wall = time.perf_counter() - start
    return Measured(ran.seconds, wall, *on_disk(folder), details=dict(ran.details))


def _measure_apart(name: str, task: Task, folder: Path) -> Measured:
    told = folder.with_suffix(".json")
    command = [sys.executable, "-m", "benchmarks.measure", name, json.dumps(task.to_json()), str(folder), str(told)]
    paths = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
        raise UnavailableError(f"ended with status {done.returncode}: {' '.join(last)[:300]}")
    found = json.loads(told.read_text(encoding="utf-8"))
    told.unlink()
    if _UNAVAILABLE in found:
        raise UnavailableError(found[_UNAVAILABLE])
    return Measured(**found)


def main(name: str, task: str, folder: str, told: str) -> None:
    """Measure in this process, which was started for it, and write down what was found."""
    try:
        found = measure_here(name, Task.from_json(json.loads(task)), Path(folder))
        result = {
            "seconds": found.seconds,
            "wall_s": found.wall_s,
            "disk_bytes": found.disk_bytes,
            "n_files": found.n_files,
            "peak_bytes": peak_rss(),
            "details": found.details,
        }
    except UnavailableError as reason:
        result = {_UNAVAILABLE: str(reason)}
    Path(told).write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
