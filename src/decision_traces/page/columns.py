"""The figures of the example list: one number an example, to filter and to sort by."""

from collections.abc import Sequence
from hashlib import sha256
from string import ascii_lowercase, digits
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from decision_traces.format.analyses import DEPTH_TABLE
from decision_traces.format.lists import is_label, list_levels
from decision_traces.store import Result, TraceStore
from decision_traces.tasks.decisions import Kind
from decision_traces.tasks.figures import Figure, column_figure, numbers_of

_MOST_KINDS: Final = 24
_LONGEST_KIND: Final = 40
_NO_KINDS: Final = frozenset({"answerKey", "question"})  # answers and questions, not kinds of example
_EXAMPLES_PER_KIND: Final = 3
_IN_A_PATH: Final = frozenset(f"{ascii_lowercase}{digits}_-")
_LONGEST_NAME: Final = 100


def list_figures(store: TraceStore, kinds: Sequence[Kind]) -> list[Figure]:
    """Return the figures of a run's examples, `correct` first where it is known.

    Args:
        store: The run.
        kinds: Its decisions about tokens, its own first.

    Raises:
        DamagedRunError: A table is missing or changed.
    """
    task = store.task
    own = {column.name for column in task.columns}
    others = tuple(f.name for f in store.schema if f.name not in own | _NO_KINDS and is_label(f.type))
    table = store.table((*task.listed_from(kinds), "n_tokens", *others))
    figures = task.listed(table, kinds)
    if "n_tokens" in table.column_names and list_levels(table.column("n_tokens")) in {(), None}:
        figures += _counts(table)
    figures += [f for name in others if (f := _own_figure(table, name)) is not None]
    return figures


def _counts(table: pa.Table) -> list[Figure]:
    column = table.column("n_tokens")
    if not pa.types.is_integer(column.type):
        return []
    return [column_figure(table, "n_tokens", "n_tokens", "tokens")]


def _own_figure(table: pa.Table, name: str) -> Figure | None:
    """Return a column of the data set as what it can be filtered by: kinds, or numbers; None for texts of all sorts."""
    column = table.column(name)
    kinds = None if pa.types.is_floating(column.type) else _category(column, name)
    if kinds is not None or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return kinds
    return column_figure(table, name, f"of_{_in_a_path(name)}", name)


def _category(column: pa.ChunkedArray, name: str) -> Figure | None:
    """Return a column that has few different values, such as a kind."""
    encoded = pc.dictionary_encode(column).combine_chunks()
    names = encoded.dictionary.to_pylist()
    if len(column) - column.null_count < _EXAMPLES_PER_KIND * len(names):
        return None
    if not 2 <= len(names) <= _MOST_KINDS or any(n is None or len(str(n)) > _LONGEST_KIND for n in names):
        return None
    order = sorted(range(len(names)), key=lambda i: names[i])
    place = np.empty(len(names), np.float32)
    place[order] = np.arange(len(names), dtype=np.float32)
    codes = numbers_of(pa.chunked_array([encoded.indices]))
    known = np.isfinite(codes)
    values = np.where(known, place[np.where(known, codes, 0).astype(np.int64)], np.nan).astype(np.float32)
    called = tuple(str(n).lower() if isinstance(n, bool) else str(n) for n in sorted(names))
    return Figure(f"of_{_in_a_path(name)}", name, "", values, called)


def _in_a_path(name: str) -> str:
    """Return the name of a data set's column as it may stand in a path: a bundle's files are called so.

    Some file systems do not tell `Label` from `label`, and none has names of more than 255 bytes.
    """
    safe = "".join(c if c in _IN_A_PATH else f".{ord(c):x}." for c in name)
    return safe if len(safe) <= _LONGEST_NAME else f"{safe[:_LONGEST_NAME]}.{sha256(name.encode()).hexdigest()[:16]}"


def depth_figures(lens: Result, ids: pa.ChunkedArray) -> list[Figure]:
    """Return the decision depths that `decision-traces lens` left, by the order of the examples.

    Raises:
        ResultError: They are damaged.
    """
    if DEPTH_TABLE not in lens.files:
        return []
    table = lens.table(DEPTH_TABLE, ["example_id", "stable_from", "flips"])
    found = numbers_of(pc.index_in(ids, value_set=table.column("example_id").combine_chunks()))
    there, at = np.isfinite(found), np.where(np.isfinite(found), found, 0).astype(np.int64)
    figures = []
    for name, label in (("stable_from", "final choice on top from depth"), ("flips", "changes of the top choice")):
        values = numbers_of(table.column(name))
        shown = np.where(there, values[at], np.nan) if len(values) else np.full(len(ids), np.nan)
        figures.append(Figure(name, label, "", shown.astype(np.float32)))
    return figures
