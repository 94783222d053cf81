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
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import zarr
from zarr.codecs import Crc32cCodec, ZstdCodec

from decision_traces.errors import RunError, RunExistsError
from decision_traces.schema import META_FILE, ArraySpec, Site
from decision_traces.store.appender import Appender
from decision_traces.store.consolidated import consolidate
from decision_traces.store.disk import disk_errors, refuse_existing
from decision_traces.store.folder import (
    canonical_json,
    checksum,
    run_files,
    write_manifest,
    write_meta,
)
from decision_traces.store.frames import FrameMaker
from decision_traces.store.layout import RunLayout
from decision_traces.store.ledger import LEDGER_FILE, Ledger, read_ledger, rewrite_ledger
from decision_traces.store.lock import LOCK_FILE, FolderLock
from decision_traces.store.open_block import OpenBlock
from decision_traces.store.processes import ShardProcess
from decision_traces.store.shards import LEVEL, frame_maker
from decision_traces.store.table import write_table

__all__ = ["RunLayout", "RunWriter", "Site", "partial_folder"]

_PARTS: Final = "parts"
_UNTOUCHED: Final = "Nothing was written. Free some space, or choose another place with --out_dir"
_PROBES: Final = ("probe", "probe-link")


def partial_folder(run: Path) -> Path:
    """Return where a run is built before it gets its name."""
    return run.with_name(f".{run.name}.partial")


def refuse_unfinished(run: Path, *, overwrite: bool, resume: bool = False) -> None:
    """Raise if an unfinished run is in the way, or is being written now: found out before a model is loaded.

    Raises:
        RunExistsError: Says what is there and what to do.
    """
    folder = partial_folder(run)
    if not folder.exists():
        return
    with disk_errors(folder, kept=_UNTOUCHED):
        lock = FolderLock(folder)
        lock.take()
        lock.release()
    ledger = folder / LEDGER_FILE
    begun = ledger.is_file() and ledger.stat().st_size > 0  # else it was killed before there was anything to go on with
    if begun and not overwrite and not resume:
        raise RunExistsError(
            f"{folder} holds an unfinished run. Go on with it by --resume, discard it by --overwrite, or choose "
            "another --out_dir."
        )


