"""Writing a run folder: blocks go to a hidden partial folder, which gets its name when `meta.json` is written.

Every finished block is a line in an append-only, fsynced ledger. Whatever happens before the last rename,
nothing stands under the run's own name, and a run that stood there before is untouched.
"""

import json
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
from decision_traces.schema import META_FILE, ArraySpec
from decision_traces.store.arrays import RUST_PIPELINE
from decision_traces.store.disk import disk_errors, refuse_existing
from decision_traces.store.folder import (
    FileRecord,
    canonical_json,
    checksum,
    run_files,
    write_manifest,
    write_meta,
)
from decision_traces.store.layout import RunLayout, Site
from decision_traces.store.ledger import LEDGER_FILE, append_record, read_ledger, rewrite_ledger
from decision_traces.store.table import write_table

__all__ = ["RunLayout", "RunWriter", "Site", "partial_folder"]

_PARTS: Final = "parts"
_PROBES: Final = ("probe", "probe-link")


def partial_folder(run: Path) -> Path:
    """Return where a run is built before it gets its name."""
    return run.with_name(f".{run.name}.partial")


class RunWriter:
    """Builds one run folder. Create with `RunWriter.create` or `RunWriter.resume`."""

    def __init__(self, run: Path, layout: RunLayout) -> None:
        self.run, self.layout = run, layout
        self.folder = partial_folder(run)
        self.done: dict[int, dict[str, Any]] = {}
        self.bytes_written = 0
        self._places = layout.places()
        self._arrays: dict[str, zarr.Array[Any]] = {}
        self.links = True

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
        writer = cls(run, layout)
        if writer.folder.exists():
            if not overwrite:
                raise RunExistsError(
                    f"{writer.folder} holds an unfinished run (or one that is being written now). "
                    "Go on with it by --resume, discard it by --overwrite, or choose another --out_dir."
                )
            shutil.rmtree(writer.folder)
        try:
            with disk_errors(run.parent, kept="Nothing was written"):
                run.parent.mkdir(parents=True, exist_ok=True)
                writer.folder.mkdir()
                (writer.folder / _PARTS).mkdir()
                writer._create_arrays()
                append_record(writer.folder / LEDGER_FILE, {"plan": plan})
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
        begun, *blocks = read_ledger(ledger)
        differing = [k for k in plan if json.loads(canonical_json(plan[k])) != begun.get("plan", {}).get(k)]
        if differing:
            was = begun.get("plan", {})
            named = "; ".join(f"{k} was {was.get(k)!r}, is {plan[k]!r}" for k in differing)
            raise RunError(f"--resume: {writer.folder} was begun with other settings: {named}.")
        if writer.complete:
            return writer
        rewrite_ledger(ledger, [begun, *blocks])
        writer.done = {record["block"]: record for record in blocks if writer._intact(record)}
        writer.bytes_written = sum(record["bytes"] for record in writer.done.values())
        with zarr.config.set({"codec_pipeline.path": RUST_PIPELINE}):
            for spec in layout.specs:
                array = zarr.open_array(writer.folder / spec.path, mode="r+")
                writer._arrays[spec.name] = array.with_config({"write_empty_chunks": False})
        writer.links = writer._can_link()
        return writer

    def _create_arrays(self) -> None:
        for group in dict.fromkeys(spec.group for spec in self.layout.specs):
            zarr.create_group(self.folder / group)
        with zarr.config.set({"codec_pipeline.path": RUST_PIPELINE}):
            for spec in self.layout.specs:
                self._arrays[spec.name] = zarr.create_array(
                    self.folder / spec.path,
                    shape=self.layout.dims_of(spec).shape(spec),
                    dtype=self.layout.dtype,
                    chunks=self.layout.chunk(spec),
                    shards=self.layout.shard(spec),
                    compressors=[ZstdCodec(level=1), Crc32cCodec()],
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

    def write_block(
        self,
        block: int,
        tensors: Mapping[Site, np.ndarray],
        tables: Mapping[str, pa.Table],
        facts: Mapping[str, Any],
    ) -> int:
        """Write one block and enter it in the ledger.

        Args:
            block: Its number.
            tensors: Site and layer (the model's own number) to (rows, ...) in the storage type, (rows, choices, ...)
                where the run has choices; cut to the heads and position slots that are kept: the array's shape
                without its layer axis. Each distinct tensor is written once.
            tables: File name to the block's rows of that table.
            facts: JSON values to keep with the block (largest values, ...); read back by `facts`.

        Returns:
            Bytes this block takes on disk.

        Raises:
            DiskSpaceError, RunError: The disk is full, or the folder cannot be written.
        """
        with disk_errors(self.folder):
            files: dict[str, FileRecord] = {}
            for site, places in self._places.items():
                files |= self._write_shards(block, tensors[site], places)
            for name, table in tables.items():
                write_table(self._part(name, block), table)
            parts = {f"{_PARTS}/{self._part(n, block).name}": checksum(self._part(n, block)) for n in tables}
            distinct = {(self.folder / name).stat().st_ino: size for name, (size, _) in files.items()}
            size = sum(distinct.values())
            record = {"block": block, "files": files, "parts": parts, "bytes": size, "facts": dict(facts)}
            append_record(self.folder / LEDGER_FILE, record)
        self.done[block] = record
        self.bytes_written += size
        return size

    def _write_shards(
        self, block: int, tensor: np.ndarray, places: Sequence[tuple[ArraySpec, int]]
    ) -> dict[str, FileRecord]:
        rows = self.layout.rows(block)
        spec, index = places[0]
        selection: list[slice] = [slice(None)] * len(spec.axes)
        selection[0] = slice(rows.start, rows.stop)
        data = tensor[: len(rows)]
        if spec.layer_axis is not None:
            selection[spec.layer_axis] = slice(index, index + 1)
            data = np.expand_dims(data, spec.layer_axis)
        first = self._shard(spec, block, index)
        first.unlink(missing_ok=True)  # what a crash left half-written must not be read and merged
        self._arrays[spec.name][tuple(selection)] = data
        if not first.exists():
            # Zeros alone: padding, but the outputs of some layers (a ReLU, weights that begin at zero) may be zero at
            # tokens too, and there a reader that finds no file reports damage.
            self._arrays[spec.name].with_config({"write_empty_chunks": True})[tuple(selection)] = data
        record = checksum(first)
        for other, other_index in places[1:]:
            self._duplicate(first, self._shard(other, block, other_index))
        return {self._shard(s, block, i).relative_to(self.folder).as_posix(): record for s, i in places}

    def _shard(self, spec: ArraySpec, block: int, index: int) -> Path:
        place = [0] * len(spec.axes)
        place[0] = block
        if spec.layer_axis is not None:
            place[spec.layer_axis] = index
        return self.folder / spec.path / self._arrays[spec.name].metadata.encode_chunk_key(tuple(place))

    def _duplicate(self, source: Path, target: Path) -> None:
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
        names = {path.name.split("-", 1)[1] for path in (self.folder / _PARTS).iterdir()}
        with disk_errors(self.folder):
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
            size = self.bytes_written + sum(size for size, _ in others.values())
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
