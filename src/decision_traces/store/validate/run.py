"""Checking a run folder from the disk alone: every byte, every number, every prediction."""

import os
from collections.abc import Callable, Iterator
from os import PathLike

import numpy as np
import pyarrow as pa

from decision_traces.checks import CheckResult
from decision_traces.errors import DamagedRunError, UsageError
from decision_traces.format.arrays import META_FILE, OUTCOMES_FILE, TOKENS_FILE
from decision_traces.format.lists import Spans
from decision_traces.format.stages import KEY
from decision_traces.paths import portable_path
from decision_traces.store.files.table import read_table
from decision_traces.store.reading.arrays import StoredArray
from decision_traces.store.reading.opened import OpenRun
from decision_traces.store.validate.chain import check_chain
from decision_traces.store.validate.coordinates import check_coordinates
from decision_traces.store.validate.files import (
    check_files,
    check_index,
    check_layout,
    check_max_abs,
    check_meta,
    check_plain,
    check_presence,
)
from decision_traces.store.validate.results import check_results
from decision_traces.store.validate.tables import check_columns, check_tokens, check_twice
from decision_traces.store.validate.values import Seen, SlotsOf, check_values, row_sum_tolerance
from decision_traces.tasks.task import TokenTable
from decision_traces.tasks.token_outcomes import POSITION_COLUMNS, check_positions

Progress = Callable[[int, int], None]
"""Called with the bytes done and all bytes to do."""


def validate_run(
    run_dir: str | PathLike[str],
    progress: Progress | None = None,
    *,
    results: str | PathLike[str] | None = None,
) -> list[CheckResult]:
    """Check a run folder and return every check, whether it holds or not; a failure never ends the checking.

    Memory is that of one file of the run (one block at one layer), uncompressed, and little more.

    Args:
        run_dir: The folder.
        progress: Told how far the reading of the arrays is.
        results: Where the results of analyses lie, where not in the run (`--out`).

    Raises:
        RunError: There is no run folder, or none that is complete.
    """
    run = portable_path(run_dir)
    found = [*check_plain(run), *check_index(run)]
    try:
        store = OpenRun(run, results=results, lenient=True)
    except DamagedRunError as error:
        detail = f"{error} Nothing else can be checked without it."
        return [
            *found,
            CheckResult("meta.json unchanged", False, where=META_FILE, detail=detail, array=META_FILE),
        ]
    found += check_meta(store)
    found += check_files(store)
    found += check_presence(store)
    tables, table = _tables(store)
    found += tables
    arrays, opened = _open_arrays(store)
    found += opened
    found += _arrays(store, arrays, table, progress or (lambda done, total: None))
    found += check_results(store.results)
    return found


def failures(results: list[CheckResult]) -> list[CheckResult]:
    """Return the checks that do not hold."""
    return [r for r in results if not r.ok]


def _open_arrays(store: OpenRun) -> tuple[dict[str, StoredArray], list[CheckResult]]:
    arrays, results = {}, []
    for name in store.stored():
        try:
            arrays[name] = store.array(name)
        except DamagedRunError as error:
            results.append(CheckResult("array opens", False, where=name, detail=str(error), array=name))
    return arrays, results


def _tables(store: OpenRun) -> tuple[list[CheckResult], pa.Table | None]:
    """Check the tables; return also the token table, where it can be read."""
    path, results = store.run_dir / TOKENS_FILE, []
    try:
        # Page checksums alone: what the manifest says about the file is a check of its own.
        table = read_table(path)
    except DamagedRunError as error:
        return [CheckResult("table reads", False, where=TOKENS_FILE, detail=str(error), array=TOKENS_FILE)], None
    results.append(CheckResult("table reads", True, detail=f"{table.num_rows} rows", array=TOKENS_FILE))
    several, table = check_twice(table, TOKENS_FILE)
    results += several
    columns, usable = check_columns(table, store.task.columns, all_of_them=store.about.ours)
    results.append(columns)
    results += check_tokens(table, store, usable)
    try:
        spans = store.spans
    except DamagedRunError as error:
        results.append(CheckResult("token spans", False, where=TOKENS_FILE, detail=str(error), array=TOKENS_FILE))
        return results, table
    if "example_id" not in usable:
        return results, table
    # In encoder-decoders it is the decoder that predicts, from its own tokens.
    read = f"{store.token_prefix(store.sides[0])}input_ids"
    results += store.task.check(TokenTable(table, spans, usable, store.about.vocab_size, read))
    results += _outcomes_table(store, table, spans, read)
    return results, table


def _outcomes_table(store: OpenRun, tokens: pa.Table, spans: Spans, read: str) -> Iterator[CheckResult]:
    path = store.run_dir / OUTCOMES_FILE
    if not os.path.lexists(path):
        return
    try:
        table = read_table(path)
    except DamagedRunError as error:
        yield CheckResult("table reads", False, where=OUTCOMES_FILE, detail=str(error), array=OUTCOMES_FILE)
        return
    several, table = check_twice(table, OUTCOMES_FILE)
    yield from several
    columns, usable = check_columns(table, POSITION_COLUMNS, all_of_them=True, file=OUTCOMES_FILE)
    yield columns
    yield from check_positions(table, tokens, spans, usable, store.about.vocab_size, read)


def _slots(array: StoredArray) -> SlotsOf | None:
    """Return what stands on the position axes of an array, None where the token table is damaged or does not fit."""
    axes = [array.position_axis, *([KEY] if KEY in array.spec.axes else [])]
    try:
        slots = {axis: array.slots(axis) for axis in axes}
    except (DamagedRunError, UsageError):
        return None  # the token table's own checks say what is wrong with it
    for axis, one in slots.items():
        lead = one.spans.start.shape
        fits = lead == array.shape[: len(lead)] and (one.chosen is None or len(one.chosen) == lead[0])
        if not fits or (array.dims is not None and one.at(slice(0, 1)).shape[-1] != array.size(axis)):
            return None
    return slots


def _row_sums(store: OpenRun, array: StoredArray) -> float | None:
    """Return by how much a row of attention may miss 1; None where the run does not promise that sum."""
    if not store.about.sums_to_one(array.spec.name):
        return None
    return row_sum_tolerance(array.shape[-1], store.about.model_dtype or "")


def _arrays(
    store: OpenRun,
    arrays: dict[str, StoredArray],
    table: pa.Table | None,
    progress: Progress,
) -> Iterator[CheckResult]:
    total = sum(int(np.prod(a.shape, dtype=np.int64)) * a.dtype.itemsize for a in arrays.values())
    done = 0

    def step(n_bytes: int) -> None:
        nonlocal done
        done = min(done + n_bytes, total)
        progress(done, total)

    ids = [] if table is None or "example_id" not in table.column_names else table.column("example_id").to_pylist()
    seen: Seen = {}
    for array in arrays.values():
        yield check_layout(store, array, None if table is None else table.num_rows)
        yield from check_coordinates(store, array)
        values, largest = check_values(
            array,
            None if table is None else _slots(array),
            [str(i) for i in ids],
            row_sums=_row_sums(store, array),
            padding_promised=store.about.ours,
            seen=seen,
            step=step,
        )
        yield from values
        yield check_max_abs(store, array, largest)
    if arrays:
        yield from check_chain(arrays, [str(i) for i in ids], step)
    progress(total, total)
