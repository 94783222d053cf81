"""What writing costs the Python that drives an accelerator: in a thread beside it, and in a helper process.

    python -m benchmarks.beside [--launches 400000]

A GPU's forward pass is, for the processor, a series of short calls; many tiny torch operations stand for it here.
Beside them the same tensor is written over and over, by `ShardFile` in a thread or by a helper process that a thread
orders.
"""

import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from decision_traces.format.arrays import Dims, arrays_for
from decision_traces.pieces import Pieces
from decision_traces.store.shards.appender import Appender
from decision_traces.store.shards.block import ShardFile
from decision_traces.store.writing.layout import RunLayout
from decision_traces.store.writing.processes import RemoteShard, ShardProcess
from decision_traces.store.writing.shared_memory import SharedMemory

_ROWS: Final = 64
_TOKENS: Final = 85
_WIDTH: Final = 2048
_BYTES: Final = _ROWS * _TOKENS * _WIDTH * 2
_DIMS: Final = Dims(_ROWS, 256, 16, 32, 8, 64, _WIDTH)
_LAYOUT: Final = RunLayout(tuple(arrays_for("dec", ("hidden",))), {"dec": _DIMS}, "float16", _ROWS)
_AT_ONCE: Final = 8
_LARGEST: Final = 1 << 30


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How long to look."""

    launches: int = 400_000
    """Tiny operations."""


def launched(n: int) -> float:
    """Return the seconds of so many tiny operations."""
    x = torch.zeros(4)
    start = time.perf_counter()
    for _ in range(n):
        torch.add(x, x)
    return time.perf_counter() - start


def beside(write: Callable[[], None], path: Path, n: int) -> tuple[float, float]:
    """Return the seconds of the operations while another thread writes, and the bytes a second that it wrote."""
    stop, written = threading.Event(), [0]

    def keep_writing() -> None:
        while not stop.is_set():
            write()
            written[0] += _AT_ONCE * _BYTES
            if path.stat().st_size > _LARGEST:
                path.write_bytes(b"")

    thread = threading.Thread(target=keep_writing)
    thread.start()
    before, start = written[0], time.perf_counter()
    seconds = launched(n)
    rate = (written[0] - before) / (time.perf_counter() - start)
    stop.set()
    thread.join()
    return seconds, rate


def measure(launches: int, folder: Path) -> Table:
    """Measure both ways."""
    table = Table(title=f"{launches:,} tiny operations")
    for heading in ("beside them writes", "times as long", "GB/s written"):
        table.add_column(heading, justify="right")
    spec, shared = _LAYOUT.specs[0], SharedMemory()
    values = shared.room(_BYTES).view(np.float16).reshape(_ROWS, _TOKENS, _WIDTH)
    pieces = Pieces(values, tuple(range(_ROWS)), (_TOKENS,) * _ROWS)
    paths = {name: folder / name for name in ("a thread", "a process")}
    process = ShardProcess(shared)
    shape = _LAYOUT.shard_shape(spec)
    for path in paths.values():
        path.touch()
    here = ShardFile(Appender().open(paths["a thread"]), shape, _ROWS, shape.frame_maker())
    there = RemoteShard(paths["a process"], shape, _ROWS, process)

    def by_thread() -> None:
        for _ in range(_AT_ONCE):
            here.put(pieces)

    def by_process() -> None:
        for _ in range(_AT_ONCE):
            there.put(pieces)
        process.finish()

    by_process()  # it has started once it has answered
    alone = min(launched(launches) for _ in range(3))
    for (name, path), write in zip(paths.items(), (by_thread, by_process), strict=True):
        seconds, rate = beside(write, path, launches)
        table.add_row(name, f"{seconds / alone:.2f}", f"{rate / 1e9:.2f}")
    process.close()
    shared.close()
    return table


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    settings = tyro.cli(Settings, args=argv, use_underscores=True)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        table = measure(settings.launches, Path(scratch))
    Console(highlight=False, width=None if sys.stdout.isatty() else 80).print(table)


if __name__ == "__main__":
    main()
