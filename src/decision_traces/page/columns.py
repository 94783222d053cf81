"""The figures of the example list: one number an example, to filter and to sort by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from string import ascii_lowercase, digits
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float32, Float64

from decision_traces.errors import DamagedRunError
from decision_traces.format.analyses import DEPTH_TABLE
from decision_traces.format.arrays import TOKENS_FILE
from decision_traces.format.columns import RUN_COLUMNS
from decision_traces.format.lists import is_label, list_levels, rectangle
from decision_traces.store import Result, TraceStore

_MOST_KINDS: Final = 24
_LONGEST_KIND: Final = 40
_NO_KINDS: Final = frozenset({"answerKey", "question"})  # answers and questions, not kinds of example
_EXAMPLES_PER_KIND: Final = 3
_IN_A_PATH: Final = frozenset(f"{ascii_lowercase}{digits}_-")
_LONGEST_NAME: Final = 100


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of the list.

    Attributes:
        name: Its place in the URL.
        label: What it is called.
        unit: Unit, or empty.
        values: (n,) NaN where an example has none; of a category, the index of its name.
        categories: Names, where it is a category.
    """

    name: str
    label: str
    unit: str
    values: Float32[np.ndarray, " n"]
    categories: tuple[str, ...] | None = None

    def summary(self) -> dict[str, Any]:
        """Return what the page needs to draw a histogram's axis."""
        known = self.values[np.isfinite(self.values)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 0.0)
        return {
            "name": self.name,
            "label": self.label,
            "unit": self.unit,
            "min": low,
            "max": high,
            "known": len(known),
            "categories": None if self.categories is None else list(self.categories),
        }


_OF_TOKEN: Final = (
    ("correct", "correct", "right", ""),
    ("entropy", "entropy", "entropy", "nats"),
    ("margin", "margin", "margin, top 1 − top 2", "logits"),
    ("true_prob", "true_prob", "probability of the actual token", ""),
    ("pred_prob", "pred_prob", "probability of the predicted token", ""),
    ("true_rank", "rank", "rank of the actual token", ""),
)
_AFTER: Final = ("after_", "after the text: ")
"""What stands before the names of what comes after the text, where that is not the run's own decision."""


def list_figures(store: TraceStore, objective: str, kinds: Sequence[str]) -> list[Figure]:
    """Return the figures of a run's examples, `correct` first where it is known.

    Args:
        store: The run.
        objective: What it is about.
        kinds: Its decisions about tokens, its own first.

    Raises:
        DamagedRunError: A table is missing or changed.
    """
    own = {column.name for column in RUN_COLUMNS.get(objective, ())}
    others = tuple(f.name for f in store.schema if f.name not in own | _NO_KINDS and is_label(f.type))
    of_tokens = tuple(_token_figures(kinds))
    wanted = tuple(column for column, *_ in of_tokens)
    choices = ("is_correct", "choice_probs", "choice_logits", "choice_logprob_sum", "pred_idx")
    table = store.table((*wanted, *choices, "n_tokens", *others))
    figures = [Figure(name, label, unit, _numbers(table, column)) for column, name, label, unit in of_tokens
               if column in table.column_names]  # fmt: skip
    if "choice_probs" in table.column_names and table.num_rows:
        figures += _of_choices(table)
    if "n_tokens" in table.column_names and list_levels(table.column("n_tokens")) in {(), None}:
        figures += _counts(table)
    figures += [f for name in others if (f := _own_figure(table, name)) is not None]
    return figures


def _token_figures(kinds: Sequence[str]) -> Iterator[tuple[str, str, str, str]]:
    """Yield column, name, label and unit of every figure that decisions about tokens may have."""
    for kind in kinds:
        before, said = ("", "") if kind == kinds[0] else _AFTER
        yield from ((f"{kind}_{column}", before + name, said + label, unit) for column, name, label, unit in _OF_TOKEN)


def _counts(table: pa.Table) -> list[Figure]:
    column = table.column("n_tokens")
    if not pa.types.is_integer(column.type):
        return []
    return [Figure("n_tokens", "tokens", "", _numbers(table, "n_tokens"))]


def _numbers(table: pa.Table, name: str) -> Float32[np.ndarray, " n"]:
    return numbers_of(table.column(name)).astype(np.float32)


def numbers_of(column: pa.ChunkedArray) -> Float64[np.ndarray, " n"]:
    """Return a column as float64, NaN for nulls: from its bytes, because pyarrow's own way loads pandas for it."""
    array = pc.cast(column, pa.float64(), safe=False).combine_chunks()
    if array.null_count == len(array):
        return np.full(len(array), np.nan)
    here = slice(array.offset, array.offset + len(array))
    valid, values = array.buffers()
    numbers: np.ndarray = np.frombuffer(values, np.float64)[here]
    if valid is None:
        return numbers
    there = np.unpackbits(np.frombuffer(valid, np.uint8), bitorder="little")[here].astype(bool)
    return np.where(there, numbers, np.nan)


def _of_choices(table: pa.Table) -> list[Figure]:
    probs, logits = (_by_choice(table, f"choice_{what}") for what in ("probs", "logits"))
    logs = np.log(probs, out=np.zeros_like(probs), where=probs > 0)
    best = np.sort(logits, axis=1)
    figures = [] if "is_correct" not in table.column_names else [
        Figure("correct", "right", "", _numbers(table, "is_correct"))
    ]  # fmt: skip
    figures.append(Figure("entropy", "entropy over the choices", "nats", (-(probs * logs).sum(1)).astype(np.float32)))
    unit = "nats" if "choice_logprob_sum" in table.column_names else "logits"
    figures.append(Figure("margin", "margin, best − second", unit, (best[:, -1] - best[:, -2]).astype(np.float32)))
    figures.append(Figure("pred_prob", "probability of the answer given", "", probs.max(1).astype(np.float32)))
    return figures


def _by_choice(table: pa.Table, name: str) -> Float64[np.ndarray, "n choices"]:
    """Return a figure of every choice.

    Raises:
        DamagedRunError: Questions have no choices, or not as many as one another.
    """
    if name not in table.column_names or list_levels(table.column(name)) in {None, (), (0,), (1,)}:
        raise DamagedRunError(f"{TOKENS_FILE} is damaged: {name} has not the same number of choices in every row.")
    values: np.ndarray = rectangle(table.column(name)).astype(np.float64)
    return values


def _own_figure(table: pa.Table, name: str) -> Figure | None:
    """Return a column of the data set as what it can be filtered by: kinds, or numbers; None for texts of all sorts."""
    column = table.column(name)
    kinds = None if pa.types.is_floating(column.type) else _category(column, name)
    if kinds is not None or not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        return kinds
    return Figure(f"of_{_in_a_path(name)}", name, "", _numbers(table, name))


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
