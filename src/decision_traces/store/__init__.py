"""The run folder: the only code that touches the disk format. Needs no torch.

Everything outside of `store` imports from here; each name is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from decision_traces.store.files.folder import (
        checksum,
        problem_of,
        read_manifest,
        read_meta,
        read_sealed,
        write_json,
        write_sealed,
    )
    from decision_traces.store.files.place import default_root, run_id
    from decision_traces.store.files.proof import is_whole, refuse_in_run
    from decision_traces.store.files.results_place import ResultsPlace
    from decision_traces.store.files.runs import list_runs
    from decision_traces.store.files.table import read_table, write_table
    from decision_traces.store.files.zarr_files import open_zarr
    from decision_traces.store.reading.about import doubts, random_head
    from decision_traces.store.reading.arrays import DECODE_ERRORS, StoredArray
    from decision_traces.store.reading.gather import rows_per_step
    from decision_traces.store.reading.opened import OpenRun
    from decision_traces.store.reading.results import Result, ResultStatus, find_result, places_of
    from decision_traces.store.reading.selection import PREDICTIONS, ExampleKey, checked_index, layers_that_have
    from decision_traces.store.reading.still import FileStamp, file_stamp
    from decision_traces.store.reading.trace_store import TraceStore, newest_run
    from decision_traces.store.shards.frames import BLOCK_BYTES
    from decision_traces.store.shards.reader import ShardReader, shard_reader
    from decision_traces.store.validate.index import RunIndex, index_run
    from decision_traces.store.validate.run import failures, validate_run
    from decision_traces.store.writing.consolidated import consolidate
    from decision_traces.store.writing.layout import SMALL_CHUNK, RunLayout
    from decision_traces.store.writing.ledger import is_begun
    from decision_traces.store.writing.new_result import new_result
    from decision_traces.store.writing.open_block import OpenBlock
    from decision_traces.store.writing.owned import run_place
    from decision_traces.store.writing.processes import WriterProcesses
    from decision_traces.store.writing.writer import RunWriter

_HOMES: Final = {
    "files.folder": (
        "checksum",
        "problem_of",
        "read_manifest",
        "read_meta",
        "read_sealed",
        "write_json",
        "write_sealed",
    ),
    "files.place": (
        "default_root",
        "run_id",
    ),
    "files.proof": (
        "is_whole",
        "refuse_in_run",
    ),
    "files.results_place": ("ResultsPlace",),
    "files.runs": ("list_runs",),
    "files.table": (
        "read_table",
        "write_table",
    ),
    "files.zarr_files": ("open_zarr",),
    "reading.about": (
        "doubts",
        "random_head",
    ),
    "reading.arrays": (
        "DECODE_ERRORS",
        "StoredArray",
    ),
    "reading.gather": ("rows_per_step",),
    "reading.opened": ("OpenRun",),
    "reading.results": (
        "Result",
        "ResultStatus",
        "find_result",
        "places_of",
    ),
    "reading.selection": (
        "ExampleKey",
        "PREDICTIONS",
        "checked_index",
        "layers_that_have",
    ),
    "reading.still": (
        "FileStamp",
        "file_stamp",
    ),
    "reading.trace_store": (
        "TraceStore",
        "WriterProcesses",
        "newest_run",
    ),
    "shards.frames": ("BLOCK_BYTES",),
    "shards.reader": (
        "ShardReader",
        "shard_reader",
    ),
    "validate.index": (
        "RunIndex",
        "index_run",
    ),
    "validate.run": (
        "failures",
        "validate_run",
    ),
    "writing.consolidated": ("consolidate",),
    "writing.layout": (
        "RunLayout",
        "SMALL_CHUNK",
    ),
    "writing.ledger": ("is_begun",),
    "writing.new_result": ("new_result",),
    "writing.open_block": ("OpenBlock",),
    "writing.owned": ("run_place",),
    "writing.processes": ("WriterProcesses",),
    "writing.writer": ("RunWriter",),
}
_HOME_OF: Final = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BLOCK_BYTES",
    "DECODE_ERRORS",
    "PREDICTIONS",
    "SMALL_CHUNK",
    "ExampleKey",
    "FileStamp",
    "OpenBlock",
    "OpenRun",
    "Result",
    "ResultStatus",
    "ResultsPlace",
    "RunIndex",
    "RunLayout",
    "RunWriter",
    "ShardReader",
    "StoredArray",
    "TraceStore",
    "WriterProcesses",
    "checked_index",
    "checksum",
    "consolidate",
    "default_root",
    "doubts",
    "failures",
    "file_stamp",
    "find_result",
    "index_run",
    "is_begun",
    "is_whole",
    "layers_that_have",
    "list_runs",
    "new_result",
    "newest_run",
    "open_zarr",
    "places_of",
    "problem_of",
    "random_head",
    "read_manifest",
    "read_meta",
    "read_sealed",
    "read_table",
    "refuse_in_run",
    "rows_per_step",
    "run_id",
    "run_place",
    "shard_reader",
    "validate_run",
    "write_json",
    "write_sealed",
    "write_table",
]


def __getattr__(name: str) -> Any:
    """Load the module of a name on first use (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value
