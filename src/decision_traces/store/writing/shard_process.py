"""The helper process that writes shard files: it is told what lies where in shared memory, and answers when it is done.

Started by `processes.ShardProcess`. It ends when the other end of its socket is closed, however that comes about.
"""

import mmap
import os
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import Any

from decision_traces.pieces import Pieces
from decision_traces.store.files.folder import FileRecord
from decision_traces.store.shards.appender import Appender
from decision_traces.store.shards.block import ShardFile
from decision_traces.store.shards.frames import FrameMaker
from decision_traces.store.shards.shape import ShardShape
from decision_traces.store.writing.processes import MOST_PROCESSES
from decision_traces.store.writing.shared_memory import Place


class _Desk:
    """The files in work and the memory that is known; each method is an order of the other side."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._memory: dict[int, mmap.mmap] = {}
        self._frames: dict[ShardShape, FrameMaker] = {}
        self._files: dict[Path, ShardFile] = {}
        self._appender = Appender(MOST_PROCESSES)
        self._closed: SimpleQueue[Path] = SimpleQueue()
        Thread(target=_put_on_disk, args=(self._closed,), daemon=True).start()

    def memory(self, room: int, size: int) -> None:
        """Take a room of shared memory."""
        file = recv_handle(self._connection)
        try:
            self._memory[room] = mmap.mmap(file, size)
        finally:
            os.close(file)

    def begin(self, path: Path, shape: ShardShape, rows: int) -> None:
        """Begin a shard file."""
        if shape not in self._frames:
            self._frames[shape] = shape.frame_maker()
        self._files[path] = ShardFile(self._appender.open(path), shape, rows, self._frames[shape])

    def put(self, path: Path, place: Place, *kept: Any) -> None:
        """Append the chunks of some rows: a tensor in shared memory, and the rest of `Pieces`."""
        self._files[path].put(Pieces(place.array(self._memory[place.room]), *kept))

    def close(self, path: Path) -> FileRecord:
        """Close a shard file and forget it."""
        record = self._files.pop(path).close()
        self._closed.put(path)
        return record


def _put_on_disk(files: SimpleQueue[Path]) -> None:
    """See files onto the disk as they come, so that it has work from the first block on.

    A system with much memory would else let gigabytes pile up in it first, and leave the disk idle meanwhile.
    """
    while True:
        with suppress(OSError), files.get().open("rb+", buffering=0) as file:  # moved, or removed
            os.fdatasync(file.fileno())


def main(socket: int) -> None:
    """Do what is ordered until nobody is left to order anything.

    Args:
        socket: File descriptor of this process' end.
    """
    connection: Connection[Any, Any] = Connection(socket)
    desk = _Desk(connection)
    while True:
        try:
            order, arguments = connection.recv()
        except (EOFError, ConnectionResetError):
            return
        answer: tuple[Any, BaseException | None]
        try:
            do: Callable[..., Any] = getattr(desk, order)
            answer = do(*arguments), None
        except (OSError, MemoryError, ValueError) as error:  # raised again on the other side
            answer = None, error
        try:
            connection.send(answer)
        except BrokenPipeError:
            return
