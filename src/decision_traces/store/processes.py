"""Helper processes that write shard files, so that writing does not hold up the Python that drives an accelerator.

A model's forward pass on a GPU is thousands of short Python steps, and every thread that runs Python beside it makes
each of them wait. Processes do not; the numbers lie in memory that both see (`shared_memory`).
"""

import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle
from pathlib import Path
from typing import Any, Final

import numpy as np

from decision_traces.errors import RunError
from decision_traces.schema import ArraySpec
from decision_traces.store.folder import FileRecord
from decision_traces.store.layout import RunLayout
from decision_traces.store.shared_memory import SharedMemory

_START: Final = (
    "import sys; sys.path[:] = sys.argv[2:]; "
    "from decision_traces.store.shard_process import main; main(int(sys.argv[1]))"
)
_PATIENCE: Final = 10.0


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
        self._lock = threading.Lock()

    def order(self, what: str, *arguments: object) -> Any:
        """Let it do something, wait, and return what it answers; one order at a time.

        Raises:
            OSError: What it raised.
            RunError: It is gone.
        """
        with self._lock:
            return self._order(what, *arguments)

    def put(self, path: Path, pieces: Mapping[int, np.ndarray]) -> None:
        """Let it append the chunks of some rows, which lie in shared memory."""
        places = {row: self._memory.place(piece) for row, piece in pieces.items()}
        with self._lock:
            for number in {place.room for place in places.values()} - self._known:
                self._show(number)
            self._order("put", path, places)

    def _show(self, number: int) -> None:
        """Let it have a room of the shared memory."""
        room = self._memory.rooms[number]
        self._connection.send(("memory", (number, room.size)))
        send_handle(self._connection, room.file, self._process.pid)
        self._answer()
        self._known.add(number)

    def _order(self, what: str, *arguments: object) -> Any:
        try:
            self._connection.send((what, arguments))
            return self._answer()
        except (EOFError, ConnectionResetError, BrokenPipeError) as error:
            raise RunError(
                "A process that writes for this one has ended (out of memory, or stopped by somebody). Finished blocks "
                "are kept; run the same command with --resume."
            ) from error

    def _answer(self) -> Any:
        answer, error = self._connection.recv()
        if error is not None:
            raise error
        return answer

    def close(self) -> None:
        """Let it end."""
        self._connection.close()
        try:
            self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class RemoteShard:
    """A shard file that a helper process writes; see `shards.ShardFile`."""

    def __init__(self, path: Path, spec: ArraySpec, layout: RunLayout, rows: int, process: ShardProcess) -> None:
        self.path = path
        self._about = (spec, layout, rows)
        self._process = process

    def begin(self) -> None:
        """Make the file, empty."""
        self._process.order("begin", self.path, *self._about)

    def put(self, pieces: Mapping[int, np.ndarray]) -> None:
        """Append the chunks of some rows, which lie in shared memory."""
        self._process.put(self.path, pieces)

    def close(self) -> FileRecord:
        """Write the index; return size and CRC-32C of the file."""
        size, checksum = self._process.order("close", self.path)
        return size, checksum


def start_processes(n: int, memory: SharedMemory) -> Sequence[ShardProcess]:
    """Start so many helpers, which can read this memory."""
    return [ShardProcess(memory) for _ in range(n)]
