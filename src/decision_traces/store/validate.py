"""Checking a run folder from the disk alone: every byte, every number, every prediction."""

from collections.abc import Callable, Iterator
from os import PathLike

import numpy as np
import pyarrow as pa

from decision_traces.errors import DamagedRunError
from decision_traces.schema import DEPTH, LAYER, META_FILE, OUTCOMES_FILE, POSITION_COLUMNS, TOKENS_FILE
from decision_traces.store.arrays import StoredArray
from decision_traces.store.checks import CheckResult
from decision_traces.store.checks_chain import check_chain
from decision_traces.store.checks_files import (
    check_files,
    check_index,
    check_layout,
    check_max_abs,
    check_meta,
    check_presence,
)
from decision_traces.store.checks_outcomes import check_choices, check_next_token, check_positions
from decision_traces.store.checks_tables import check_columns, check_tokens, token_columns
from decision_traces.store.checks_values import Seen, check_values
from decision_traces.store.opened import OpenRun
from decision_traces.store.runs import portable_path
from decision_traces.store.table import Spans, read_table

Progress = Callable[[int, int], None]
"""Called with the bytes done and all bytes to do."""


def validate_run(run_dir: str | PathLike[str], progress: Progress | None = None) -> list[CheckResult]:
    """Check a run folder and return every check, whether it holds or not; a failure never ends the checking.

    Memory is that of one file of the run (one block at one layer), uncompressed, and little more.

    Args:
        run_dir: The folder.
        progress: Told how far the reading of the arrays is.

    Raises:
        RunError: There is no run folder, or none that is complete.
    """
    run = portable_path(run_dir)
    results = list(check_index(run))
    try:
        store = OpenRun(run)
    except DamagedRunError as error:
        detail = f"{error} Nothing else can be checked without it."
        return [
            *results,
            CheckResult("meta.json unchanged", False, where=META_FILE, detail=detail, array=META_FILE),
        ]
    results += check_meta(store)
    results += check_files(store)
    results += check_presence(store)
    tables, table, spans = _tables(store)
    results += tables
    arrays, opened = _open_arrays(store)
    results += opened
    results += _arrays(store, arrays, table, spans, progress or (lambda done, total: None))
    return results


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


def _tables(store: OpenRun) -> tuple[list[CheckResult], pa.Table | None, Spans | None]:
    """Check the tables; return also the token table and its spans, as far as they can be read."""
    path, results = store.run_dir / TOKENS_FILE, []
    vocab = store.meta.get("vocab_size")
    try:
        # Page checksums alone: what the manifest says about the file is a check of its own.
        table = read_table(path)
    except DamagedRunError as error:
        return (
            [CheckResult("table reads", False, where=TOKENS_FILE, detail=str(error), array=TOKENS_FILE)],
            None,
            None,
        )
    results.append(CheckResult("table reads", True, detail=f"{table.num_rows} rows", array=TOKENS_FILE))
    columns, usable = check_columns(table, token_columns(store), all_of_them="format_version" in store.meta)
    results.append(columns)
    results += check_tokens(table, store, usable)
    try:
        spans = store.spans
    except DamagedRunError as error:
        results.append(CheckResult("token spans", False, where=TOKENS_FILE, detail=str(error), array=TOKENS_FILE))
        return results, table, None
    if "example_id" not in usable:
        return results, table, spans
    results += check_next_token(table, spans, usable, vocab)
    results += check_choices(table)
    results += _outcomes_table(store, table, spans)
    return results, table, spans


def _outcomes_table(store: OpenRun, tokens: pa.Table, spans: Spans) -> Iterator[CheckResult]:
    path = store.run_dir / OUTCOMES_FILE
    if not path.exists():
        return
    try:
        table = read_table(path)
    except DamagedRunError as error:
        yield CheckResult("table reads", False, where=OUTCOMES_FILE, detail=str(error), array=OUTCOMES_FILE)
        return
    columns, usable = check_columns(table, POSITION_COLUMNS, all_of_them=True, file=OUTCOMES_FILE)
    yield columns
    yield from check_positions(table, tokens, spans, usable, store.meta.get("vocab_size"))


def _n_layers(arrays: dict[str, StoredArray]) -> int:
    """Return the number of layers from the arrays that open; others may be damaged."""
    for array in arrays.values():
        if LAYER in array.spec.axes:
            return array.size(LAYER)
    return next((array.size(DEPTH) - 1 for array in arrays.values() if DEPTH in array.spec.axes), 0)


def _arrays(
    store: OpenRun,
    arrays: dict[str, StoredArray],
    table: pa.Table | None,
    spans: Spans | None,
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
        fitting = spans if spans is not None and spans.start.shape == array.shape[: spans.start.ndim] else None
        values, largest = check_values(
            array,
            fitting,
            [str(i) for i in ids],
            sums_to_one=store.meta.get("attention_rows_sum_to_one", True),
            padding_promised="format_version" in store.meta,
            seen=seen,
            step=step,
        )
        yield from values
        yield check_max_abs(store, array, largest)
    if arrays:
        yield from check_chain(arrays, _n_layers(arrays), [str(i) for i in ids], step)
    progress(total, total)
