"""Writing a run folder: blocks go to a hidden partial folder, which gets its name when `meta.json` is written.

Every finished block is a line in an append-only, fsynced ledger. Whatever happens before the last rename,
nothing stands under the run's own name, and a run that stood there before is untouched.
"""

import errno
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from decision_traces.errors import RunError
from decision_traces.folders.disk import disk_errors
from decision_traces.folders.place import UNTOUCHED, FolderPlace
from decision_traces.folders.removal import remove
from decision_traces.format.arrays import ArraySpec, Site
from decision_traces.store.files.folder import (
    canonical_json,
    checksum,
    run_files,
    write_manifest,
    write_meta,
)
from decision_traces.store.files.table import write_table
from decision_traces.store.shards.appender import Appender
from decision_traces.store.shards.block import LEVEL
from decision_traces.store.shards.frames import FrameMaker
from decision_traces.store.writing.consolidated import consolidate
from decision_traces.store.writing.layout import RunLayout
from decision_traces.store.writing.ledger import LEDGER_FILE, Ledger, begin_ledger, mend_ledger, read_ledger
from decision_traces.store.writing.open_block import OpenBlock
from decision_traces.store.writing.owned import PARTS_DIR, PROBES, is_kept, is_part
from decision_traces.store.writing.processes import WriterProcesses

__all__ = ["RunLayout", "RunWriter", "Site"]


