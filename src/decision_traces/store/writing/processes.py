"""Helper processes that write shard files, so that writing does not hold up the Python that drives an accelerator.

A model's forward pass on a GPU is thousands of short Python steps, and every thread that runs Python beside it makes
each of them wait. Processes do not. The numbers lie in memory that both see (`shared_memory`); one thread gives the
orders.
"""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import cycle
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any, Final

from decision_traces.errors import RunError
from decision_traces.pieces import Pieces
from decision_traces.store.files.folder import FileRecord
from decision_traces.store.shards.shape import ShardShape
from decision_traces.store.writing.shared_memory import Pin, SharedMemory

_START: Final = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from decision_traces.store.writing.shard_process import main; main(int(sys.argv[1]))"
)
_PATIENCE: Final = 10.0
MOST_PROCESSES: Final = 8
"""How many of them may write at the same time."""
_MOST_OWED: Final = 64
"""Answers that may wait to be heard: a socket holds some hundreds, and who cannot answer does not listen either."""


class ShardProcess:
    """One helper process. It is in no terminal's group, so that Ctrl-C reaches only who started it."""

    def __init__(self, memory: SharedMemory) -> None:
        """Start it; it is ready some tenths of a second later."""
        self._memory = memory
        ours, theirs = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START, str(theirs.fileno()), *sys.path],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        theirs.close()
        self._connection: Connection[Any, Any] = Connection(ours.detach())
        self._known: set[int] = set()
        self._owed = 0  # answers that were not heard yet
        self._heard: tuple[Any, BaseException | None] = (None, None)

    def order(self, what: str, *arguments: object) -> None:
        """Let it do something, without waiting for it.

        Raises:
            RunError: It is gone.
        """
        if self._owed >= _MOST_OWED:
            self._hear()
        with _gone():
            self._connection.send((what, arguments))
        self._owed += 1

    def finish(self) -> Any:
        """Wait until it has done everything; return what it answered to the last order.

        Raises:
            OSError, MemoryError, ValueError: What it raised first.
            RunError: It is gone.
        """
        while self._owed:
            self._hear()
        (answer, error), self._heard = self._heard, (None, None)
        if error is not None:
            raise error
        return answer

    def _hear(self) -> None:
        """Take its next answer; of errors the first is kept."""
        with _gone():
            answer, error = self._connection.recv()
        self._owed -= 1
        self._heard = answer, self._heard[1] or error

    def put(self, path: Path, pieces: Pieces) -> None:
        """Let it append the chunks of some rows of a tensor, which lies in shared memory."""
        place = self._memory.place(pieces.values)
        if place.room not in self._known:
            room = self._memory.rooms[place.room]
            self.order("memory", place.room, room.size)
            with _gone():
                send_handle(self._connection, room.file, self._process.pid)
            self._known.add(place.room)
        self.order("put", path, place, pieces.rows, pieces.slots, pieces.widths)

    def dismiss(self) -> None:
        """Let it end, without waiting for that: `close` does."""
        self._connection.close()

    def close(self) -> None:
        """Let it end."""
        self.dismiss()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class RemoteShard:
    """A shard file that a helper process writes; see `shards.block.ShardFile`."""

    def __init__(self, path: Path, shape: ShardShape, rows: int, process: ShardProcess) -> None:
        self._path, self._about = path, (shape, rows)
        self._process, self._begun = process, False

    def put(self, pieces: Pieces) -> None:
        """Let the chunks of some rows, which lie in shared memory, be appended."""
        self._begin()
        self._process.put(self._path, pieces)

    def close(self) -> FileRecord:
        """Write the index; return size and CRC-32C of the file."""
        self._begin()
        self._process.order("close", self._path)
        size, checksum = self._process.finish()
        return size, checksum

    def _begin(self) -> None:
        if not self._begun:
            self._process.order("begin", self._path, *self._about)
            self._begun = True


class WriterProcesses:
    """Helper processes and the memory they share: all that a run needs of them."""

    def __init__(self, n: int | None = None, pin: Pin | None = None, unpin: Pin | None = None) -> None:
        """Start them.

        Args:
            n: How many; by default half the cores, and no more than are of use.
            pin: Called with every room of memory when it is made.
            unpin: Called with it before it is given back.
        """
        self.memory = SharedMemory(pin, unpin)
        n = max(1, min(MOST_PROCESSES, (os.cpu_count() or 1) // 2)) if n is None else n
        self.processes = [ShardProcess(self.memory) for _ in range(n)]
        self._next = cycle(self.processes)

    @staticmethod
    def available() -> bool:
        """Return whether this system can have them."""
        return SharedMemory.available()

    def shard(self, path: Path, shape: ShardShape, rows: int) -> RemoteShard:
        """Let the next of them write a file, which is there and empty."""
        return RemoteShard(path, shape, rows, next(self._next))

    def finish(self) -> None:
        """Wait until everything is written that was put.

        Raises:
            OSError, MemoryError, ValueError: What one of them raised first.
            RunError: One is gone.
        """
        for process in self.processes:
            process.finish()

    def close(self) -> None:
        """Let them end; `memory.close` gives the memory back."""
        for process in self.processes:
            process.dismiss()
        for process in self.processes:
            process.close()


@contextmanager
def _gone() -> Iterator[None]:
    """Say in a sentence that a helper is no longer there."""
    try:
        yield
    except (EOFError, ConnectionResetError, BrokenPipeError) as error:
        raise RunError(
            "A process that writes for this one has ended (out of memory, or stopped by somebody). Finished blocks "
            "are kept; run the same command with --resume."
        ) from error
