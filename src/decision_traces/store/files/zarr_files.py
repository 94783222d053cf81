"""Opening Zarr arrays that may come from a stranger: none makes Zarr build more than its files hold, or run anything.

Zarr decodes what a chunk says of itself: a few bytes of Zstandard or Blosc can say gigabytes, and of the codecs that a
Zarr 2 array may name one unpickles, which runs whatever the chunk asks for. Here codecs are known by name, and a chunk
says the size it must have or is not decoded.
"""

import zlib
from collections.abc import Callable, Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any, Final

import zarr
from zarr import Array
from zarr.abc.store import ByteRequest, RangeByteRequest
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec
from zarr.core.array_spec import ArraySpec as ChunkSpec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.registry import register_codec
from zarr.storage import LocalStore

from decision_traces.errors import DamagedRunError
from decision_traces.folders.plain import PlainFolder
from decision_traces.store.shards.frames import content_size, is_one_frame

METADATA: Final = ("zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata")
_LARGEST_METADATA: Final = 1 << 20
_SLACK: Final = 64  # bytes that a checksum may add to a chunk before it is compressed
MOST_PER_BYTE: Final = 1 << 15
"""Bytes of a chunk for each of its bytes on disk: an RLE block of Zstandard says 128 KiB in four; nothing says more."""

_PIPELINE: Final = "zarr.core.codec_pipeline.BatchedCodecPipeline"
"""Zarr's own, whatever the user has set: the Rust one (zarrs 0.2.3) does not look at the checksum of a single chunk."""
_CODECS: Final = frozenset({"bytes", "transpose", "crc32c", "zstd", "blosc", "gzip", "sharding_indexed"})


def refuse_metadata(plain: PlainFolder, folder: Path) -> None:
    """Raise if what Zarr would read on opening an array or a group is no plain file, or far larger than any is.

    Raises:
        DamagedRunError: Names it.
    """
    for name in METADATA:
        size = plain.size(folder / name)
        if size is not None and size > _LARGEST_METADATA:
            raise DamagedRunError(f"{folder / name} has {size} bytes; the metadata of no array takes so many.")


def open_zarr(plain: PlainFolder, folder: Path) -> "Array[Any]":
    """Open an array for reading.

    Raises:
        DamagedRunError: Its metadata is no plain file, or too large.
        ValueError: It uses a codec that is not known here.
        RuntimeError, OSError, TypeError, KeyError, AttributeError: As Zarr raises them on damaged metadata.
    """
    refuse_metadata(plain, folder)
    with zarr.config.set({"codec_pipeline.path": _PIPELINE, **_BOUNDED}):
        try:
            array = zarr.open_array(_FilesAsTheyAre(folder, read_only=True), mode="r")
        except ZeroDivisionError as error:
            raise ValueError("its metadata says that a chunk has no length") from error
    unknown = [name for name in _codecs(array.metadata.to_dict()) if name not in (*_CODECS, *_SIZES)]
    if unknown:
        raise ValueError(f"codec {unknown[0]!r:.40} is not one that is read here")
    return array


def _codecs(metadata: Mapping[str, Any]) -> Iterator[str]:
    """Yield the names of all codecs of an array, in format 2 or 3."""
    if metadata.get("zarr_format") == 2:
        yield from (f"filter {f['id']}" for f in metadata.get("filters") or ())
        compressor = metadata.get("compressor")
        yield from () if compressor is None else (compressor["id"],)
        return
    for codec in metadata.get("codecs") or ():
        yield codec["name"]
        told = codec.get("configuration", {})
        yield from _codecs({"codecs": (*told.get("codecs", ()), *told.get("index_codecs", ()))})


def refuse_size(codec: str, chunk: bytes | memoryview, expected: int) -> None:
    """Raise if a compressed chunk does not say that it is as large as it must be.

    Raises:
        ValueError: Says both sizes.
    """
    told = _SIZES[codec](chunk, expected)
    if told is None or not expected <= told <= expected + _SLACK:
        raise ValueError(f"a chunk of {told or 'unknown'} bytes where {expected} belong")


def refuse_chunk_file(plain: PlainFolder, path: Path, array: "Array[Any]") -> None:
    """Raise if a file of a Zarr 2 array, which is one chunk, does not say that it is as large as it must be.

    Raises:
        ValueError: Says both sizes.
        OSError: It cannot be read.
    """
    compressor: Any = array.metadata.to_dict().get("compressor")
    file = plain.find(path) if isinstance(compressor, Mapping) else None
    if file is not None:
        with file:
            refuse_size(compressor["id"], file.readall(), prod(array.chunks) * array.dtype.itemsize)


def _blosc(chunk: bytes | memoryview, _: int) -> int | None:
    return int.from_bytes(chunk[4:8], "little") if len(chunk) >= 16 else None


def _zlib(chunk: bytes | memoryview, expected: int) -> int:
    return len(zlib.decompressobj(wbits=47).decompress(chunk, expected + _SLACK + 1))  # gzip or zlib, as it says


_SIZES: Final[Mapping[str, Callable[[bytes | memoryview, int], int | None]]] = {
    "zstd": lambda chunk, _: content_size(chunk) if is_one_frame(chunk) else None,
    "blosc": _blosc,
    "lz4": lambda chunk, _: int.from_bytes(chunk[:4], "little"),
    "gzip": _zlib,
    "zlib": _zlib,
}


class _FilesAsTheyAre(LocalStore):
    """Reads no piece of a file that the file does not have: Zarr makes room for what a shard's index says."""

    async def get(
        self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Return a file, or a piece of it.

        Raises:
            ValueError: The piece ends behind the file.
        """
        path = self.root / key
        if isinstance(byte_range, RangeByteRequest) and path.is_file():
            size = path.stat().st_size
            if not 0 <= byte_range.start <= byte_range.end <= size:
                raise ValueError(f"a chunk at {byte_range.start} to {byte_range.end} of a file of {size} bytes")
        return await super().get(key, prototype, byte_range)


class _Zstd(ZstdCodec):
    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ChunkSpec) -> Buffer:
        _refuse_buffer("zstd", chunk_bytes, chunk_spec)
        return await super()._decode_single(chunk_bytes, chunk_spec)


class _Blosc(BloscCodec):
    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ChunkSpec) -> Buffer:
        _refuse_buffer("blosc", chunk_bytes, chunk_spec)
        return await super()._decode_single(chunk_bytes, chunk_spec)


class _Gzip(GzipCodec):
    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ChunkSpec) -> Buffer:
        _refuse_buffer("gzip", chunk_bytes, chunk_spec)
        return await super()._decode_single(chunk_bytes, chunk_spec)


def _refuse_buffer(codec: str, chunk: Buffer, spec: ChunkSpec) -> None:
    refuse_size(codec, chunk.to_bytes(), prod(spec.shape) * spec.dtype.to_native_dtype().itemsize)


_OURS: Final = {"zstd": _Zstd, "blosc": _Blosc, "gzip": _Gzip}
_BOUNDED: Final = {f"codecs.{name}": f"{codec.__module__}.{codec.__qualname__}" for name, codec in _OURS.items()}
for _name, _codec in _OURS.items():
    register_codec(_name, _codec)
