"""What the figures were measured on: processor, cores, threads, package versions, date and command."""

import os
import platform
import resource
import sys
from collections.abc import Iterable
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

_PACKAGES: Final = ("decision-traces", "torch", "transformers", "zarr", "numcodecs", "numpy")


def about_machine(packages: Iterable[str] = ()) -> dict[str, Any]:
    """Return where and with what a benchmark runs, as JSON can hold it.

    Args:
        packages: Distributions whose versions are told besides our own; those that are not installed are None.
    """
    import torch

    return {
        "date": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version_of(name) for name in dict.fromkeys([*_PACKAGES, *packages])},
    }


def version_of(package: str) -> str | None:
    """Return the version of a distribution; None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def cpu_model() -> str:
    """Return what the processor calls itself."""
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text(encoding="utf-8").splitlines() if listed.is_file() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


def peak_rss() -> int:
    """Return the most memory that this process has held so far, in bytes.

    Linux carries `ru_maxrss` over from the process that started this one; VmHWM is of this program alone.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def on_disk(folder: Path) -> tuple[int, int]:
    """Return the bytes that a folder takes on disk and its number of files, each file counted once as `du` does."""
    if not folder.exists():
        return 0, 0
    entries = [folder, *folder.rglob("*")]
    found = {(s.st_dev, s.st_ino): (s.st_blocks * 512, path.is_file()) for path in entries for s in [path.lstat()]}
    return sum(size for size, _ in found.values()), sum(is_file for _, is_file in found.values())