class RunWriter:
    """Builds one run folder. Create with `RunWriter.create` or `RunWriter.resume`."""

    def __init__(self, run: Path, layout: RunLayout) -> None:
        self.run, self.layout = run, layout
        self.folder = partial_folder(run)
        self.done: dict[int, dict[str, Any]] = {}
        self.bytes_written = 0
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self._frames: dict[str, FrameMaker] = {}
        self.links = True
        self.appender = Appender()
        self._lock, self._ledger = FolderLock(self.folder), Ledger(self.folder / LEDGER_FILE)

    def __enter__(self) -> "RunWriter":
        """Return itself; the folder is locked already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Let another process write the folder."""
        self._lock.release()

    # -- beginning ------------------------------------------------------------------------------------------

    @classmethod
    def create(cls, run: Path, layout: RunLayout, plan: Mapping[str, Any], *, overwrite: bool) -> "RunWriter":
        """Begin a new run.

        Args:
            run: The run's folder, not yet there (or a run, with `overwrite`).
            layout: What it will hold.
            plan: What a resumed run must agree with; written as the ledger's first line.
            overwrite: Whether a complete run at `run` may be replaced once the new one is complete, and an
                unfinished one be discarded.

        Raises:
            RunExistsError: There is something already.
            RunError: The folder cannot be written.
        """
        refuse_existing(run, overwrite=overwrite)
        refuse_unfinished(run, overwrite=overwrite)
        writer = cls(run, layout)
        with disk_errors(run.parent, kept=_UNTOUCHED):
            run.parent.mkdir(parents=True, exist_ok=True)
            if writer.folder.exists():
                shutil.rmtree(writer.folder)
            writer.folder.mkdir()  # an error if another process was quicker
            writer._lock.take()
        try:
            with disk_errors(run.parent, kept=_UNTOUCHED):
                (writer.folder / _PARTS).mkdir()
                writer._create_arrays()
                writer._ledger.append({"plan": plan})
                writer.links = writer._can_link()
        except RunError:
            writer.discard()
            raise
        return writer

    @classmethod
    def resume(cls, run: Path, layout: RunLayout, plan: Mapping[str, Any]) -> "RunWriter":
        """Go on with an unfinished run.

        Raises:
            RunError: There is none, or it was begun with other settings; the message names them.
        """
        writer = cls(run, layout)
        ledger = writer.folder / LEDGER_FILE
        if not ledger.is_file():
            raise RunError(f"--resume: there is no unfinished run at {writer.folder}. Leave --resume out to begin one.")
        writer._lock.take()
        try:
            with disk_errors(writer.folder):
                writer._go_on(plan)
        except BaseException:
            writer._lock.release()
            raise
        return writer

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
        rewrite_ledger(ledger, [begun, *blocks])
        self.done = {record["block"]: record for record in blocks if self._intact(record)}
        self.bytes_written = sum(record["bytes"] for record in self.done.values())
        for spec in self.layout.specs:
            self._arrays[spec.name] = zarr.open_array(self.folder / spec.path, mode="r+")
        self.links = self._can_link()

    def _create_arrays(self) -> None:
        groups = tuple(dict.fromkeys(spec.group for spec in self.layout.specs))
        for group in groups:
            zarr.create_group(self.folder / group)
        for spec in self.layout.specs:
            self._arrays[spec.name] = zarr.create_array(
                self.folder / spec.path,
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
                self.folder / path,
                data=np.asarray(numbers, dtype=np.int32),
                chunks=(max(1, len(numbers)),),
                compressors=[Crc32cCodec()],
                fill_value=-1,
                dimension_names=(path.rsplit("/", 1)[1],),
            )
        for group in groups:
            consolidate(self.folder / group)

    def _can_link(self) -> bool:
        """Return whether the file system has hard links."""
        probe, link = (self.folder / name for name in _PROBES)
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

    def open_block(self, block: int, helpers: Sequence[ShardProcess] = ()) -> OpenBlock:
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
            self._frames[spec.name] = frame_maker(self.layout, spec)
        return self._frames[spec.name]

    def enter(self, record: dict[str, Any], tables: Mapping[str, pa.Table]) -> None:
        """Write a finished block's tables and enter it in the ledger."""
        block = record["block"]
        for name, table in tables.items():
            write_table(self._part(name, block), table)
        record["parts"] = {f"{_PARTS}/{self._part(n, block).name}": checksum(self._part(n, block)) for n in tables}
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
        return self.folder / _PARTS / f"{block:06d}-{name}"

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
            names = {path.name.split("-", 1)[1] for path in (self.folder / _PARTS).iterdir()}
            for name in sorted(names):
                _join_parts([self._part(name, b) for b in range(self.layout.n_blocks)], self.folder / name)

    def commit(self, meta: Mapping[str, Any]) -> Path:
        """Write the manifest and last `meta.json`, and give the folder its name; the tables are joined already.

        Args:
            meta: Content of `meta.json`, without bytes and checksums.
        """
        with disk_errors(self.folder):
            files = {name: tuple(r) for record in self.done.values() for name, r in record["files"].items()}
            others = {
                n: checksum(self.folder / n) for n in run_files(self.folder) if n not in files and not _scaffold(n)
            }
            manifest = write_manifest(self.folder, {**files, **others})
            size = sum(record["bytes"] for record in self.done.values()) + sum(size for size, _ in others.values())
            write_meta(self.folder, {**meta, "bytes": size, "hard_links": self.links, "manifest_crc32c": manifest})
        return self.finish()

    @property
    def complete(self) -> bool:
        """Whether only the name is missing: a commit that was interrupted after `meta.json`."""
        return (self.folder / META_FILE).is_file()

    def finish(self) -> Path:
        """Remove what only the writing needed and give the folder its name."""
        with disk_errors(self.folder):
            shutil.rmtree(self.folder / _PARTS, ignore_errors=True)
            self._ledger.let_go()
            self._lock.release()
            (self.folder / LOCK_FILE).unlink(missing_ok=True)
            self._rename()
            (self.run / LEDGER_FILE).unlink(missing_ok=True)
        return self.run

    def _rename(self) -> None:
        """Put the finished folder in place; a run that is replaced goes only now."""
        old = self.run.with_name(f".{self.run.name}.old")
        if old.exists():
            shutil.rmtree(old)
        if self.run.exists():
            self.run.rename(old)
        self.folder.rename(self.run)
        if old.exists():
            shutil.rmtree(old)

    def discard(self) -> None:
        """Remove the partial folder."""
        self._ledger.let_go()
        self._lock.release()
        shutil.rmtree(self.folder, ignore_errors=True)


def _scaffold(name: str) -> bool:
    """Return whether a file is there only for the writing."""
    return name in {LEDGER_FILE, *_PROBES} or name.startswith((f"{_PARTS}/", "."))


def _join_parts(parts: Sequence[Path], path: Path) -> None:
    """Write one Parquet file from the blocks' parts, one row group each, without holding them all."""
    schema = pq.read_schema(parts[0])
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for part in parts:
            writer.write_table(pq.read_table(part))