class RunWriter:
    """Builds one run folder. Create with `RunWriter.create` or `RunWriter.resume`."""

    def __init__(self, place: FolderPlace, layout: RunLayout) -> None:
        self.place, self.layout = place, layout
        self.run, self.folder = place.target, place.folder
        self.done: dict[int, dict[str, Any]] = {}
        self.bytes_written = 0
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._frames: dict[str, FrameMaker] = {}
        self.links = True
        self.appender = Appender()
        self._ledger = Ledger(self.folder / LEDGER_FILE)

    # -- beginning ------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, place: FolderPlace, layout: RunLayout, plan: Mapping[str, Any]) -> "RunWriter":
        """Begin a new run.

        Args:
            place: Its name, held until the run is finished.
            layout: What it will hold.
            plan: What a resumed run must agree with; written as the ledger's first line.

        Raises:
            RunExistsError: Something that is not ours is in the way.
            RunError: The folder cannot be written.
        """
        writer = cls(place, layout)
        writer._begin(plan)
        return writer

    @classmethod
    def resume(cls, place: FolderPlace, layout: RunLayout, plan: Mapping[str, Any]) -> "RunWriter":
        """Go on with an unfinished run.

        Raises:
            RunError: There is none, or it was begun with other settings; the message names them.
        """
        writer = cls(place, layout)
        ledger = writer.folder / LEDGER_FILE
        if not ledger.is_file():
            raise RunError(f"--resume: there is no unfinished run at {writer.folder}. Leave --resume out to begin one.")
        with disk_errors(writer.folder):
            writer._go_on(plan)
        return writer

    def _begin(self, plan: Mapping[str, Any]) -> None:
        """Make the folder, and in it everything but the blocks."""
        with disk_errors(self.run.parent, kept=UNTOUCHED):
            self.place.begin()
        try:
            with disk_errors(self.run.parent, kept=UNTOUCHED):
                begin_ledger(self.folder / LEDGER_FILE, plan)
                (self.folder / PARTS_DIR).mkdir(exist_ok=True)
                self._create_arrays(self.folder)
                self.links = self._can_link()
        except BaseException:  # Ctrl-C as well: there is nothing yet that could be gone on with
            self.discard()
            raise

    def _go_on(self, plan: Mapping[str, Any]) -> None:
        """Compare the plan with what was begun, and find out which blocks are whole."""
        ledger = self.folder / LEDGER_FILE
        begun, *blocks = read_ledger(ledger)
        differing = [k for k in plan if json.loads(canonical_json(plan[k])) != begun.get("plan", {}).get(k)]
        if differing:
            was = begun.get("plan", {})
            named = "; ".join(f"{k} was {was.get(k)!r}, is {plan[k]!r}" for k in differing)
            raise RunError(f"--resume: {self.folder} was begun with other settings: {named}.")
        if self.complete:
            return
        self.done = {record["block"]: record for record in blocks if self._intact(record)}
        if not self.done:
            self._begin(plan)
            return
        mend_ledger(ledger, [begun, *blocks])
        self.bytes_written = sum(record["bytes"] for record in self.done.values())
        with TemporaryDirectory() as anew:  # of what the arrays say of themselves, the ledger has no checksums
            self._create_arrays(Path(anew))
            shutil.copytree(anew, self.folder, dirs_exist_ok=True)
        for spec in self.layout.specs:
            self._arrays[spec.name] = zarr.open_array(self.folder / spec.path, mode="r+")
        self.links = self._can_link()

    def _create_arrays(self, folder: Path) -> None:
        groups = tuple(dict.fromkeys(spec.group for spec in self.layout.specs))
        for group in groups:
            zarr.create_group(folder / group)
        for spec in self.layout.specs:
            self._arrays[spec.name] = zarr.create_array(
                folder / spec.path,
                shape=self.layout.dims_of(spec).shape(spec),
                dtype=self.layout.dtype,
                chunks=self.layout.chunk(spec),
                shards=self.layout.shard(spec),
                compressors=[ZstdCodec(level=LEVEL), Crc32cCodec()],
                fill_value=0,
                dimension_names=spec.axes,
            )
        for path, numbers in self.layout.coordinates().items():
            zarr.create_array(
                folder / path,
                data=np.asarray(numbers, dtype=np.int32),
                chunks=(max(1, len(numbers)),),
                compressors=[Crc32cCodec()],
                fill_value=-1,
                dimension_names=(path.rsplit("/", 1)[1],),
            )
        for group in groups:
            consolidate(folder / group)

    def _can_link(self) -> bool:
        """Return whether the file system has hard links."""
        probe, link = (self.folder / name for name in PROBES)
        probe.write_bytes(b"")
        try:
            link.hardlink_to(probe)
        except OSError:
            return False
        finally:
            probe.unlink()
            link.unlink(missing_ok=True)
        return True

    # -- blocks ---------------------------------------------------------------------------------------------

    def open_block(self, block: int, helpers: WriterProcesses | None = None) -> OpenBlock:
        """Begin a block, or begin it anew after a crash: what it left half-written goes.

        Args:
            block: Its number.
            helpers: Processes that write its files; this one does where there are none.

        Raises:
            DiskSpaceError, RunError: The disk is full, or the folder cannot be written.
        """
        with disk_errors(self.folder):
            if not (self.folder / LEDGER_FILE).is_file():  # making folders anew would hide that earlier blocks are gone
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            return OpenBlock(self, block, helpers)

    def shard_path(self, spec: ArraySpec, block: int, index: int) -> Path:
        """Return the file of one block of an array at one index of its layer axis."""
        place = [0] * len(spec.axes)
        place[0] = block
        if spec.layer_axis is not None:
            place[spec.layer_axis] = index
        return self.folder / spec.path / self._arrays[spec.name].metadata.encode_chunk_key(tuple(place))

    def frames_of(self, spec: ArraySpec) -> FrameMaker:
        """Return what makes the frames of an array; one for all its layers and blocks."""
        if spec.name not in self._frames:
            self._frames[spec.name] = self.layout.shard_shape(spec).frame_maker()
        return self._frames[spec.name]

    def enter(self, record: dict[str, Any], tables: Mapping[str, pa.Table]) -> None:
        """Write a finished block's tables and enter it in the ledger."""
        block = record["block"]
        for name, table in tables.items():
            write_table(self._part(name, block), table)
        record["parts"] = {f"{PARTS_DIR}/{self._part(n, block).name}": checksum(self._part(n, block)) for n in tables}
        self._ledger.append(record)
        self.done[block] = record

    def duplicate(self, source: Path, target: Path) -> None:
        """Let a second array have the same file: a hard link, or a copy where there are none."""
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if self.links:
            target.hardlink_to(source)
        else:
            shutil.copyfile(source, target)

    def _part(self, name: str, block: int) -> Path:
        return self.folder / PARTS_DIR / f"{block:06d}-{name}"

    def _intact(self, record: Mapping[str, Any]) -> bool:
        """Return whether a block of the ledger is still there byte for byte."""
        files = (record["files"] | record["parts"]).items()
        return all((self.folder / n).is_file() and checksum(self.folder / n) == tuple(r) for n, r in files)

    # -- the end --------------------------------------------------------------------------------------------

    def facts(self) -> list[dict[str, Any]]:
        """Return what was kept with each block, in order."""
        return [self.done[block]["facts"] for block in sorted(self.done)]

    def join_tables(self) -> None:
        """Make the run's Parquet tables from the blocks' parts."""
        with disk_errors(self.folder):
            names = {path.name.split("-", 1)[1] for path in (self.folder / PARTS_DIR).iterdir()}
            for name in sorted(names):
                _join_parts([self._part(name, b) for b in range(self.layout.n_blocks)], self.folder / name)

    def commit(self, meta: Mapping[str, Any]) -> Path:
        """Write the manifest and last `meta.json`, and give the folder its name; the tables are joined already.

        Args:
            meta: Content of `meta.json`, without bytes and checksums.
        """
        with disk_errors(self.folder):
            files = {name: tuple(r) for record in self.done.values() for name, r in record["files"].items()}
            others = {n: checksum(self.folder / n) for n in run_files(self.folder) if n not in files and is_kept(n)}
            manifest = write_manifest(self.folder, {**files, **others})
            size = sum(record["bytes"] for record in self.done.values()) + sum(size for size, _ in others.values())
            write_meta(self.folder, {**meta, "bytes": size, "hard_links": self.links, "manifest_crc32c": manifest})
        return self.finish()

    @property
    def complete(self) -> bool:
        """Whether only the name is missing: a commit that was interrupted after `meta.json`."""
        return self.place.complete

    def finish(self) -> Path:
        """Remove what only the writing needed and give the folder its name."""
        with disk_errors(self.folder):
            parts = {path.name for path in (self.folder / PARTS_DIR).glob("*") if is_part(path.name)}
            remove(self.folder / PARTS_DIR, parts)
            self._ledger.let_go()
            self.place.finish()
        return self.run

    def discard(self) -> None:
        """Remove the partial folder."""
        with disk_errors(self.folder):
            self._ledger.let_go()
            self.place.discard()


def _join_parts(parts: Sequence[Path], path: Path) -> None:
    """Write one Parquet file from the blocks' parts, one row group each, without holding them all."""
    schema = pq.read_schema(parts[0])
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for part in parts:
            writer.write_table(pq.read_table(part))
