"""A block of a run in the making: one shard file for every distinct tensor, written here or by helper processes."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from decision_traces.folders.disk import disk_errors
from decision_traces.format.arrays import Site
from decision_traces.pieces import Pieces
from decision_traces.store.files.folder import FileRecord
from decision_traces.store.shards.block import ShardFile
from decision_traces.store.writing.processes import RemoteShard, WriterProcesses

if TYPE_CHECKING:
    from decision_traces.store.writing.writer import RunWriter


class OpenBlock:
    """A block in the making: rows come in any order, each distinct tensor is written once."""

    def __init__(self, writer: "RunWriter", block: int, helpers: WriterProcesses | None) -> None:
        self._writer, self._block, self._helpers = writer, block, helpers
        rows = len(writer.layout.rows(block))
        self._places = writer.layout.places()
        self._paths: dict[Site, Path] = {}
        self._shards: dict[Site, ShardFile | RemoteShard] = {}
        for site, ((spec, index), *_) in self._places.items():
            path = self._paths[site] = _made_empty(writer.shard_path(spec, block, index))
            shape = writer.layout.shard_shape(spec)
            if helpers is None:
                self._shards[site] = ShardFile(writer.appender.open(path), shape, rows, writer.frames_of(spec))
            else:
                self._shards[site] = helpers.shard(path, shape, rows)

    def put(self, site: Site, pieces: Pieces) -> None:
        """Append what was captured of some rows of one tensor, or let a helper do it; see `written`.

        Args:
            site: Site and layer (the model's own number).
            pieces: What is kept of each row.

        Raises:
            DiskSpaceError, RunError: The disk is full, or the folder cannot be written.
        """
        with disk_errors(self._writer.folder):
            self._shards[site].put(pieces)
        self._writer.bytes_written += pieces.nbytes

    def written(self) -> None:
        """Wait until everything that was put is written, so that its memory may be used again.

        Raises:
            DiskSpaceError, RunError: See `put`.
        """
        with disk_errors(self._writer.folder):
            if self._helpers is not None:
                self._helpers.finish()

    def close(self, tables: Mapping[str, pa.Table], facts: Mapping[str, Any]) -> int:
        """Finish the block's files and enter it in the ledger.

        Args:
            tables: File name to the block's rows of that table.
            facts: JSON values to keep with the block (largest values, ...); read back by `facts`.

        Returns:
            Bytes this block takes on disk.

        Raises:
            DiskSpaceError, RunError: The disk is full, or the folder cannot be written.
        """
        writer = self._writer
        files: dict[str, FileRecord] = {}
        size = 0
        with disk_errors(writer.folder):
            for site, places in self._places.items():
                record = self._shards[site].close()
                paths = [
                    self._paths[site],
                    *(writer.shard_path(spec, self._block, index) for spec, index in places[1:]),
                ]
                for other in paths[1:]:
                    writer.duplicate(paths[0], other)
                files |= {path.relative_to(writer.folder).as_posix(): record for path in paths}
                size += record[0] * (1 if writer.links else len(paths))
            writer.enter({"block": self._block, "files": files, "bytes": size, "facts": dict(facts)}, tables)
        return size


def _made_empty(path: Path) -> Path:
    """Make a file, empty: what a crash left half-written goes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.touch()
    return path
